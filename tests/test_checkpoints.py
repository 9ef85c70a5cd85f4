"""Checkpoints of a long run: limited in number, the newest and the best by held-out loss always among them."""

import math
from pathlib import Path

import pytest

from deepdoctor.checkpoints import adapter_step, best_checkpoint, rotate, told_best
from deepdoctor.config import PRESETS, DatasetConfig, ModelConfig, StudyConfig
from deepdoctor.errors import RunError
from deepdoctor.files import write_json
from deepdoctor.overlap import Seen
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.progress import checkpoints_asked
from deepdoctor.studies.questions import bundled_bank
from deepdoctor.studies.study import Studies

EPOCH = PRESETS["full_epoch"]
UNSEEN = {each.id: Seen("unseen", None, None, 0.0) for each in bundled_bank()[:1]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Runs(tmp_path).create(ModelConfig(), DatasetConfig(), EPOCH, "Epoch")


def save(run: Run, step: int, held_out_loss: float | None = None) -> None:
    """A step's held-out loss and checkpoint, in the trainer's order."""
    if held_out_loss is not None:
        run.append_metric({"step": step, "held_out_loss": held_out_loss})
    folder = run.checkpoint_dir(step)
    write_json(folder / "trainer_state.json", {"global_step": step})
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"states")


def loss_at(step: int) -> float:
    """Best at step 700, then rising: the model learns the rows by heart."""
    return 1.2 + abs(step - 700) / 1000


def train(run: Run, steps: range, kept: int, asked: tuple[int, ...] = ()) -> int:
    """Save and rotate at each of the steps; returns how many checkpoints there were at most after a save."""
    most = 0
    for step in steps:
        save(run, step, loss_at(step))
        rotate(run, kept, asked)
        most = max(most, len(run.checkpoints()))
    return most


def test_an_adapters_step_is_that_at_which_it_was_saved_wherever_the_run_is(run: Run) -> None:
    save(run, 20)
    run.set_status(state="interrupted", step=35)
    assert (adapter_step(run), adapter_step(run, 20)) == (20, 20)
    write_json(run.path / "adapter" / "complete.json", {"step": 25})
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    assert (adapter_step(run), adapter_step(run, 20)) == (25, 20)
    with pytest.raises(RunError, match="no adapter at step 30"):
        adapter_step(run, 30)


def test_a_full_epoch_keeps_five_with_the_best_and_the_newest(run: Run) -> None:
    assert train(run, range(100, 2500, 100), EPOCH.checkpoints_kept) == 5
    assert run.checkpoints() == [700, 2100, 2200, 2300, 2400]
    assert run.status["best_checkpoint"] == {"step": 700, "held_out_loss": 1.2}
    assert told_best(run) == 700
    assert sorted(folder.name for folder in (run.path / "checkpoints").iterdir()) == sorted(
        f"checkpoint-{step}" for step in run.checkpoints()
    )


def test_the_articles_checkpoints_all_stay(run: Run) -> None:
    article = PRESETS["article"]
    train(run, range(article.checkpoint_steps, article.max_steps + 1, article.checkpoint_steps), article.checkpoints_kept)
    assert run.checkpoints() == [20, 40, 60]


def test_one_kept_is_the_newest_beside_the_best(run: Run) -> None:
    train(run, range(100, 1100, 100), 1)
    assert run.checkpoints() == [700, 1000]


def test_what_a_study_asks_stays(run: Run, tmp_path: Path) -> None:
    studies = Studies(tmp_path)
    for step, of in ((300, run.id), (400, "another-run"), (None, run.id)):
        studies.create(StudyConfig(run=of, step=step), bundled_bank()[:1], "nano", UNSEEN)
    assert checkpoints_asked(studies, run.id) == {300}
    train(run, range(100, 2500, 100), 5, (300,))
    assert run.checkpoints() == [300, 700, 2200, 2300, 2400]


def test_after_a_resume_the_best_is_of_the_curve_that_counts(run: Run) -> None:
    train(run, range(100, 500, 100), 5)
    run.append_metric({"step": 500, "held_out_loss": 0.1})  # measured, and lost with the power before its checkpoint was saved
    run.append_metric({"resumed_from": 400})
    save(run, 500, 1.9)
    assert best_checkpoint(run) == {"step": 400, "held_out_loss": loss_at(400)}
    rotate(run, 2)
    assert run.checkpoints() == [400, 500]


def test_losses_that_say_nothing_are_no_best(run: Run) -> None:
    save(run, 100)
    run.append_metric({"step": 50, "held_out_loss": 0.5})
    assert best_checkpoint(run) is None, "no checkpoint lies where it was measured"
    save(run, 200, math.nan)
    rotate(run, 1)
    assert (run.checkpoints(), told_best(run)) == ([200], None)
    save(run, 300, 1.5)
    save(run, 400, 1.5)
    assert best_checkpoint(run) == {"step": 400, "held_out_loss": 1.5}, "of equals the later"


def test_what_a_crash_left_goes_but_not_what_is_being_written(run: Run) -> None:
    train(run, range(100, 400, 100), 5)
    for step in (250, 350):
        save(run, step)
        (run.checkpoint_dir(step) / "trainer_state.json").unlink()
    (run.path / "checkpoints" / ".removed-checkpoint-50").mkdir()
    rotate(run, 5)
    left = {folder.name for folder in (run.path / "checkpoints").iterdir()}
    assert left == {"checkpoint-100", "checkpoint-200", "checkpoint-300", "checkpoint-350"}


def test_a_checkpoint_that_was_removed_is_told(run: Run) -> None:
    train(run, range(100, 1100, 100), 2)
    with pytest.raises(RunError, match=r"no adapter at step 100; checkpoints: \[700, 1000\]\. Newer ones take the place"):
        run.adapter_dir(100)
    with pytest.raises(RunError, match=r"no adapter at step 1100; checkpoints: \[700, 1000\]\.$"):
        run.adapter_dir(1100)


def test_an_older_run_without_the_note_still_reads(run: Run) -> None:
    save(run, 100, 1.5)
    assert told_best(run) is None
    assert best_checkpoint(run) == {"step": 100, "held_out_loss": 1.5}
