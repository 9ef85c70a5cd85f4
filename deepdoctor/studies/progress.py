"""How far a study has come: who joined, what each has judged, the losses of the run that it is about, and what cannot be read."""

import json
from dataclasses import dataclass

from deepdoctor.errors import RunError, StudyError
from deepdoctor.files import write_json
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.measures import losses
from deepdoctor.studies.study import Studies, Study
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


def require_unopened(study: Study) -> None:
    """Raises StudyError if raters have been let in: preparing such a study again could only shut them out, or let them in."""
    if study.state in ("open", "closed"):
        raise StudyError(f"The study {study.name} is {study.state}; its answers are all written. Nothing was changed.")


def keep_losses(study: Study, run: Run) -> None:
    """Store the held-out losses of the study's checkpoint with the study, for when the run is gone."""
    write_json(study.path / LOSSES, losses(run.curve(), study.config.step))


def checkpoints_asked(studies: Studies, run_id: str) -> set[int]:
    """The steps of that run's checkpoints that studies ask; while they exist these checkpoints are not removed."""
    return {study.config.step for study in studies.list() if study.config.run == run_id and study.config.step is not None}


def damage_of(study: Study) -> str:
    """What of a study's raters cannot be read, in words; "" if all can."""
    lost = study.damaged_raters
    return (
        f"The {'file of 1 rater' if lost == 1 else f'files of {lost} raters'} cannot be read; what they said is kept, but counts nowhere "
        f"until the {'file is' if lost == 1 else 'files are'} put back."
        if lost
        else ""
    )


def damage(studies: Studies, judgments: Judgments) -> list[str]:
    """What of the studies and of the store cannot be read, in words; [] if all can."""
    found = [f"The study {each} cannot be read and is left out." for each in studies.damaged()]
    if lines := judgments.damaged:
        which = "1 line of the judgments cannot be read and is" if lines == 1 else f"{lines} lines of the judgments cannot be read and are"
        found.append(f"{which} left out; a line that a crash tore was never called saved.")
    return found


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
