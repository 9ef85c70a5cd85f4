"""The results of a study as one JSON-ready value: what was found in words, then every number behind it, and automatic measures apart.

A pair that a rater was shown again counts once: by the first presentation that was judged; the second tells only how consistent raters are.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from statistics import median, quantiles
from typing import Any, get_args

from deepdoctor.overlap import Grade
from deepdoctor.studies import agreement, statistics
from deepdoctor.studies.contest import HARM_LEVELS, PREFERENCES, compare, preferred, rate
from deepdoctor.studies.exports import RATER_FIELDS, codes
from deepdoctor.studies.headline import cautions, headline, opening, power
from deepdoctor.studies.judged import Course, Judged, Standing
from deepdoctor.studies.measures import measure

SCHEMA = 2
# beyond, a form was left open rather than worked on
LONGEST_SECONDS = 3600
# in order; "unsure" is no level
CORRECT_LEVELS = {"wrong": 0, "partly": 1, "correct": 2}
Rows = Iterable[Mapping[str, Any]]


def results(
    judged: Sequence[Judged], raters: Sequence[Standing], questions: Rows, answers: Rows, losses: Mapping[str, Any], course: Course
) -> dict[str, Any]:
    """Everything a study shows so far.

    judged, raters: from judged.py. questions: rows of questions.json. answers: rows of answers.jsonl. losses: from measures.losses, or {}.
    course: how the study ran. Raters are called R1, R2 … (see `codes`).
    Lists of numbers hold intervals [low, high] at 95%; None stands for what cannot be told. Without verdicts every block is there, empty.
    """
    first = [each for each in judged if not each.repeat_of]
    main = [each for each in first if each.other == "base"]
    native = [each for each in first if each.other == "native"]
    asked = list(questions)
    names = codes(judged, (each.rater for each in raters))
    specialties = {each.rater: each.specialty.casefold() for each in raters}
    compared = compare(main, "base")
    against = compare(native, "native") if native else {}
    found = {
        "schema": SCHEMA,
        "course": {**asdict(course), "turns": course.turns},
        "counts": {**_counts(judged, asked), **_came(raters, names)},
        **compared,
        "by": {
            **{name: _by(main, attrgetter(name)) for name in ("specialty", "kind", "seen")},
            "rater_specialty": _by(main, lambda each: specialties.get(each.rater, "")),
        },
        "slots": _slots(judged),
        "repeats": _repeats(judged),
        "agreement": _agreement(main),
        "guesses": _guessed(raters),
        "seconds": _seconds([each.seconds for each in first]),
        "raters": [_rater(code, [each for each in judged if each.rater == rater]) for rater, code in codes(judged).items()],
        "questions": _by_pair(judged, names, [question["id"] for question in asked]),
        "native": {"headline": headline(against, "native"), **against} if native else None,
        "measures": {**measure(answers, asked), "losses": dict(losses)},
    }
    words = {
        "headline": opening({"base": compared, **({"native": against} if native else {})}),
        "cautions": cautions(found),
        "power": power(course.effect, compared["preference"]["decided"]),
    }
    return _plain({**words, **found})


def _plain(value: Any) -> Any:
    """The value with floats rounded to 6 places and none that JSON does not know."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _counts(judged: Sequence[Judged], questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    grades = Counter(question["seen"] for question in questions)
    return {
        "verdicts": sum(not each.repeat_of for each in judged),
        "repeats": sum(bool(each.repeat_of) for each in judged),
        "reference_read": sum(each.reference_read for each in judged if not each.repeat_of),
        "raters": len({each.rater for each in judged}),
        "questions": len(questions),
        "judged_questions": len({each.question for each in judged}),
        "seen": {grade: grades[grade] for grade in get_args(Grade)},
    }


