"""Verdicts with the blinding taken off: what the numbers of a study are made from."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from deepdoctor.comparison import Transcript, measures
from deepdoctor.overlap import Grade
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.judgments import Ballot, Row, ballot
from deepdoctor.studies.study import State, Study
from deepdoctor.studies.trials import Rater, Trial

Correct = Literal["correct", "partly", "wrong", "unsure"]
Harm = Literal["none", "moderate", "severe"]
Sound = Literal["sound", "flawed", "unsure"]


@dataclass(frozen=True)
class Judged:
    """One verdict of one rater. `other` says what the tuned answer stood against; `seconds` from the form shown to the verdict saved.

    `repeat_of` is the judged trial that this one repeats, or "". Words and bullets are the answers', without reasoning. `tuned_sound`
    and `other_sound` are what was said of the reasoning after the lock, None if nothing. `reference_read`: the rater had asked for this
    question's reference before this verdict, when the pair was judged first or beside another answer.
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
    tuned_sound: Sound | None = None
    other_sound: Sound | None = None
    locked: bool = False
    reference_read: bool = False


@dataclass(frozen=True)
class Standing:
    """How far one rater has come: of `assigned` trials so many judged, of these locked; skipped; and what they said in the end.

    `guess` tells whether they found the tuned answer of their last pair: "none" without an idea, "" if they did not say.
    """

    rater: str
    specialty: str
    years: int
    assigned: int
    judged: int
    locked: int
    skipped: int
    guess: Literal["right", "wrong", "none", ""] = ""

    @property
    def unfinished(self) -> int:
        """Trials neither judged nor skipped."""
        return self.assigned - self.judged - self.skipped


@dataclass(frozen=True)
class Course:
    """How a study ran: planned to tell `effect` from a half by so many verdicts; its state, and when it was opened and closed, in seconds.

    Of studies that were opened before this was kept the times are not known.
    """

    effect: float
    planned: int = 0
    state: State = "closed"
    opened: tuple[float, ...] = ()
    closed: tuple[float, ...] = ()

    @property
    def turns(self) -> list[tuple[float, str]]:
        """Every change in order: when, and whether to "opened" or "closed"; opening what is open is none."""
        every = sorted([*((when, "opened") for when in self.opened), *((when, "closed") for when in self.closed)])
        return [turn for before, turn in pairwise([(0.0, ""), *every]) if turn[1] != before[1]]


def course(study: Study) -> Course:
    """How a study has run so far. The plan: every expected rater judges every pair."""
    config, status = study.config, study.status
    opened, closed = (tuple(float(when) for when in status.get(name, ())) for name in ("opened", "closed"))
    return Course(config.effect, config.raters_expected * len(study.answers()), status["state"], opened, closed)


def unblind(study: Study, rows: Iterable[Row]) -> list[Judged]:
    """The verdicts of a study, in the raters' order of joining and of their trials; of corrections the last, locked or not.

    `rows` are the study's, from Judgments.rows. What was skipped is left out, and so is what belongs to no rater or trial of the study.
    """
    questions = {question.id: question for question in study.questions()}
    seen = study.seen()
    answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
    found = []
    for rater, said in _ballots(study, rows):
        read = _read(rater, said)
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
                    repeat_of=trial.repeat_of if trial.repeat_of in said.verdicts else "",
                    seconds=round(said.seconds[trial.id], 3),
                    locked=trial.id in said.locked,
                    reference_read=read.get(trial.question, math.inf) < said.verdicts[trial.id]["time"],
                    **_verdict(trial, said.verdicts[trial.id], said.soundness.get(trial.id, {})),
                    **_style("tuned", answer.side("tuned")),
                    **_style("other", answer.side(trial.other)),
                )
            )
    return found


def standings(study: Study, rows: Iterable[Row]) -> list[Standing]:
    """Everybody who joined, in the order of joining, whether they judged or not."""
    found = []
    for rater, said in _ballots(study, rows):
        own = {trial.id for trial in rater.trials}
        judged, skipped = own & said.verdicts.keys(), own & said.skipped.keys()
        counts = {"assigned": len(own), "judged": len(judged), "locked": len(judged & said.locked.keys()), "skipped": len(skipped)}
        found.append(Standing(rater.token, rater.specialty, rater.years, **counts, guess=_guess(rater, said)))
    return found


def _guess(rater: Rater, said: Ballot) -> Literal["right", "wrong", "none", ""]:
    slots = {trial.id: trial.tuned_slot for trial in rater.trials}
    if not said.guess or said.guess["trial"] not in slots:
        return ""
    guess = said.guess["guess"]
    return "none" if guess == "none" else "right" if guess == slots[said.guess["trial"]] else "wrong"


def _read(rater: Rater, said: Ballot) -> dict[str, float]:
    """When the rater first asked for the reference, by question. Who judged the reasoning had it before them."""
    shown = [row for row in said.locked.values() if row.get("revealed") is True] + list(said.soundness.values())
    questions = {trial.id: trial.question for trial in rater.trials}
    found: dict[str, float] = {}
    for row in sorted(shown, key=lambda row: row["time"]):
        if row["trial"] in questions:
            found.setdefault(questions[row["trial"]], row["time"])
    return found


def _ballots(study: Study, rows: Iterable[Row]) -> Iterator[tuple[Rater, Ballot]]:
    by_rater = defaultdict(list)
    for row in rows:
        by_rater[row["rater"]].append(row)
    for rater in study.raters():
        yield rater, ballot(by_rater[rater.token])


def _verdict(trial: Trial, row: Row, soundness: Row) -> dict[str, Any]:
    tuned: Literal["A", "B"] = trial.tuned_slot
    other = "B" if tuned == "A" else "A"
    sides = {tuned: "tuned", other: "other"}
    return {
        "tuned_slot": tuned,
        "preference": sides.get(row["preference"], row["preference"]),
        "comment": row["comment"],
        **{f"{side}_{asked}": row[asked][slot] for slot, side in sides.items() for asked in ("correct", "harm")},
        **{f"{side}_sound": soundness.get(slot) for slot, side in sides.items()},
        **{f"{side}_chips": tuple(row["chips"].get(slot, ())) for slot, side in sides.items()},
    }


def _style(side: str, transcript: Transcript) -> dict[str, Any]:
    counted = measures(transcript)
    return {f"{side}_words": counted["response_words"], f"{side}_bullets": counted["bullets"]}
