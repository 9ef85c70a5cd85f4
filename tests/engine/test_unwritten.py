"""What a full disk refuses is kept, and written when there is room, unless the run has moved on."""

import shutil
from pathlib import Path

import pytest

from deepdoctor.config import DatasetConfig, ModelConfig, preset
from deepdoctor.engine.unwritten import Unwritten
from deepdoctor.runs import Run
from tests.engine.full_disk import RefusedRuns
from tests.studies.prepared import created


@pytest.fixture
def runs(tmp_path: Path) -> RefusedRuns:
    """Runs on a full disk; two were training."""
    found = RefusedRuns(tmp_path)
    for _ in range(2):
        found.create(ModelConfig(), DatasetConfig(), preset("quick")).set_status(state="running", step=7)
    return found


@pytest.fixture
def refused(runs: RefusedRuns) -> list[Run]:
    """Those two."""
    return runs.list()


def kept(runs: list[Run]) -> Unwritten:
    made = Unwritten(every=0)
    for run in runs:
        made.write(run, "failed", "The disk that holds runs is full.")
    return made


def test_what_is_refused_is_written_once_there_is_room(runs: RefusedRuns, refused: list[Run]) -> None:
    unwritten = kept(refused)
    unwritten.again()
    assert unwritten
    assert f"{refused[0].name}: The disk that holds runs is full. The disk refuses to keep this" in unwritten.told
    assert [run.state for run in refused] == ["running", "running"]
    runs.full.unlink()
    unwritten.again()
    assert not unwritten
    assert unwritten.told == ""
    assert [(run.state, run.status["step"]) for run in refused] == [("failed", 7)] * 2
    assert all(run.log_tail().endswith("Failed: The disk that holds runs is full.") for run in refused)


def test_what_moved_on_or_went_meanwhile_is_left_alone(runs: RefusedRuns, refused: list[Run]) -> None:
    unwritten = kept(refused)
    runs.full.unlink()
    resumed, deleted = refused
    resumed.set_status(state="queued")
    shutil.rmtree(deleted.path)
    unwritten.again()
    assert not unwritten
    assert resumed.state == "queued"
    assert not deleted.path.exists()


def test_it_is_tried_again_only_after_a_while(runs: RefusedRuns, refused: list[Run]) -> None:
    unwritten = Unwritten(every=60)
    unwritten.write(refused[0], "failed", "No room.")
    runs.full.unlink()
    unwritten.again()
    assert unwritten


def test_with_room_a_run_and_a_study_are_written_at_once(runs: RefusedRuns, refused: list[Run], tmp_path: Path) -> None:
    runs.full.unlink()
    study, unwritten = created(tmp_path, 1), Unwritten()
    unwritten.write(study, "failed", "Out of memory.", process=None)
    unwritten.write(refused[0], "interrupted", "The engine died.")
    assert not unwritten
    assert (study.state, study.status["message"], study.status["process"]) == ("failed", "Out of memory.", None)
    assert refused[0].log_tail().endswith("Interrupted: The engine died.")
