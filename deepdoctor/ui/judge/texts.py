"""What stands in the slots of a trial: a study's questions and answers, read once for as long as their files stay the same."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from markupsafe import Markup

from deepdoctor.comparison import Transcript
from deepdoctor.errors import StudyError
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.judgments import SLOTS
from deepdoctor.studies.questions import BankQuestion
from deepdoctor.studies.study import Study
from deepdoctor.studies.trials import Trial
from deepdoctor.ui.components import render_answer

STUDIES_KEPT = 8
Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shown:
    """One answer as a rater sees it. `reasoning` is for after the lock only."""

    answer: Markup
    note: str
    reasoning: str


@dataclass(frozen=True)
class Material:
    """A study's questions by id and answers by question id and seed."""

    questions: dict[str, BankQuestion]
    answers: dict[tuple[str, int], Answer]


def reader() -> Callable[[Study], Material]:
    """A function that reads a study's material, and again only when its files have changed."""

    @lru_cache(maxsize=STUDIES_KEPT)
    def read(path: Path, _stamp: Stamp) -> Material:
        study = Study(path)
        answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
        return Material({question.id: question for question in study.questions()}, answers)

    return lambda study: read(study.path, _stamp(study))


def pair(material: Material, trial: Trial, reasoning: bool = False) -> dict[str, Shown]:
    """By slot what stands there; the reasoning only if asked for. Raises StudyError if the answers are gone."""
    answer = material.answers.get((trial.question, trial.seed))
    if answer is None:
        raise StudyError("The answers of this pair are gone. Tell whoever sent the link.")
    return {slot: _shown(answer.side(arm), reasoning) for slot, arm in zip(SLOTS, trial.arms, strict=True)}


def _shown(transcript: Transcript, reasoning: bool) -> Shown:
    note = ""
    if not transcript.response:
        note = "No answer was given."
    elif transcript.finish_reason == "length":
        note = "The answer ends here, unfinished."
    return Shown(Markup(render_answer(transcript.response)), note, transcript.reasoning if reasoning else "")


def _stamp(study: Study) -> Stamp:
    stats = [(study.path / name).stat() for name in ("questions.json", "answers.jsonl")]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
