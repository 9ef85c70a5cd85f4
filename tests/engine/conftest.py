"""What the engine's tests share: tiny models on disk, random adapters for them, and sessions that have them loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepdoctor.config import DatasetConfig
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.session import Session
from deepdoctor.runs import Run
from tests.engine import tiny


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and on a busy machine waiting threads cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama. Read it, never write to it."""
    return tiny.save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """Folder of a random adapter for the tiny Llama."""
    return tiny.save_adapter(tmp_path_factory.mktemp("adapter"), llama)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Twelve teachable rows in a file."""
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.rows())


@pytest.fixture
def session(tmp_path: Path, llama: Path) -> Session:
    """A fresh session with the tiny Llama loaded and an empty data folder."""
    return tiny.open_session(tmp_path / "data", llama)


@pytest.fixture
def loaded(session: Session) -> LoadedModel:
    """The fresh session's model."""
    return tiny.model_of(session)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path, dataset: DatasetConfig) -> tuple[Session, Run]:
    """A session and a run that it has trained to its end. Shared: add to it, but change nothing."""
    session = tiny.open_session(tmp_path_factory.mktemp("trained"), llama)
    run = tiny.new_run(session, dataset, max_steps=6, probe_steps=3, eval_steps=3)
    return session, session.finetune(run.id)
