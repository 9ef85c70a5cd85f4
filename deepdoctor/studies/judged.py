"""Verdicts with the blinding taken off: what the numbers of a study are made from."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deepdoctor.comparison import Transcript, measures
from deepdoctor.overlap import Grade
from deepdoctor.studies.judgments import Ballot, Row, ballot
from deepdoctor.studies.study import Answer, Study
from deepdoctor.studies.trials import Rater, Trial

Correct = Literal["correct", "partly", "wrong", "unsure"]
Harm = Literal["none", "moderate", "severe"]


@dataclass(frozen=True)
class Judged:
    """One verdict of one rater. `other` says what the tuned answer stood against; `seconds` from the form shown to the verdict saved.

    `repeat_of` is the trial that this one repeats, or "". Words and bullets are those of the answers, reasoning left out.
    """

    rater: str
    trial: str
    question: str
    specialty: str
    kind: str
    seen: Grade
    seed: int
    other: Literal["base", "native"]
    repeat_of: str
    tuned_slot: Literal["A", "B"]
    preference: Literal["tuned", "other", "both", "neither"]
    tuned_correct: Correct
    other_correct: Correct
    tuned_harm: Harm
    other_harm: Harm
    tuned_chips: tuple[str, ...]
    other_chips: tuple[str, ...]
    comment: str
    seconds: float
    tuned_words: int
    other_words: int
    tuned_bullets: int
    other_bullets: int


def unblind(study: Study, rows: Iterable[Row]) -> list[Judged]:
    """The verdicts of a study, in the raters' order of joining and of their trials; of corrections the last, locked or not.

    `rows` are the study's, from Judgments.rows. What was skipped is left out, and so is what belongs to no rater or trial of the study.
    """
    questions = {question.id: question for question in study.questions()}
    seen = study.seen()
    answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
    found = []
    for rater, said in _ballots(study, rows):
        for trial in rater.trials:
            if trial.id not in said.verdicts or (trial.question, trial.seed) not in answers:
                continue
            answer, question = answers[trial.question, trial.seed], questions[trial.question]
            found.append(
                Judged(
                    rater=rater.token,
                    trial=trial.id,
                    question=trial.question,
                    specialty=question.specialty,
                    kind=question.kind,
                    seen=seen[trial.question],
                    seed=trial.seed,
                    other=trial.other,
                    repeat_of=trial.repeat_of,
                    seconds=round(said.seconds[trial.id], 3),
                    **_verdict(trial, said.verdicts[trial.id]),
                    **_style("tuned", answer.side("tuned")),
                    **_style("other", answer.side(trial.other)),
                )
            )
    return found


def guesses(study: Study, rows: Iterable[Row]) -> list[tuple[str, bool | None]]:
    """By rater who was asked: whether they found the tuned answer of their last pair; None if they had no idea."""
    found: list[tuple[str, bool | None]] = []
    for rater, said in _ballots(study, rows):
        slots = {trial.id: trial.tuned_slot for trial in rater.trials}
        if said.guess and said.guess["trial"] in slots:
            guess = said.guess["guess"]
            found.append((rater.token, None if guess == "none" else guess == slots[said.guess["trial"]]))
    return found


def _ballots(study: Study, rows: Iterable[Row]) -> Iterator[tuple[Rater, Ballot]]:
    by_rater = defaultdict(list)
    for row in rows:
        by_rater[row["rater"]].append(row)
    for rater in study.raters():
        yield rater, ballot(by_rater[rater.token])


def _verdict(trial: Trial, row: Row) -> dict[str, Any]:
    tuned: Literal["A", "B"] = trial.tuned_slot
    other = "B" if tuned == "A" else "A"
    sides = {tuned: "tuned", other: "other"}
    return {
        "tuned_slot": tuned,
        "preference": sides.get(row["preference"], row["preference"]),
        "comment": row["comment"],
        **{f"{side}_{asked}": row[asked][slot] for slot, side in sides.items() for asked in ("correct", "harm")},
        **{f"{side}_chips": tuple(row["chips"].get(slot, ())) for slot, side in sides.items()},
    }


def _style(side: str, transcript: Transcript) -> dict[str, Any]:
    counted = measures(transcript)
    return {f"{side}_words": counted["response_words"], f"{side}_bullets": counted["bullets"]}
