"""How far raters agree: numbers in, numbers out. evalica is loaded on use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def alpha(ratings: Sequence[Sequence[int | None]], scale: Literal["nominal", "ordinal"]) -> float | None:
    """Krippendorff's alpha: 1 is perfect, 0 what chance gives. ratings: one row a unit, one place a rater, None where missing.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011); evalica. None if no unit has two ratings, or all ratings are the same.
    """
    import evalica
    import pandas as pd

    table = pd.DataFrame(list(ratings), dtype=float).T
    if not (table.notna().sum() > 1).any():
        return None
    found = evalica.alpha(table, distance=scale)
    return float(found.alpha) if found.expected else None


def ac1(ratings: Sequence[Sequence[int | None]], categories: int) -> float | None:
    """Gwet's AC1: agreement beyond chance that does not break down where one category is rare (Br J Math Stat Psychol 2008;61:29-48).

    ratings as for `alpha`, each in 0 … categories - 1. None if no unit has two ratings.
    """
    counts = _counted(ratings, categories)
    observed = _pairwise(counts)
    if observed is None:
        return None
    shares = (counts / counts.sum(1, keepdims=True)).mean(0)
    chance = float((shares * (1 - shares)).sum() / (categories - 1))
    return (observed - chance) / (1 - chance)


def plain(ratings: Sequence[Sequence[int | None]], categories: int) -> float | None:
    """How often two raters say the same of a unit, averaged over units; ratings as for `ac1`. None if no unit has two ratings."""
    return _pairwise(_counted(ratings, categories))


def _counted(ratings: Sequence[Sequence[int | None]], categories: int) -> "NDArray[np.float64]":
    """How many raters put each rated unit (rows) into each category (columns)."""
    counts = [[sum(rating == category for rating in unit) for category in range(categories)] for unit in ratings]
    return np.asarray([unit for unit in counts if any(unit)], float).reshape(-1, categories)


def _pairwise(counts: "NDArray[np.float64]") -> float | None:
    several = counts[counts.sum(1) > 1]
    raters = several.sum(1)
    return float(((several * (several - 1)).sum(1) / (raters * (raters - 1))).mean()) if len(several) else None