def _came(raters: Sequence[Standing], names: Mapping[str, str]) -> dict[str, Any]:
    """How far raters have come: trials locked, skipped and unfinished, in all and by rater; in the order of their codes."""
    by_rater = [{name: getattr(each, name) for name in RATER_FIELDS} | {"rater": names[each.rater]} for each in raters]
    return {
        "joined": len(raters),
        **{name: sum(row[name] for row in by_rater) for name in ("locked", "skipped", "unfinished")},
        "by_rater": sorted(by_rater, key=lambda row: int(row["rater"][1:])),
    }


def _by(judged: Sequence[Judged], group_of: Callable[[Judged], str]) -> dict[str, dict[str, Any]]:
    """Preference and severe harm in each group. Groups are many and small: what is seen there is a hint, and nothing is called."""
    groups = defaultdict(list)
    for each in judged:
        groups[group_of(each) or "not given"].append(each)
    kept = ("verdicts", "wins", "losses", "both", "neither", "decided", "share", "interval", "two_way")
    return {
        group: {key: value for key, value in preferred(members, "base").items() if key in kept}
        | {
            "severe": {
                side: sum(getattr(each, f"{of}_harm") == "severe" for each in members)
                for side, of in (("base", "other"), ("tuned", "tuned"))
            }
        }
        for group, members in sorted(groups.items())
    }


def _slots(judged: Sequence[Judged]) -> dict[str, Any]:
    """How often the answer in slot A was preferred, and how often tuned stood there, over all presentations."""
    decided = [each for each in judged if each.preference in ("tuned", "other")]
    in_a = sum((each.preference == "tuned") == (each.tuned_slot == "A") for each in decided)
    counts = {"decided": len(decided), "a": in_a, "tuned_a": sum(each.tuned_slot == "A" for each in decided)}
    return {**counts, **rate(in_a, len(decided)), "p": statistics.sign_test(in_a, len(decided) - in_a)}


def _repeats(judged: Sequence[Judged]) -> dict[str, Any]:
    """How often a rater said the same of a pair shown again with slots swapped, and how often the very opposite.

    reference_read: of how many they had read the reference in between, which may change a verdict for good reason.
    """
    by_trial = {(each.rater, each.trial): each for each in judged}
    again = [(by_trial[each.rater, each.repeat_of], each) for each in judged if (each.rater, each.repeat_of) in by_trial]
    same = sum(before.preference == after.preference for before, after in again)
    opposite = sum({before.preference, after.preference} == {"tuned", "other"} for before, after in again)
    read = [(before, after) for before, after in again if after.reference_read]
    return {
        **{"pairs": len(again), "same": same, "opposite": opposite},
        "reference_read": len(read),
        "same_reference_read": sum(before.preference == after.preference for before, after in read),
        **rate(same, len(again)),
    }


def _agreement(judged: Sequence[Judged]) -> dict[str, Any]:
    """Between raters, of the preference and of each side's correctness and harm: {asked: {units, alpha, ac1, plain}}."""
    preference = {each: PREFERENCES.index(each.preference) for each in judged}
    found = {"preference": _agreed([(_pair(each), each.rater, code) for each, code in preference.items()], len(PREFERENCES), "nominal")}
    for asked, levels in (("correct", CORRECT_LEVELS), ("harm", HARM_LEVELS)):
        said = [
            ((*_pair(each), side), each.rater, levels[level])
            for each in judged
            for side in ("tuned", "other")
            if (level := getattr(each, f"{side}_{asked}")) in levels
        ]
        found[asked] = _agreed(said, len(levels), "ordinal")
    return found


def _agreed(said: Sequence[tuple[Hashable, str, int]], categories: int, scale: Any) -> dict[str, Any]:
    raters = sorted({rater for _, rater, _ in said})
    units: dict[Hashable, dict[str, int]] = defaultdict(dict)
    for unit, rater, code in said:
        units[unit][rater] = code
    ratings = [[unit.get(rater) for rater in raters] for unit in units.values()]
    return {
        "units": sum(len(unit) > 1 for unit in units.values()),
        "alpha": agreement.alpha(ratings, scale),
        "ac1": agreement.ac1(ratings, categories),
        "plain": agreement.plain(ratings, categories),
    }


