"""Intervals over questions and raters together that few questions, or verdicts that all agree, do not make too narrow.

`two_way` estimates from the verdicts how much questions and raters vary. With few questions, or where none differs from another, there is
hardly anything to estimate that from: then questions count as if each were one verdict. In simulated studies without any difference (10
raters, log-odds spread by 2 over questions) `two_way` covers the truth in 86% with 3 questions, 90% with 4, 93% with 6, 94% with 8 and
97% with 12. Counting questions with 40 of them as well would cover in 99%, and find at a planned size what is there in 45% instead of 79%.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

from deepdoctor.studies.statistics import Interval, two_way, wilson

# of five questions all for one side, the sign test over questions gives p = 0.06, of six 0.03: below, no agreement can call a difference
MIN_QUESTIONS = 6
# below, an interval is never narrower than if each question were one verdict
FEW_QUESTIONS = 12


def over_share(rows: Sequence[tuple[Hashable, Hashable, bool]]) -> Interval | None:
    """The 95% interval of a share, of rows (question, rater, yes or no): the wider of `two_way` and Wilson's. None below two questions."""
    found = two_way([(question, rater, float(yes), 1.0) for question, rater, yes in rows])
    count = _independent([(question, float(yes)) for question, _, yes in rows])
    floor = wilson(sum(yes for _, _, yes in rows) * count / len(rows), count) if rows else None
    return _wider(found, floor, (0.0, 1.0))


def over_paired(rows: Sequence[tuple[Hashable, Hashable, bool, bool]]) -> Interval | None:
    """The 95% interval of the difference of two shares, first minus second, of rows (question, rater, first yes or no, second yes or no).

    The wider of `two_way` and Newcombe's. None below two questions.
    """
    found = two_way([(question, rater, float(first) - float(second), 1.0) for question, rater, first, second in rows])
    count = _independent([(question, float(first) - float(second)) for question, _, first, second in rows])
    said = [(first, second) for _, _, first, second in rows]
    both, only_first, only_second, neither = (
        said.count(kind) * count / len(rows) if rows else 0.0 for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    return _wider(found, newcombe(both, only_first, only_second, neither), (-1.0, 1.0))


def over_mean(rows: Sequence[tuple[Hashable, Hashable, float]], most: float) -> Interval | None:
    """The 95% `two_way` interval of a mean between -most and most, of rows (question, rater, value).

    None below MIN_QUESTIONS, and where the mean is the same on all: how far values of other questions spread is then not known.
    """
    means = _means([(question, value) for question, _, value in rows])
    if len(means) < MIN_QUESTIONS or len(set(means)) < 2:
        return None
    found = two_way([(*row, 1.0) for row in rows])
    return _wider(found, found, (-most, most))


def newcombe(both: float, only_first: float, only_second: float, neither: float) -> Interval | None:
    """The 95% interval of a difference of paired shares, first minus second, from how many pairs said yes to which; None of nothing.

    Square-and-add from Wilson's intervals (Newcombe, Stat Med 1998;17:2635-2650, method 10). Counts need not be whole.
    """
    total = both + only_first + only_second + neither
    if not total:
        return None
    first, second = (both + only_first) / total, (both + only_second) / total
    (low_1, high_1), (low_2, high_2) = (wilson(yes, total) or (0.0, 1.0) for yes in (both + only_first, both + only_second))
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = both * neither - only_first * only_second
    phi = (max(cross - total / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    difference = first - second
    return difference - reach(first - low_1, high_2 - second), difference + reach(high_1 - first, second - low_2)


def _independent(values: Sequence[tuple[Hashable, float]]) -> int:
    """How many verdicts may be taken as independent in the narrowest interval: all, or as many as there are questions."""
    means = _means(values)
    return len(means) if len(means) < FEW_QUESTIONS or len(set(means)) == 1 else len(values)


def _means(values: Sequence[tuple[Hashable, float]]) -> list[float]:
    """The mean of each question."""
    by_question: dict[Hashable, list[float]] = defaultdict(list)
    for question, value in values:
        by_question[question].append(value)
    return [sum(found) / len(found) for found in by_question.values()]


def _wider(one: Interval | None, other: Interval | None, bounds: Interval) -> Interval | None:
    """The hull of two intervals within bounds, None if one is missing."""
    if one is None or other is None:
        return None
    return max(bounds[0], min(one[0], other[0])), min(bounds[1], max(one[1], other[1]))
