"""How far a study has come."""

from pathlib import Path

from deepdoctor.runs import Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.progress import keep_losses, losses_of, progress, verdicts
from tests.studies.prepared import other, prepared, verdict
from tests.ui.fakes import fake_run


def test_each_raters_verdicts_and_skips_are_counted_once(tmp_path: Path) -> None:
    study, judgments = prepared(tmp_path, 4, repeat_share=0.0), Judgments(tmp_path)
    ada, ben = (study.join(name, "Cardiology", 3) for name in ("Ada", "Ben"))
    first, second = (trial.id for trial in ada.trials[:2])
    for row in (verdict(study, ada.token, first), verdict(study, ada.token, first, "2-again", preference="B")):
        judgments.add(row)
    judgments.add(other(verdict(study, ada.token, second), "skip"))
    found = progress(study, judgments)
    assert [(each.rater.name, each.judged, each.skipped) for each in found] == [("Ada", 1, 1), ("Ben", 0, 0)]
    assert verdicts(study, judgments) == 1
    assert ben.token not in {row["rater"] for row in judgments.rows(study.id)}


def test_losses_are_those_of_the_checkpoint_and_outlive_the_run_once_kept(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    early, final = (prepared(tmp_path, 1, run=run.id, step=step) for step in (20, None))
    found = losses_of(early, Runs(tmp_path))
    assert found["held_out_loss"]["step"] == 20
    assert found["held_out_loss"]["last"] > losses_of(final, Runs(tmp_path))["held_out_loss"]["last"]
    keep_losses(early, run)
    Runs(tmp_path).delete(run.id)
    assert losses_of(early, Runs(tmp_path)) == found


def test_losses_are_those_of_the_run_or_none_if_it_is_gone(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    study = prepared(tmp_path, 1, run=run.id)
    found = losses_of(study, Runs(tmp_path))["held_out_loss"]
    assert found["first"] > found["last"]
    Runs(tmp_path).delete(run.id)
    assert losses_of(study, Runs(tmp_path)) == {}
