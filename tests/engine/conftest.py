"""What the engine's tests share: tiny models on disk, random adapters for them, and sessions that have them loaded."""

import deepdoctor.engine.accelerator  # noqa: F401

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.session import Session
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.across import log_of, train


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


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama that never ends an answer by itself: what is to be stopped must still be going on."""
    return tiny.save_model(tmp_path_factory.mktemp("endless"), eos_token_id=1)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, endless: Path) -> Iterator[EngineClient]:
    """A client of a real engine process, shared by all tests; they take it as `client`."""
    with EngineClient(tmp_path_factory.mktemp("process") / "data", ModelConfig(name=str(endless))) as started:
        assert tiny.until(lambda: started.state.phase == "ready"), log_of(started)
        yield started


@pytest.fixture
def client(engine: EngineClient) -> Iterator[EngineClient]:
    """The shared client, ready. A test that fails while the engine works must not take the others with it."""
    yield engine
    if engine.runs.active():
        engine.stop_training()
    for study in engine.studies.list():
        if study.state == "preparing":
            engine.stop_preparing(study.id)
    assert tiny.until(lambda: not engine.runs.active() and engine.state.phase == "ready"), log_of(engine)


@pytest.fixture(scope="session")
def run(engine: EngineClient, dataset: DatasetConfig) -> Run:
    """A run that the shared engine process has trained to its end."""
    return train(engine, dataset)