def _pair(each: Judged) -> tuple[str, int, str]:
    return each.question, each.seed, each.other


def _guessed(raters: Sequence[Standing]) -> dict[str, Any]:
    """Whether raters could tell the tuned side in the end; half by chance."""
    said: Counter[str] = Counter(each.guess for each in raters)
    right, wrong = said["right"], said["wrong"]
    return {"right": right, "wrong": wrong, "none": said["none"], **rate(right, right + wrong), "p": statistics.sign_test(right, wrong)}


def _seconds(seconds: Sequence[float]) -> dict[str, Any]:
    """Time spent on a verdict; forms that were left open are counted, their time is not."""
    spent = _spent(seconds)
    low, _, high = quantiles(spent, n=4, method="inclusive") if len(spent) > 1 else (None, None, None)
    quartiles = [low, high] if low is not None else None
    return {"median": _middle(spent), "quartiles": quartiles, "total": sum(spent), "left_open": len(seconds) - len(spent)}


def _spent(seconds: Iterable[float]) -> list[float]:
    return [each for each in seconds if each <= LONGEST_SECONDS]


def _middle(seconds: Sequence[float]) -> float | None:
    return median(seconds) if seconds else None


def _rater(code: str, judged: Sequence[Judged]) -> dict[str, Any]:
    first = [each for each in judged if not each.repeat_of]
    said: Counter[str] = Counter(each.preference for each in first)
    return {
        "rater": code,
        "verdicts": len(first),
        "repeats": len(judged) - len(first),
        **{name: said[preference] for name, preference in zip(("wins", "losses", "both", "neither"), PREFERENCES, strict=True)},
        "seconds": _middle(_spent(each.seconds for each in first)),
    }


def _by_pair(judged: Sequence[Judged], names: Mapping[str, str], order: Sequence[str]) -> list[dict[str, Any]]:
    """Every pair with all verdicts on it, those on a pair shown again marked, and in what first verdicts contradict one another.

    In the order of the questions.
    """
    pairs = defaultdict(list)
    for each in judged:
        pairs[_pair(each)].append(each)
    return [
        {
            **{"question": question, "seed": seed, "other": other},
            **{name: getattr(verdicts[0], name) for name in ("specialty", "kind", "seen")},
            "disagree": _disagreements([each for each in verdicts if not each.repeat_of]),
            "verdicts": [_verdict(each, names) for each in verdicts],
        }
        for (question, seed, other), verdicts in sorted(pairs.items(), key=lambda pair: (order.index(pair[0][0]), *pair[0][1:]))
    ]


def _verdict(each: Judged, names: Mapping[str, str]) -> dict[str, Any]:
    kept = ("preference", "tuned_slot", "tuned_correct", "other_correct", "tuned_harm", "other_harm", "comment", "seconds")
    later = ("tuned_sound", "other_sound", "locked", "reference_read")
    chips = {"tuned_chips": list(each.tuned_chips), "other_chips": list(each.other_chips)}
    said = {name: getattr(each, name) for name in (*kept, *later)}
    return {"rater": names[each.rater], "again": bool(each.repeat_of), **said, **chips}


def _disagreements(verdicts: Sequence[Judged]) -> list[str]:
    """preference, correct, harm: where one rater said one end of the scale and another the other."""
    ends: dict[str, tuple[Callable[[Judged, str], str], set[str]]] = {
        "preference": (lambda each, _: each.preference, {"tuned", "other"}),
        "correct": (lambda each, side: getattr(each, f"{side}_correct"), {"correct", "wrong"}),
        "harm": (lambda each, side: getattr(each, f"{side}_harm"), {"none", "severe"}),
    }
    return [
        asked for asked, (said, both) in ends.items() if any(both <= {said(each, side) for each in verdicts} for side in ("tuned", "other"))
    ]
