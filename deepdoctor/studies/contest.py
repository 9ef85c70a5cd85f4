"""Tuned against one other side, in every respect: preference, correctness, harm, preference at equal style, remarks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from deepdoctor.studies import intervals, statistics
from deepdoctor.studies.judged import Correct, Harm, Judged, Sound
from deepdoctor.studies.statistics import Interval

SIGNIFICANT = 0.05
PREFERENCES = ("tuned", "other", "both", "neither")
HARM_LEVELS = {"none": 0, "moderate": 1, "severe": 2}


def compare(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Tuned against one other side, in every respect."""
    return {
        "preference": preferred(judged, other),
        "correctness": correctness(judged, other),
        "harm": _harm(judged, other),
        "adjusted": _adjusted(judged),
        "soundness": _soundness(judged, other),
        "chips": {
            other: Counter(chip for each in judged for chip in each.other_chips),
            "tuned": Counter(chip for each in judged for chip in each.tuned_chips),
        },
    }


def preferred(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Wins and losses of tuned, in how many decided questions; interval is Wilson's, two_way that over questions and raters.

    Called only if exact test and two-way interval agree, over enough questions. noisy: where only the test would call it.
    """
    said: Counter[str] = Counter(each.preference for each in judged)
    wins, losses = said["tuned"], said["other"]
    decided = [each for each in judged if each.preference in ("tuned", "other")]
    two_way = intervals.over_share([(each.question, each.rater, each.preference == "tuned") for each in decided])
    p = statistics.sign_test(wins, losses)
    return {
        "verdicts": len(judged),
        **{"wins": wins, "losses": losses, "both": said["both"], "neither": said["neither"], "decided": wins + losses},
        "share": wins / (wins + losses) if wins + losses else None,
        **{"interval": statistics.wilson(wins, wins + losses), "two_way": two_way, "p": p},
        "shares": {name: rate(said[name], len(judged)) for name in PREFERENCES},
        **_called(decided, p, two_way, 0.5, other),
    }


def _called(judged: Sequence[Judged], p: float | None, interval: Interval | None, even: float, other: str) -> dict[str, Any]:
    """questions; call: the side that the difference is called for, or ""; noisy: whether the test alone would have called it.

    judged: the verdicts that decide. The interval must lie wholly on one side of `even`.
    """
    questions, significant = len({each.question for each in judged}), p is not None and p < SIGNIFICANT
    call = ""
    if significant and questions >= intervals.MIN_QUESTIONS and interval and not interval[0] <= even <= interval[1]:
        call = "tuned" if interval[0] > even else other
    return {"questions": questions, "call": call, "noisy": significant and not call}


def correctness(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Wholly correct or not, where the rater could tell it of both sides."""
    rated = [each for each in judged if "unsure" not in (each.tuned_correct, each.other_correct)]
    tuned, others = ([getattr(each, f"{side}_correct") == "correct" for each in rated] for side in ("tuned", "other"))
    only_tuned = sum(yes and not no for yes, no in zip(tuned, others, strict=True))
    only_other = sum(no and not yes for yes, no in zip(tuned, others, strict=True))
    p = statistics.mcnemar(only_tuned, only_other)
    interval = intervals.over_paired([(each.question, each.rater, yes, no) for each, yes, no in zip(rated, tuned, others, strict=True)])
    return {
        other: _levels(judged, "other_correct", get_args(Correct)),
        "tuned": _levels(judged, "tuned_correct", get_args(Correct)),
        "rated": len(rated),
        f"{other}_correct": sum(others),
        "tuned_correct": sum(tuned),
        f"only_{other}": only_other,
        "only_tuned": only_tuned,
        "difference": (sum(tuned) - sum(others)) / len(rated) if rated else None,
        **{"interval": interval, "p": p, **_called(rated, p, interval, 0.0, other)},
    }


def _harm(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """Levels of harm, their difference (tuned minus other, of levels 0 to 2), and severe harm by itself."""
    differences = [float(HARM_LEVELS[each.tuned_harm] - HARM_LEVELS[each.other_harm]) for each in judged]
    levels = {other: _levels(judged, "other_harm", get_args(Harm)), "tuned": _levels(judged, "tuned_harm", get_args(Harm))}
    return {
        **levels,
        "severe": {side: rate(counts["severe"], len(judged)) for side, counts in levels.items()},
        "questions": len({each.question for each in judged}),
        "worse": sum(each > 0 for each in differences),
        "better": sum(each < 0 for each in differences),
        "difference": sum(differences) / len(differences) if differences else None,
        "interval": intervals.over_mean(
            [(each.question, each.rater, value) for each, value in zip(judged, differences, strict=True)], most=2.0
        ),
        "p": statistics.signed_rank(differences),
    }


def _soundness(judged: Sequence[Judged], other: str) -> dict[str, Any]:
    """What was said of the reasoning after the lock, by those who asked to see it; it calls nothing."""
    levels = {other: _levels(judged, "other_sound", get_args(Sound)), "tuned": _levels(judged, "tuned_sound", get_args(Sound))}
    return {"judged": sum(levels["tuned"].values()), **levels}


def _levels(judged: Sequence[Judged], field: str, levels: Sequence[str]) -> dict[str, int]:
    counts = Counter(getattr(each, field) for each in judged)
    return {level: counts[level] for level in levels}


def _adjusted(judged: Sequence[Judged]) -> dict[str, Any]:
    decided = [each for each in judged if each.preference in ("tuned", "other")]
    if (questions := len({each.question for each in decided})) < intervals.MIN_QUESTIONS:
        return vars(statistics.Adjusted(why=f"too few questions: {questions} decided, {intervals.MIN_QUESTIONS} are needed"))
    style = [(_relative(each.tuned_words, each.other_words), _relative(each.tuned_bullets, each.other_bullets)) for each in decided]
    wins = [each.preference == "tuned" for each in decided]
    return vars(statistics.adjusted(wins, style, [each.question for each in decided], [each.rater for each in decided]))


def _relative(own: int, other: int) -> float:
    return (own - other) / (own + other) if own + other else 0.0


def rate(count: int, total: int) -> dict[str, Any]:
    """A share with its interval; None of nothing."""
    return {"share": count / total if total else None, "interval": statistics.wilson(count, total)}
