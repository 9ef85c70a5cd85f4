"""A model chosen by its name on the Hub, from the download to the proof, through the real engine process and a loopback Hub."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deepdoctor.catalogue import ON_A_GPU
from deepdoctor.comparison import Comparison
from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Compare, EngineState
from deepdoctor.errors import ModelError
from deepdoctor.files import write_json
from deepdoctor.runs import Run
from tests.conftest import start_app, stop_app
from tests.engine import tiny
from tests.engine.across import QUESTION, log_of, train
from tests.engine.tiny import until
from tests.loopback_hub import LoopbackHub

pytestmark = pytest.mark.timeout(120)
NAME = ON_A_GPU.name
MINUTE = 60


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, bytes]:
    """A tiny Llama as the Hub keeps a large one: several files of weights with an index, and a tokenizer."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    tiny.plain(llama).save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    return files_of(folder)


@contextmanager
def started(data_dir: Path, name: str) -> Iterator[EngineClient]:
    """A client of a real engine process that has loaded that model."""
    with EngineClient(data_dir, ModelConfig(name=name)) as client:
        assert until(lambda: client.state.phase in ("ready", "failed"), MINUTE), log_of(client)
        assert client.state.phase == "ready", client.state.message
        yield client


class Watch:
    """What the page would show of the engine, each state once, for as long as the block lasts."""

    def __init__(self, client: EngineClient) -> None:
        self.client, self.states = client, list[EngineState]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.005):
            if not self.states or self.states[-1] != self.client.state:
                self.states.append(self.client.state)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()


def answered(client: EngineClient, run: Run) -> Comparison:
    *_, made = client.follow(client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY)))
    assert isinstance(made, Comparison)
    assert made.proof is not None
    assert made.proof.problems() == []
    return made


def test_from_the_name_to_the_proof_and_again_without_the_hub(
    tmp_path: Path, loopback_hub: LoopbackHub, sharded: dict[str, bytes], llama: Path, dataset: DatasetConfig
) -> None:
    loopback_hub.add_repo(NAME, sharded)
    loopback_hub.slow = 0.4
    with started(tmp_path / "data", str(llama)) as client:
        with Watch(client) as watch:
            client.load(ModelConfig(name=NAME))
        downloads = [each for each in watch.states if each.message.startswith(f"Downloading {NAME}: ")]
        assert len(downloads) >= 3
        assert all(re.match(r"Downloading \S+: \d+\.\d of 0\.\d MB", each.message) for each in downloads)
        fractions = [each.fraction or 0 for each in downloads]
        assert fractions == sorted(set(fractions))
        assert {each.phase for each in downloads} == {"loading"}
        assert all(each.model and each.model.name == str(llama) for each in downloads), "the former is there meanwhile"
        assert until(lambda: client.state.phase == "ready")
        assert client.state.model is not None
        assert client.state.model.name == NAME
        run = train(client, dataset, max_steps=2, checkpoint_steps=2)
        assert run.state == "finished", run.status["message"]
        assert sorted(tiny.losses(run)) == [1, 2]
        first = answered(client, run)
        assert first.model == NAME
        for folder in (run.adapter_dir(), run.adapter_dir(2)):
            assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == NAME
        base_hash = client.state.model.base_hash
    asked = len(loopback_hub.requests)
    loopback_hub.stop()
    with started(tmp_path / "data", NAME) as client:
        assert client.state.model is not None
        assert client.state.model.base_hash == base_hash
        again = answered(client, run)
        assert (again.base.text, again.tuned.text) == (first.base.text, first.tuned.text)
    assert len(loopback_hub.requests) == asked


def ready_run(client: EngineClient, dataset: DatasetConfig, adapter: Path) -> Run:
    """A run with a finished adapter that nobody has to wait for."""
    run = client.runs.create(client.model, dataset, tiny.recipe())
    shutil.copytree(adapter, run.path / "adapter")
    write_json(run.path / "adapter" / "complete.json", {"step": 4})
    run.set_status(state="finished")
    return run


def unknown(_hub: LoopbackHub, _files: dict[str, bytes]) -> None:
    """Nothing is there."""


def gated(hub: LoopbackHub, files: dict[str, bytes]) -> None:
    hub.add_repo("owner/model", files, gated=True)


def gone(hub: LoopbackHub, files: dict[str, bytes]) -> None:
    hub.add_repo("owner/model", files)
    hub.stop()


def huge(hub: LoopbackHub, files: dict[str, bytes]) -> None:
    hub.declare(hub.add_repo("owner/model", files), "model-99999-of-99999.safetensors", 10**16)


Prepare = Callable[[LoopbackHub, dict[str, bytes]], None]
FAILURES: dict[str, tuple[Prepare, str]] = {
    "unknown": (unknown, r"There is no model owner/model on the Hub, or it is private\. Check the spelling"),
    "gated, no token": (gated, r"owner/model is gated: accept its terms at https://huggingface\.co/owner/model, then set HF_TOKEN"),
    "no network": (gone, r"The Hub could not be reached\. Check the network and try again"),
    "larger than the disk": (huge, r"owner/model needs 10,000,000\.0 GB, but only [\d,.]+ GB are free in .*hub-cache"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_is_told_and_the_model_before_still_answers(
    name: str, tmp_path: Path, loopback_hub: LoopbackHub, llama: Path, dataset: DatasetConfig, adapter: Path
) -> None:
    prepare, words = FAILURES[name]
    with started(tmp_path / "data", str(llama)) as client:
        run, pid = ready_run(client, dataset, adapter), client.pid
        prepare(loopback_hub, files_of(llama))
        with pytest.raises(ModelError, match=words):
            client.load(ModelConfig(name="owner/model"))
        assert until(lambda: client.state.phase == "ready")
        assert client.state.model is not None
        assert client.state.model.name == client.model.name == str(llama)
        assert answered(client, run).model == str(llama)
        assert client.pid == pid


def test_the_app_starts_with_the_model_that_the_environment_names(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(llama))
    app = start_app(tmp_path)
    try:
        components = httpx.get(f"{app.url}/config").json()["components"]
        chosen = [each["props"]["value"] for each in components if each["props"].get("elem_id") == "dd-base-model"]
        assert chosen == [str(llama)]
        assert until(lambda: any((app.data_dir / "tokenizers").glob("*.json")), MINUTE), app.log.read_text()
    finally:
        stop_app(app)
