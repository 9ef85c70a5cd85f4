"""Runs and studies whose processes are gone: marked at once, or once the last process that trains them has ended."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepdoctor.config import DatasetConfig, ModelConfig, preset
from deepdoctor.engine.lost import Lost
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.study import Studies
from tests.engine import tiny


@pytest.fixture
def lost() -> Iterator[Lost]:
    made = Lost()
    yield made
    made.close()


@pytest.fixture
def orphan() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that trains a run for an engine which has died."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def trained_by(runs: Runs, process: "subprocess.Popen[bytes]") -> Run:
    run = runs.create(ModelConfig(), DatasetConfig(), preset("quick"))
    run.set_status(state="running", process=[process.pid, psutil.Process(process.pid).create_time()])
    return run


def mark(lost: Lost, runs: Runs) -> None:
    lost.mark(runs, Studies(runs.root.parent), "It died.", "It died.")


def test_what_nobody_trains_is_marked_at_once(lost: Lost, tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run = runs.create(ModelConfig(), DatasetConfig(), preset("quick"))
    mark(lost, runs)
    assert (run.state, run.status["message"]) == ("interrupted", "It died. Resume continues from the last checkpoint.")


def test_a_run_is_marked_when_its_last_process_ends_without_a_word(lost: Lost, tmp_path: Path, orphan: "subprocess.Popen[bytes]") -> None:
    runs = Runs(tmp_path)
    run = trained_by(runs, orphan)
    mark(lost, runs)
    assert run.state == "running"
    orphan.kill()
    assert tiny.until(lambda: run.state == "interrupted", 20)
    assert "has ended. Resume continues" in run.status["message"]


def test_how_a_process_says_that_its_run_ended_counts(lost: Lost, tmp_path: Path, orphan: "subprocess.Popen[bytes]") -> None:
    runs = Runs(tmp_path)
    finished, resumed = trained_by(runs, orphan), trained_by(runs, orphan)
    mark(lost, runs)
    finished.set_status(state="finished")
    resumed.set_status(state="queued")
    orphan.kill()
    assert not tiny.until(lambda: "interrupted" in (finished.state, resumed.state), 5)
