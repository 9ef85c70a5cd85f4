"""Raters made by hand or drawn at random, for what is computed from verdicts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from deepdoctor.studies.judged import Judged

PLAIN = Judged(
    rater="token-1",
    trial="trial-1",
    question="question-1",
    specialty="cardiology",
    kind="clinical",
    seen="unseen",
    seed=1,
    other="base",
    repeat_of="",
    tuned_slot="A",
    preference="tuned",
    tuned_correct="correct",
    other_correct="correct",
    tuned_harm="none",
    other_harm="none",
    tuned_chips=(),
    other_chips=(),
    comment="",
    seconds=30.0,
    tuned_words=80,
    other_words=80,
    tuned_bullets=0,
    other_bullets=0,
)


def question_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Rows of questions.json, question-1 and so on."""
    plain = {"specialty": "cardiology", "kind": "clinical", "seen": "unseen", "terms": [], "reference": ""}
    return [{"id": f"question-{number}", **plain, **changes} for number in range(1, count + 1)]


def verdicts(preferences: Sequence[str], raters: int = 4, **changes: Any) -> list[Judged]:
    """One verdict for each preference: question by question, each judged by all raters in turn, slots alternating."""
    return [
        replace(
            PLAIN,
            rater=f"token-{number % raters + 1}",
            trial=f"trial-{number + 1}",
            question=f"question-{number // raters + 1}",
            tuned_slot="AB"[(number + number // raters) % 2],
            preference=preference,
            **changes,
        )
        for number, preference in enumerate(preferences)
    ]


def drawn(
    rng: Random, questions: int, raters: int, mean: float, spreads: tuple[float, float] = (0.0, 0.0), ties: float = 0.3
) -> list[Judged]:
    """A whole study: tuned is preferred with log-odds of `mean`, plus what question and rater add (normal, of these spreads)."""
    of_question, of_rater = (
        [rng.gauss(0, spread) for _ in range(count)] for spread, count in zip(spreads, (questions, raters), strict=True)
    )
    chances = [1 / (1 + math.exp(-(mean + one + two))) for one in of_question for two in of_rater]
    return verdicts(
        [rng.choice(("both", "neither")) if rng.random() < ties else "tuned" if rng.random() < chance else "other" for chance in chances],
        raters,
    )


def rated(
    rng: Random, questions: int, raters: int, means: tuple[float, float], spreads: tuple[float, float] = (0.0, 0.0), own: float = 0.0
) -> list[Judged]:
    """A whole study of correctness: tuned and other are correct with log-odds of `means`, plus what question and rater add to both sides.

    own: spread of what a question adds to one side only.
    """
    of_question, of_rater = (
        [rng.gauss(0, spread) for _ in range(count)] for spread, count in zip(spreads, (questions, raters), strict=True)
    )
    sides = [[mean + one + rng.gauss(0, own) for mean in means] for one in of_question]
    chances = [[1 / (1 + math.exp(-(side + two))) for side in pair] for pair in sides for two in of_rater]
    said = [["correct" if rng.random() < chance else "wrong" for chance in pair] for pair in chances]
    return [
        replace(each, tuned_correct=tuned, other_correct=other)
        for each, (tuned, other) in zip(verdicts(["both"] * len(said), raters), said, strict=True)
    ]


def average(mean: float, spreads: tuple[float, float]) -> float:
    """The share that `drawn` draws around: the mean of logistic(mean + normal), by the trapezoid rule."""
    spread = math.hypot(*spreads)
    steps = [step / 100 for step in range(-600, 601)]
    return sum(math.exp(-step * step / 2) / (1 + math.exp(-(mean + spread * step))) for step in steps) / 100 / math.sqrt(2 * math.pi)
