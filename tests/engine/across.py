"""What tests of the real engine process share: asking, training and listening across the pipe."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepdoctor.comparison import Comparison
from deepdoctor.config import DatasetConfig, SamplingConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Compare
from deepdoctor.errors import DeepDoctorError
from deepdoctor.files import write_json
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.tiny import until

QUESTION = "A patient aged 50 has thirst. What is it?"


def log_of(client: EngineClient) -> str:
    return (client.data_dir / "engine.log").read_text()


def begin(client: EngineClient, dataset: DatasetConfig, **changes: object) -> Run:
    """Queue a run."""
    run = client.runs.create(client.model, dataset, tiny.recipe(**changes))
    client.finetune(run.id)
    return run


def train(client: EngineClient, dataset: DatasetConfig, **changes: object) -> Run:
    run = begin(client, dataset, **changes)
    assert until(lambda: run.state not in ("queued", "running")), log_of(client)
    assert until(lambda: client.state.phase == "ready")
    return run


def adapted_run(client: EngineClient, model: Path, scratch: Path) -> Run:
    """A finished run whose adapter has random weights, for the model of that folder."""
    run = client.runs.create(client.model, tiny.write_rows(scratch / "rows.jsonl", tiny.rows()), tiny.recipe())
    shutil.copytree(tiny.save_adapter(scratch / "adapter", model), run.path / "adapter")
    write_json(run.path / "adapter" / "complete.json", {"step": 1})
    write_json(run.path / "questions.json", [])
    run.set_status(state="finished")
    return run


def training(run: Run, step: int = 1) -> bool:
    return until(lambda: run.status["step"] >= step)


@contextmanager
def held(client: EngineClient) -> Iterator[None]:
    """The engine stands still meanwhile, so that whatever is sent reaches it together, on a fast machine too."""
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(client.pid, signal.SIGCONT)


def request(run: Run, seed: int = 1, most: int = 300) -> Compare:
    """A question whose answers are drawn with that seed and become that long."""
    return Compare(QUESTION, run.id, sampling=SamplingConfig(temperature=0.8, seed=seed, max_new_tokens=most))


class Listener:
    """Follows a comparison in a thread of its own, and notes what came and when. Closed with the last item or an error."""

    def __init__(self, client: EngineClient, asked: Compare) -> None:
        self.number = client.compare(asked)
        self.items: list[tuple[float, Comparison | str]] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._listen, args=(client,), daemon=True)
        self._thread.start()

    def _listen(self, client: EngineClient) -> None:
        try:
            for item in client.follow(self.number):
                self.items.append((time.monotonic(), item))
        except DeepDoctorError as error:
            self.error = error

    def join(self) -> "Listener":
        self._thread.join(timeout=50)
        assert not self._thread.is_alive()
        return self

    @property
    def words(self) -> list[str]:
        """What it was told while it waited."""
        return [item for _when, item in self.items if isinstance(item, str)]

    @property
    def snapshots(self) -> list[tuple[float, Comparison]]:
        """When something was written, and what."""
        return [(when, item) for when, item in self.items if isinstance(item, Comparison)]

    @property
    def last(self) -> Comparison:
        return self.snapshots[-1][1]


def texts(made: Comparison) -> tuple[str, str]:
    return made.base.text, made.tuned.text
