"""Tuned against one other side, in every respect: preference, correctness, harm, preference at equal style, remarks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from deepdoctor.studies import statistics
from deepdoctor.studies.judged import Correct, Harm, Judged

SIGNIFICANT = 0.05
PREFERENCES = ("tuned", "other", "both", "neither")
HARM_LEVELS = {"none": 0, "moderate": 1, "severe": 2}


def compare(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Tuned against one other side, in every respect."""
    return {
        "preference": preferred(judged, other),
        "correctness": _correctness(judged, other),
        "harm": _harm(judged, other),
        "adjusted": _adjusted(judged),
        "chips": {
            other: Counter(chip for each in judged for chip in each.other_chips),
            "tuned": Counter(chip for each in judged for chip in each.tuned_chips),
        },
    }


def preferred(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Wins and losses of tuned; called only if exact test and two-way interval agree. noisy: where only the test would call it."""
    said: Counter[str] = Counter(each.preference for each in judged)
    wins, losses = said["tuned"], said["other"]
    interval = statistics.wilson(wins, wins + losses)
    decided = [each for each in judged if each.preference in ("tuned", "other")]
    two_way = statistics.two_way([(each.question, each.rater, float(each.preference == "tuned"), 1.0) for each in decided])
    if two_way and interval:
        # never narrower than if verdicts were independent: where all agree, the bootstrap sees no spread at all
        two_way = (max(0.0, min(two_way[0], interval[0])), min(1.0, max(two_way[1], interval[1])))
    p = statistics.sign_test(wins, losses)
    significant = p is not None and p < SIGNIFICANT
    return {
        "verdicts": len(judged),
        **{"wins": wins, "losses": losses, "both": said["both"], "neither": said["neither"], "decided": wins + losses},
        "share": wins / (wins + losses) if wins + losses else None,
        **{"interval": interval, "two_way": two_way, "p": p},
        "shares": {name: rate(said[name], len(judged)) for name in PREFERENCES},
        "call": _side(significant, two_way, 0.5, other),
        "noisy": significant and not _side(significant, two_way, 0.5, other),
    }


def _side(significant: bool, interval: tuple[float, float] | None, even: float, other: str) -> str:
    """Which side the difference is called for, if it is: the interval must lie wholly on one side of `even`."""
    if not significant or interval is None or interval[0] <= even <= interval[1]:
        return ""
    return "tuned" if interval[0] > even else other


def _correctness(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Wholly correct or not, where the rater could tell it of both sides."""
    rated = [each for each in judged if "unsure" not in (each.tuned_correct, each.other_correct)]
    tuned, others = ([getattr(each, f"{side}_correct") == "correct" for each in rated] for side in ("tuned", "other"))
    only_tuned = sum(yes and not no for yes, no in zip(tuned, others, strict=True))
    only_other = sum(no and not yes for yes, no in zip(tuned, others, strict=True))
    p = statistics.mcnemar(only_tuned, only_other)
    interval = _difference(rated, [float(yes) - float(no) for yes, no in zip(tuned, others, strict=True)], most=1.0)
    return {
        other: _levels(judged, "other_correct", get_args(Correct)),
        "tuned": _levels(judged, "tuned_correct", get_args(Correct)),
        "rated": len(rated),
        f"{other}_correct": sum(others),
        "tuned_correct": sum(tuned),
        f"only_{other}": only_other,
        "only_tuned": only_tuned,
        "difference": (sum(tuned) - sum(others)) / len(rated) if rated else None,
        **{"interval": interval, "p": p, "call": _side(p is not None and p < SIGNIFICANT, interval, 0.0, other)},
    }


def _harm(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Levels of harm, their difference (tuned minus other, of levels 0 to 2), and severe harm by itself."""
    differences = [float(HARM_LEVELS[each.tuned_harm] - HARM_LEVELS[each.other_harm]) for each in judged]
    levels = {other: _levels(judged, "other_harm", get_args(Harm)), "tuned": _levels(judged, "tuned_harm", get_args(Harm))}
    return {
        **levels,
        "severe": {side: rate(counts["severe"], len(judged)) for side, counts in levels.items()},
        "worse": sum(each > 0 for each in differences),
        "better": sum(each < 0 for each in differences),
        "difference": sum(differences) / len(differences) if differences else None,
        "interval": _difference(judged, differences, most=2.0),
        "p": statistics.signed_rank(differences),
    }


def _difference(judged: Sequence[Judged], differences: Sequence[float], most: float) -> tuple[float, float] | None:
    """Two-way interval of a mean difference between -most and most."""
    found = statistics.two_way([(each.question, each.rater, value, 1.0) for each, value in zip(judged, differences, strict=True)])
    return found and (max(-most, found[0]), min(most, found[1]))


def _levels(judged: Sequence[Judged], field: str, levels: Sequence[str]) -> dict[str, int]:
    counts = Counter(getattr(each, field) for each in judged)
    return {level: counts[level] for level in levels}


def _adjusted(judged: Sequence[Judged]) -> dict[str, Any]:
    decided = [each for each in judged if each.preference in ("tuned", "other")]
    style = [(_relative(each.tuned_words, each.other_words), _relative(each.tuned_bullets, each.other_bullets)) for each in decided]
    wins = [each.preference == "tuned" for each in decided]
    return vars(statistics.adjusted(wins, style, [each.question for each in decided], [each.rater for each in decided]))


def _relative(own: int, other: int) -> float:
    return (own - other) / (own + other) if own + other else 0.0


def rate(count: int, total: int) -> dict[str, Any]:
    """A share with its interval; None of nothing."""
    return {"share": count / total if total else None, "interval": statistics.wilson(count, total)}
