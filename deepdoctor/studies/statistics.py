"""Rates, intervals, tests and sample sizes: numbers in, numbers out. SciPy and statsmodels are loaded on use.

Verdicts are not independent: raters agree on a question, and each rater has a taste. In simulated studies of 40 questions, whose log-odds
for the tuned answer spread by 1 over questions and by 0.3 over raters, Wilson's 95% interval covers the truth in 89% of studies with 3
raters and 76% with 15, `two_way` in 96%. Where raters spread by 0.7, `two_way` covers it in 89% with 3 raters and 93% with 15; with one
rater of 72 verdicts beside four of 3, in 96%, where it would in 84% if those five weighed the same.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
DRAWS = 2000
POWER = 0.8
# per coefficient in the rarer outcome; fewer bias a logistic regression (Vittinghoff and McCulloch, Am J Epidemiol 2007;165:710-718)
EVENTS_PER_COEFFICIENT = 5
# beyond this many votes the normal approximation is within 0.1% of the exact number
EXACT_UP_TO = 20_000
# beyond this many differences that are not 0, the signed rank test is approximated
EXACT_RANKS = 400
# more than any rater judges
MOST_QUESTIONS = 1_000
# assumed in planning: shares of a verdict's variance that go with the question and with the rater (log-odds spread by about 1 and 0.3)
QUESTION_SHARE, RATER_SHARE = 0.15, 0.02

Interval = tuple[float, float]


def wilson(count: float, total: float) -> Interval | None:
    """The 95% score interval of count/total, which need not be whole; None of nothing (Wilson, JASA 1927;22:209-212; statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    if not total:
        return None
    low, high = proportion_confint(count, total, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided exact p of wins against losses, were both equally likely (Dixon and Mood, JASA 1946;41:557-566; SciPy). None if none."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else None


def mcnemar(only_first: int, only_second: int) -> float | None:
    """Two-sided exact p of a paired yes/no, by its discordant pairs (McNemar, Psychometrika 1947;12:153-157; statsmodels). None if none."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    if not only_first + only_second:
        return None
    return float(test([[0, only_first], [only_second, 0]], exact=True).pvalue)


def signed_rank(differences: Sequence[float]) -> float | None:
    """Two-sided p that paired differences lie around 0; zeros do not count (Wilcoxon, Biometrics Bulletin 1945;1:80-83; SciPy).

    Exact by counting all ways to set the signs, midranks for ties: for 14 tied levels of harm the normal approximation can give 0.057 where
    0.074 is right. For more than EXACT_RANKS differences that approximation. None without any that is not 0.
    """
    from scipy.stats import rankdata, wilcoxon

    rest = np.array([each for each in differences if each], float)
    if not rest.size:
        return None
    if rest.size > EXACT_RANKS:
        return float(wilcoxon(rest).pvalue)
    # doubled, midranks are whole
    ranks = (2 * rankdata(np.abs(rest))).astype(int)
    chances = np.zeros(ranks.sum() + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    positive = int(ranks[rest > 0].sum())
    return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))


def two_way(rows: Sequence[tuple[Hashable, Hashable, float, float]]) -> Interval | None:
    """The 95% interval of sum(part) / sum(whole) of rows (question, rater, part, whole), by bootstrap over questions and raters together.

    Each draw resamples questions and raters, both with replacement (Owen, Ann Appl Stat 2007;1:386-411). As Owen shows, the draws count the
    noise of single verdicts three times; so their spread is brought to the two-way clustered variance (Cameron, Gelbach and Miller, J Bus
    Econ Stat 2011;29:238-249), and widened by Student's t where few raters, or few who gave most verdicts, differ much. One rater's taste
    cannot be told from the effect: then only questions vary. The same rows give the same interval. None if there are fewer than two
    questions or the wholes sum to 0.
    """
    parts, wholes = _tables(rows)
    total = wholes.sum()
    if len(parts) < 2 or not total:
        return None
    estimate = float(parts.sum() / total)
    rng = np.random.default_rng(0)
    of_questions, of_raters = (rng.multinomial(size, np.full(size, 1 / size), size=DRAWS) for size in parts.shape)
    whole = ((of_questions @ wholes) * of_raters).sum(1)
    part = ((of_questions @ parts) * of_raters).sum(1)[whole > 0]
    draws = part / whole[whole > 0]
    low, high = (float(each) for each in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    influence, shares, told = (parts - estimate * wholes) / total, wholes / total, wholes > 0
    clusters = [(influence.sum(1), shares.sum(1)), (influence.sum(0), shares.sum(0)), (influence[told], shares[told])]
    error, widening = _combined([_clustered(*cluster) for cluster in clusters])
    factor = float(widening * error / draws.std()) if draws.std() else 0.0
    return estimate + (low - estimate) * factor, estimate + (high - estimate) * factor


def _tables(rows: Sequence[tuple[Hashable, Hashable, float, float]]) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Parts and wholes summed by question (rows) and rater (columns)."""
    questions = {question: place for place, question in enumerate(dict.fromkeys(row[0] for row in rows))}
    raters = {rater: place for place, rater in enumerate(dict.fromkeys(row[1] for row in rows))}
    parts, wholes = np.zeros((len(questions), len(raters))), np.zeros((len(questions), len(raters)))
    for question, rater, part, whole in rows:
        parts[questions[question], raters[rater]] += part
        wholes[questions[question], raters[rater]] += whole
    return parts, wholes


def _clustered(sums: "NDArray[np.float64]", shares: "NDArray[np.float64]") -> tuple[float, float]:
    """(variance, degrees of freedom) of a total, from its influence summed by cluster, each of which has that share of all verdicts.

    A large cluster draws the estimate to itself: its influence is divided by what it leaves to the others (CR3, the jackknife's; Bell and
    McCaffrey, Survey Methodology 2002;28:169-181; Cameron and Miller, J Hum Resour 2015;50:317-372). Clusters alike: as ever, n / (n - 1).
    """
    if (count := int((shares > 0).sum())) < 2:
        return 0.0, 0.0
    return float(((sums / (1 - shares)) ** 2).sum() * (count - 1) / count), _freedom(shares)


def _freedom(shares: "NDArray[np.float64]") -> float:
    """One less than the effective number of clusters (Carter, Schnepel and Steigerwald, Rev Econ Stat 2017;99:698-709), and at least 1."""
    return max(1.0, 1 / float((shares**2).sum()) - 1)


def _combined(clustered: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """(standard error, Student's t over the normal quantile) from a variance clustered by question, by rater and not at all.

    clustered: (variance, its degrees of freedom) of each, numbers or arrays. What questions and raters add to the verdicts' own noise is
    never taken as negative. Degrees of freedom together after Satterthwaite (Biometrics Bulletin 1946;2:110-114).
    """
    from scipy.stats import norm, t

    own = clustered[2][0]
    parts = [np.maximum(0.0, clustered[0][0] - own), np.maximum(0.0, clustered[1][0] - own), own]
    # without freedom there is no variance either
    uncertain = sum(part**2 / np.where(freedom, freedom, 1) for part, (_, freedom) in zip(parts, clustered, strict=True))
    tail, total = (1 + LEVEL) / 2, sum(parts)
    freedom = np.divide(total**2, uncertain, out=np.full(np.shape(total), np.inf), where=uncertain > 0)
    return np.sqrt(total), t.ppf(tail, freedom) / norm.ppf(tail)


@dataclass(frozen=True)
class Adjusted:
    """The share of wins to be expected at equal length and equal bullets, with its interval; or `why` there is none.

    extrapolated: nearly all pairs differ in length to the same side, so that equal length was hardly seen.
    """

    share: float | None = None
    interval: Interval | None = None
    extrapolated: bool = False
    why: str = ""


def adjusted(
    wins: Sequence[bool], differences: Sequence[Sequence[float]], questions: Sequence[Hashable], raters: Sequence[Hashable]
) -> Adjusted:
    """Preference at equal style, from decided pairs: logistic regression of winning on differences of style; its intercept is what is left.

    differences: for each pair (length, bullets), each as (own - other) / (own + other): 0 is equal, and none is beyond 1.
    The method of style control in arena rankings, after Dubois et al., "Length-Controlled AlpacaEval" (COLM 2024). statsmodels; the
    intercept's variance is clustered by questions and raters as in `two_way`.
    """
    from scipy.stats import norm

    fewest, needed = min(sum(wins), len(wins) - sum(wins)), EVENTS_PER_COEFFICIENT * 3
    if fewest < needed:
        return Adjusted(why=f"too few decided pairs: the rarer side won {fewest}, {needed} are needed")
    table = np.asarray(differences, float)
    design = np.column_stack([np.ones(len(wins)), *(column for column in table.T if np.ptp(column) > 0)])
    if np.linalg.matrix_rank(design, tol=1e-3) < design.shape[1]:
        design = design[:, :2]
    clusters = [_numbered(questions), _numbered(raters), np.arange(len(wins))]
    if _separated(np.asarray(wins, bool), design):
        return Adjusted(why="in these pairs style varies too little, or tells the winner by itself")
    value, variances = _intercept(np.asarray(wins, float), design, clusters)
    freedoms = [_freedom(np.bincount(groups) / len(wins)) for groups in clusters]
    error, widening = _combined(list(zip(variances, freedoms, strict=True)))
    reach = norm.ppf((1 + LEVEL) / 2) * widening * error
    longer, shorter = (table[:, 0] > 0).mean(), (table[:, 0] < 0).mean()
    return Adjusted(_expit(value), (_expit(value - reach), _expit(value + reach)), bool(max(longer, shorter) > 0.9))


def _separated(wins: "NDArray[np.bool_]", design: "NDArray[np.float64]") -> bool:
    """Whether some weighing of style never speaks against the outcome, so that no logistic regression fits.

    Albert and Anderson, Biometrika 1984;71:1-10; told by a linear program (Konis, Computational algorithms for detecting separated data in
    binary regression models, thesis, Oxford 2007).
    """
    from scipy.optimize import linprog

    towards = np.where(wins[:, None], design, -design)
    return bool(linprog(-towards.sum(0), A_ub=-towards, b_ub=np.zeros(len(wins)), bounds=(-1, 1)).fun < -1e-8)


def _intercept(wins: "NDArray[np.float64]", design: "NDArray[np.float64]", clusters: Sequence[Any]) -> tuple[float, list[float]]:
    """The intercept, and its variance clustered in each way, 0 where there is one cluster only."""
    from statsmodels.discrete.discrete_model import Logit

    model = Logit(wins, design)
    fits = [model.fit(disp=False, cov_type="cluster", cov_kwds={"groups": groups}) if len(set(groups)) > 1 else None for groups in clusters]
    value = next(float(fit.params[0]) for fit in fits if fit is not None)
    return value, [float(fit.cov_params()[0, 0]) if fit is not None else 0.0 for fit in fits]


def _numbered(labels: Sequence[Hashable]) -> "NDArray[np.int64]":
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return np.array([places[label] for label in labels])


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def votes_needed(effect: float, power: float = POWER) -> int:
    """Fewest decided, independent verdicts with which the two-sided exact sign test at 5% finds that `effect` of them go one way.

    effect: between a half and 1. Known values at 80%: 199 for 60%, 90 for 65%, 49 for 70%.
    """
    from scipy.stats import binom, norm

    tail = (1 + LEVEL) / 2
    near = ((norm.ppf(tail) / 2 + norm.ppf(power) * math.sqrt(effect * (1 - effect))) / (effect - 0.5)) ** 2
    if near > EXACT_UP_TO:
        return math.ceil(near)
    votes = np.arange(1, math.ceil(near * 1.3) + 20)
    enough = binom.isf(1 - tail, votes, 0.5) + 1
    found = binom.sf(enough - 1, votes, effect) + binom.cdf(votes - enough, votes, effect)
    return int(votes[np.argmax(found >= power)])


def questions_needed(effect: float, raters: int, ties: float, power: float = POWER) -> int | None:
    """Fewest questions, each judged by all raters, with which `two_way` tells `effect` from a half; None if no number of questions does.

    ties: share of verdicts that decide for neither side. Assumes that QUESTION_SHARE of a verdict's variance goes with the question and
    RATER_SHARE with the rater (with one rater, that the rater's taste does not matter: it could not be seen).
    """
    from scipy.stats import norm

    variance = effect * (1 - effect)
    at_least = votes_needed(effect, power)
    questions = np.arange(max(2, math.ceil(at_least / (raters * (1 - ties)))), MOST_QUESTIONS)
    votes = questions * raters * (1 - ties)
    own = variance * (1 - QUESTION_SHARE - RATER_SHARE) / votes
    by_rater = variance * RATER_SHARE / raters + own if raters > 1 else np.zeros(questions.size)
    by_question = variance * QUESTION_SHARE / questions + own
    error, widening = _combined([(by_question, questions - 1), (by_rater, raters - 1), (own, np.ceil(votes) - 1)])
    enough = (effect - 0.5) / error >= norm.ppf((1 + LEVEL) / 2) * widening + norm.ppf(power)
    return int(questions[enough.argmax()]) if enough.any() else None


def detectable(votes: int, power: float = POWER) -> float | None:
    """The smallest share, in whole percent, that `votes` decided, independent verdicts tell from a half; None if not even 99%."""
    found = None
    for percent in range(99, 50, -1):
        if votes_needed(percent / 100, power) > votes:
            break
        found = percent / 100
    return found
