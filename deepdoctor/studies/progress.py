"""How far a study has come: who joined, what each has judged, and the losses of the run that it is about."""

import json
from dataclasses import dataclass

from deepdoctor.errors import RunError
from deepdoctor.files import write_json
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.measures import losses
from deepdoctor.studies.study import Study
from deepdoctor.studies.trials import Rater

LOSSES = "losses.json"


@dataclass(frozen=True)
class Progress:
    """One rater's verdicts so far, of as many trials as they have; and what they skipped."""

    rater: Rater
    judged: int
    skipped: int


def progress(study: Study, judgments: Judgments) -> list[Progress]:
    """Everybody who joined, in the order of joining."""
    said = [(rater, judgments.ballot(study.id, rater.token)) for rater in study.raters()]
    return [Progress(rater, len(ballot.verdicts), len(ballot.skipped)) for rater, ballot in said]


def verdicts(study: Study, judgments: Judgments) -> int:
    """How many verdicts there are, repeated presentations included."""
    return sum(each.judged for each in progress(study, judgments))


def keep_losses(study: Study, run: Run) -> None:
    """Store the held-out losses of the study's checkpoint with the study, for when the run is gone."""
    write_json(study.path / LOSSES, losses(run.curve(), study.config.step))


def losses_of(study: Study, runs: Runs) -> dict[str, dict[str, float]]:
    """Held-out losses of the study's checkpoint: as kept, else those of the run; {} if that has been deleted."""
    try:
        found: dict[str, dict[str, float]] = json.loads((study.path / LOSSES).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        pass
    try:
        return losses(runs.get(study.config.run).curve(), study.config.step)
    except RunError:
        return {}
