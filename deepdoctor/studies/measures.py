"""Automatic measures of answers: hints that need no rater, kept apart from what raters said. sacrebleu is loaded on use."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from deepdoctor.comparison import Transcript
from deepdoctor.comparison import measures as style
from deepdoctor.overlap import normalize

LOSSES = ("held_out_loss", "held_out_reasoning_loss", "held_out_response_loss")


def measure(answers: Iterable[Mapping[str, Any]], questions: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By arm (base, tuned, native if there is one) what can be counted in all its answers; {} without answers.

    answers: rows of a study's answers.jsonl; questions: its questions.json. For each arm: answers, closed (how many thoughts were ended);
    of the closed ones the median reasoning_tokens and response_words and the mean bullets; mean repetition (see there); and over all
    answers, an open thought being none, key_points (share named, see `named`) and chrf (see there). What cannot be told is None.
    """
    known = {question["id"]: question for question in questions}
    arms: dict[str, list[tuple[Transcript, Mapping[str, Any]]]] = {}
    for row in answers:
        sides = {"base": row["comparison"]["base"], "tuned": row["comparison"]["tuned"], "native": row["native"]}
        for arm, values in sides.items():
            if values is not None:
                arms.setdefault(arm, []).append((_transcript(values), known[row["question"]]))
    return {arm: _arm(pairs) for arm, pairs in arms.items()}


def _transcript(values: Mapping[str, Any]) -> Transcript:
    return Transcript(**{name: values[name] for name in Transcript.__dataclass_fields__})


def _arm(pairs: Sequence[tuple[Transcript, Mapping[str, Any]]]) -> dict[str, Any]:
    closed = [transcript for transcript, _ in pairs if transcript.closed]
    counted = [style(transcript) for transcript in closed]
    points = [each for transcript, question in pairs for each in named(transcript.response, question["terms"])]
    referenced = [(transcript.response, question["reference"]) for transcript, question in pairs if question["reference"].strip()]
    repeated = [share for transcript, _ in pairs if (share := repetition(transcript.text)) is not None]
    return {
        "answers": len(pairs),
        "closed": len(closed),
        "reasoning_tokens": median(each["reasoning_tokens"] for each in counted) if counted else None,
        "response_words": median(each["response_words"] for each in counted) if counted else None,
        "bullets": fmean(each["bullets"] for each in counted) if counted else None,
        "repetition": fmean(repeated) if repeated else None,
        "key_points": fmean(points) if points else None,
        "key_points_asked": len(points),
        "chrf": chrf(*zip(*referenced, strict=True)) if referenced else None,
    }


def repetition(text: str, gram: int = 4) -> float | None:
    """The share of a text's word 4-grams that stood there before: 0 never repeats itself; None below `gram` words."""
    words = re.findall(r"\w+", text.casefold())
    grams = [tuple(words[start : start + gram]) for start in range(len(words) - gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def named(response: str, terms: Iterable[str]) -> list[bool]:
    """For each key point whether one of its terms ("a|b" gives alternatives) stands in the answer, at the beginning of a word.

    Case, punctuation and hyphens do not count. A hint only: neither a negation nor a paraphrase is understood.
    """
    text = f" {normalize(response)}"
    return [any(f" {normalize(term)}" in text for term in alternatives.split("|") if term.strip()) for alternatives in terms]


def chrf(responses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, 0 to 100: overlap of character n-grams with the references (Popović, WMT 2015:392-395; sacrebleu)."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(responses), [list(references)]).score)


def losses(curve: Iterable[Mapping[str, Any]], step: int | None = None) -> dict[str, dict[str, float]]:
    """First and last held-out loss of a run's curve, over both parts, the reasoning and the response; {} if it has none.

    The last is that at or before `step`, where a checkpoint was written, or the very last; its own step comes along.
    """
    found: dict[str, dict[str, float]] = {}
    for row in curve:
        for name in LOSSES:
            if row.get(name) is not None and (step is None or row["step"] <= step):
                found.setdefault(name, {"first": row[name]}).update(last=row[name], step=row["step"])
    return found
