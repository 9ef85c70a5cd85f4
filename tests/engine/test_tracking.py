"""Weights & Biases with its real client: what it writes offline is read back, and whatever it does, a run goes on."""

import json
import shlex
import struct
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepdoctor.config import DatasetConfig
from deepdoctor.engine.session import Session
from deepdoctor.engine.tracking import Tracker, in_words
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.tiny import until
from tests.loopback_wandb import LoopbackWandb

PROBE = {"step": 0, "question": "What is fever?", "reasoning": "Hm.", "response": "An infection."}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))


def run_with(session: Session, dataset: DatasetConfig, mode: str, **changes: Any) -> Run:
    return tiny.new_run(session, dataset, wandb=mode, wandb_project="a-project", max_steps=2, **changes)


def chunks(data: bytes) -> Iterator[bytes]:
    """Contents of a .wandb file: after 7 bytes of header a LevelDB log, 32 KiB blocks of (checksum 4, length 2, kind 1, piece)."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            yield whole
            whole = b""


def records(run: Run) -> Iterator[Any]:
    """Everything in the run's .wandb file; its messages are parsed by wandb's own classes."""
    from wandb.proto import wandb_internal_pb2

    [file] = run.path.rglob("*.wandb")
    for chunk in chunks(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(chunk)
        yield record


def ended(run: Run) -> bool:
    """Whether the service has written all of the run, which it may still do after it was finished."""
    from google.protobuf.message import DecodeError

    try:
        return any(record.WhichOneof("record_type") == "exit" for record in records(run))
    except DecodeError:
        return False


def history(run: Run) -> list[dict[str, Any]]:
    """Logged rows of a run that was finished."""
    assert until(lambda: ended(run), 10)
    return [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def test_off_writes_nothing_and_does_not_load_wandb(session: Session, dataset: DatasetConfig) -> None:
    run = run_with(session, dataset, "off")
    tracker = Tracker(run)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.finish([PROBE])
    assert not list(run.path.rglob("wandb*"))
    assert "wandb_message" not in run.status


def test_offline_writes_what_the_run_wrote(session: Session, dataset: DatasetConfig) -> None:
    run = run_with(session, dataset, "offline", probe_steps=2, eval_steps=2)
    session.finetune(run.id)
    assert run.state == "finished"
    assert "wandb_message" not in run.status
    assert Path(run.status["wandb_dir"]).is_dir()
    logged = history(run)
    wanted = {row["step"]: row["loss"] for row in run.curve() if "loss" in row}
    assert {row["_step"]: row["loss"] for row in logged if "loss" in row} == wanted
    held_out = {row["step"]: row["held_out_loss"] for row in run.curve() if "held_out_loss" in row}
    assert {row["_step"]: row["held_out_loss"] for row in logged if "held_out_loss" in row} == held_out
    [begun] = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"][:1]
    assert (begun.project, begun.run_id, begun.display_name) == ("a-project", run.id, run.name)
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["finetune"]["wandb_project"] == "a-project"
    [table] = run.path.rglob("*.table.json")
    values = json.loads(table.read_text())
    assert values["columns"] == ["step", "question", "reasoning", "response"]
    assert [row[0] for row in values["data"]] == [0, 2]


def test_two_runs_one_after_the_other_do_not_mix(session: Session, dataset: DatasetConfig) -> None:
    runs = [run_with(session, dataset, "offline") for _ in range(2)]
    for number, run in enumerate(runs):
        tracker = Tracker(run)
        tracker.log({"step": 1, "loss": float(number)})
        if number:
            tracker.finish([])
        else:
            tracker._give_up("it was cut off")
    assert [[row["loss"] for row in history(run) if "loss" in row] for run in runs] == [[0.0], [1.0]]


def test_online_without_a_key_is_told_and_the_run_goes_on(session: Session, dataset: DatasetConfig) -> None:
    run = run_with(session, dataset, "online")
    session.finetune(run.id)
    assert run.state == "finished"
    assert "WANDB_API_KEY" in run.status["wandb_message"]
    assert "WANDB_API_KEY" in run.log_tail(99)
    assert not list(run.path.rglob("*.wandb"))


def test_online_with_a_key_that_cannot_be_checked_goes_on(
    session: Session, dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run = run_with(session, dataset, "online")
    session.finetune(run.id)
    assert run.state == "finished"
    assert run.status["wandb_message"].startswith("Weights & Biases: ")


@pytest.mark.parametrize(
    "said",
    [
        "Failed to get resume status for run x: returned error 401: {}",
        "It appears that you do not have permission. Error: 403",
        "API key must be 40 characters long, yours was 9",
    ],
)
def test_a_key_that_is_refused_is_told_as_that(said: str) -> None:
    assert in_words(OSError(said)).startswith("WANDB_API_KEY was refused. Copy it again from")
    assert in_words(OSError("The network is down\nmore")) == "The network is down"
    assert in_words(OSError()) == "OSError"


def test_without_wandb_installed_the_run_goes_on(session: Session, dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = run_with(session, dataset, "offline")
    session.finetune(run.id)
    assert run.state == "finished"
    assert "wandb" in run.status["wandb_message"]


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackWandb]:
    """A W&B server whose API answers while all uploads hang."""
    import wandb

    with LoopbackWandb() as server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # it looks at the environment only once
        yield server
        wandb.teardown()


@pytest.mark.timeout(60)
def test_uploads_that_hang_are_given_up_and_can_be_sent_later(session: Session, dataset: DatasetConfig, stuck: LoopbackWandb) -> None:
    run = run_with(session, dataset, "online")
    tracker = Tracker(run, finish_within=2)
    tracker.log({"step": 1, "loss": 1.0})
    began = time.monotonic()
    tracker.finish([PROBE])
    assert time.monotonic() - began < 10
    assert any("file_stream" in path for path in stuck.uploads)
    [said] = [line for line in run.log_tail(99).splitlines() if "Weights & Biases" in line]
    assert "not everything could be sent within 2 seconds" in said
    assert said.endswith(run.status["wandb_message"])
    folder = Path(shlex.split(said)[-1])
    assert shlex.split(said)[-3:-1] == ["wandb", "sync"]
    assert [file.suffix for file in folder.glob("*.wandb")] == [".wandb"]
    assert [row["loss"] for row in history(run) if "loss" in row] == [1.0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("given_up", [True, False])
def test_a_run_does_not_wait_for_one_before(session: Session, dataset: DatasetConfig, stuck: LoopbackWandb, given_up: bool) -> None:
    first, second = (run_with(session, dataset, mode) for mode in ("online", "offline"))
    tracker = Tracker(first, finish_within=6)
    tracker.log({"step": 1, "loss": 1.0})
    assert until(lambda: any("file_stream" in path for path in stuck.uploads))
    if given_up:
        tracker._give_up("it was cut off")
    began = time.monotonic()
    tracker = Tracker(second)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.finish([])
    assert time.monotonic() - began < 5
    assert "wandb_message" not in second.status
    assert [row["loss"] for row in history(second) if "loss" in row] == [2.0]


class Slow(ModuleType):
    """A wandb that notes what was on disk when a run of it had to be finished, of which it never sends everything."""

    url, Settings, Table = "", dict, dict

    def __init__(self, run: Run) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # libraries look whether it is installed, and for a run that is global
        self.run, self.dir, self.found = run, str(run.path / "wandb" / "a-run" / "files"), [""]

    def init(self, **_settings: Any) -> "Slow":
        return self

    def log(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def finish(self) -> None:
        self.found.append(self.run.state if (self.run.path / "adapter" / "complete.json").exists() else "no adapter")
        raise TimeoutError


def test_the_adapter_is_saved_before_anything_waits_for_the_network(
    session: Session, dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(session, dataset, "offline")
    monkeypatch.setitem(sys.modules, "wandb", Slow(run))
    session.finetune(run.id)
    assert sys.modules["wandb"].found[1] == "running", "with its adapter"
    assert run.state == "finished"
    assert "wandb sync" in run.status["wandb_message"]


class Broken:
    """A W&B run whose every call raises."""

    def log(self, *_: Any, **__: Any) -> None:
        raise OSError("the W&B service is gone")

    def finish(self, *_: Any) -> None:
        raise RuntimeError


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_service_that_breaks_is_told_once(session: Session, dataset: DatasetConfig, call: str) -> None:
    run = run_with(session, dataset, "off")
    tracker = Tracker(run)
    tracker._wandb = Broken()
    for _ in range(2):
        if call == "log":
            tracker.log({"step": 1, "loss": 1.0})
        else:
            tracker.finish([PROBE])
    assert run.status["wandb_message"] == "Weights & Biases: the W&B service is gone"
    assert run.log_tail().count("service is gone") == 1
