"""Intervals that are printed: as published, never too narrow for few questions, and covering the truth of simulated raters."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.discrete.discrete_model import Logit

from deepdoctor.studies import intervals, statistics
from deepdoctor.studies.contest import compare, correctness, preferred
from deepdoctor.studies.judged import Judged
from deepdoctor.studies.statistics import Interval
from tests.studies.panel import average, drawn, rated, verdicts

# how far questions and raters spread, in log-odds
CLUSTERED = (1.0, 0.3)
STUDIES = 150


def allowed(studies: int, rate: float = 0.95) -> Interval:
    """How many of so many studies an interval of that rate covers, but for one seed in 500."""
    low, high = binom.interval(0.998, studies, rate)
    return float(low), float(high)


def test_paired_differences_as_published() -> None:
    # airway hyper-responsiveness before and after transplantation, 1, 1, 7 and 12 of 21: Fagerland et al., Stat Med 2014;33:2850-2875
    assert intervals.newcombe(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert intervals.newcombe(0, 0, 0, 0) is None
    assert intervals.newcombe(40, 0, 0, 0) == pytest.approx((-0.0876, 0.0876), abs=5e-5), "Wilson's reach below 40 of 40"


@pytest.mark.parametrize("raters", [2, 10, 30])
@pytest.mark.parametrize("questions", [2, 3, 4, 5])
def test_few_questions_call_nothing_even_if_all_raters_agree(questions: int, raters: int) -> None:
    found = compare(unanimous(questions, raters), "base")
    assert (found["preference"]["call"], found["correctness"]["call"]) == ("", "")
    wilson = statistics.wilson(questions, questions) or (0.0, 0.0)
    assert found["preference"]["two_way"] == pytest.approx(wilson, abs=1e-9), "no narrower than one verdict a question"
    assert found["correctness"]["interval"] == pytest.approx(intervals.newcombe(0, questions, 0, 0), abs=1e-9)
    assert found["preference"]["noisy"] == (questions * raters > 5)


def unanimous(questions: int, raters: int) -> list[Judged]:
    """Everybody prefers tuned everywhere and takes it alone for correct."""
    return verdicts(["tuned"] * questions * raters, raters, other_correct="wrong")


def test_six_questions_on_which_all_agree_can_be_called() -> None:
    found = compare(unanimous(intervals.MIN_QUESTIONS, 3), "base")
    assert (found["preference"]["call"], found["correctness"]["call"]) == ("tuned", "tuned")


def test_many_questions_on_which_all_agree_count_as_one_verdict_each() -> None:
    assert preferred(unanimous(40, 10), "base")["two_way"] == pytest.approx(statistics.wilson(40, 40))
    level = compare(verdicts(["both"] * 400, 10), "base")
    assert level["correctness"]["interval"] == pytest.approx((-0.0876, 0.0876), abs=5e-5), "all correct on both sides is no proof of zero"
    assert level["harm"]["interval"] is None, "how far harm spreads where none was seen is not known"
    assert level["preference"]["two_way"] is None


@pytest.mark.parametrize(("questions", "told"), [(5, False), (6, True)])
def test_harm_of_few_questions_has_no_interval(questions: int, told: bool) -> None:
    """Of 2 questions two_way covers the mean difference in 83% of simulated studies, of 6 in 91%."""
    said = [replace(each, tuned_harm="severe") if place % 3 == 0 else each for place, each in enumerate(verdicts(["both"] * questions * 4))]
    harm = compare(said, "base")["harm"]
    assert (harm["questions"], harm["interval"] is not None) == (questions, told)


def test_one_question_gives_no_interval() -> None:
    found = compare(unanimous(1, 30), "base")
    assert (found["preference"]["two_way"], found["correctness"]["interval"], found["harm"]["interval"]) == (None, None, None)
    assert (found["preference"]["call"], found["preference"]["noisy"]) == ("", True)


def test_what_is_decided_in_one_question_of_many_counts_as_one() -> None:
    said = [["tuned"] * 10, *([["both"] * 10] * 20)]
    assert preferred(verdicts([each for question in said for each in question], 10), "base")["two_way"] is None


@pytest.mark.parametrize("questions", [3, 4, 6, 12])
def test_ten_raters_of_few_questions_seldom_call_what_is_not_there(questions: int) -> None:
    """In 120 studies without a difference whose questions differ much; 5% would be 6."""
    rng, by_preference, by_correctness = Random(21), 0, 0
    for _ in range(120):
        by_preference += bool(preferred(drawn(rng, questions, 10, 0.0, (2.0, 0.3)), "base")["call"])
        by_correctness += bool(correctness(rated(rng, questions, 10, (0.0, 0.0), (1.0, 0.3), own=2.0), "base")["call"])
    assert max(by_preference, by_correctness) <= allowed(120, 0.05)[1]


@pytest.mark.parametrize(("questions", "raters", "mean"), [(24, 8, 0.5), (40, 4, 1.0)])
def test_the_printed_interval_of_the_preference_covers_the_truth(questions: int, raters: int, mean: float) -> None:
    rng, truth, covered, by_wilson = Random(22), average(mean, CLUSTERED), 0, 0
    for _ in range(STUDIES):
        found = preferred(drawn(rng, questions, raters, mean, CLUSTERED), "base")
        covered += within(truth, found["two_way"])
        by_wilson += within(truth, found["interval"])
    low, high = allowed(STUDIES)
    assert low <= covered <= high
    assert by_wilson < low, "verdicts taken as independent promise too much"


@pytest.mark.parametrize(("questions", "raters", "means"), [(24, 8, (1.2, 0.5)), (40, 4, (0.4, 0.4))])
def test_the_interval_of_the_difference_in_correctness_covers_the_truth(questions: int, raters: int, means: tuple[float, float]) -> None:
    """A question is easier for one side (spread 1) and for both (spread 1)."""
    rng, covered, by_verdicts = Random(23), 0, 0
    spreads = (math.hypot(CLUSTERED[0], 1.0), CLUSTERED[1])
    truth = average(means[0], spreads) - average(means[1], spreads)
    for _ in range(STUDIES):
        study = rated(rng, questions, raters, means, CLUSTERED, own=1.0)
        found = correctness(study, "base")
        covered += within(truth, found["interval"])
        both = sum(each.tuned_correct == each.other_correct == "correct" for each in study)
        one, other = found["only_tuned"], found["only_base"]
        by_verdicts += within(truth, intervals.newcombe(both, one, other, len(study) - both - one - other))
    low, high = allowed(STUDIES)
    assert low <= covered <= high
    assert by_verdicts < low or raters < 8, "verdicts taken as independent promise too much"


def test_the_adjusted_interval_covers_the_truth_under_clustering() -> None:
    """Raters like length (2 in log-odds) and bullets (1) while tuned answers are shorter; questions and raters differ besides."""
    rng, covered = Random(24), 0
    wins, style = styled(rng, list(range(60_000)), list(range(60_000)))
    truth = 1 / (1 + math.exp(-float(Logit(wins, np.column_stack([np.ones(len(wins)), style])).fit(disp=False).params[0])))
    for _ in range(STUDIES):
        questions, raters = [number // 8 for number in range(240)], [number % 8 for number in range(240)]
        found = statistics.adjusted(*styled(rng, questions, raters), questions, raters)
        covered += within(truth, found.interval)
    low, high = allowed(STUDIES)
    assert low <= covered <= high
    assert truth > 0.55 > sum(wins) / len(wins), "the raw preference says less"


def styled(rng: Random, questions: list[int], raters: list[int]) -> tuple[list[bool], list[tuple[float, float]]]:
    """Who won, and the differences of style, for these questions and raters; tuned is worth 0.5 to them."""
    of_question, of_rater = ({each: rng.gauss(0, spread) for each in numbers} for numbers, spread in ((questions, 1.0), (raters, 0.3)))
    texts = {each: (rng.uniform(-0.6, 0.2), rng.uniform(-0.5, 0.3)) for each in questions}
    style = [texts[each] for each in questions]
    odds = [
        0.5 + 2 * length + bullets + of_question[question] + of_rater[rater]
        for (length, bullets), question, rater in zip(style, questions, raters, strict=True)
    ]
    return [rng.random() < 1 / (1 + math.exp(-each)) for each in odds], style


def within(truth: float, interval: Interval | None) -> bool:
    """Whether there is an interval and it covers the truth."""
    return interval is not None and interval[0] <= truth <= interval[1]
