"""Agreement between raters against published examples."""

import pytest

from deepdoctor.studies import agreement

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example D: 4 observers, 12 units, missing values; categories from 1
OBSERVERS = (
    (1, 1, None, 1),
    (2, 2, 3, 2),
    (3, 3, 3, 3),
    (3, 3, 3, 3),
    (2, 2, 2, 2),
    (1, 2, 3, 4),
    (4, 4, 4, 4),
    (1, 1, 2, 1),
    (2, 2, 2, 2),
    (None, 5, 5, 5),
    (None, None, 1, 1),
    (None, None, 3, None),
)
RATINGS = [[rating and rating - 1 for rating in unit] for unit in OBSERVERS]
# two abstractors, 100 pregnancies, 3 diagnoses: cont3x3abstractors of the R package irrCAC (Gwet, Handbook of Inter-Rater Reliability)
ABSTRACTORS = ((13, 0, 0), (0, 20, 7), (0, 4, 56))
DIAGNOSES = [[row, column] for row in range(3) for column in range(3) for _ in range(ABSTRACTORS[row][column])]


def test_agreement_as_published() -> None:
    assert agreement.alpha(RATINGS, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(RATINGS, "ordinal") == pytest.approx(0.815, abs=5e-4)
    # irrCAC, cac.raw4raters: the same ratings
    assert agreement.ac1(RATINGS, 5) == pytest.approx(0.77544, abs=5e-6)
    assert agreement.plain(RATINGS, 5) == pytest.approx(0.81818, abs=5e-6)
    assert agreement.alpha(DIAGNOSES, "nominal") == pytest.approx(0.7972585, abs=5e-7)
    assert agreement.ac1(DIAGNOSES, 3) == pytest.approx(0.8493305, abs=5e-7)
    assert agreement.plain(DIAGNOSES, 3) == pytest.approx(0.89)


def test_rare_harm_breaks_alpha_but_not_ac1() -> None:
    """98 of 100 agreed upon, harm in 1 of 100 for each rater, never the same."""
    ratings = [[0, 0]] * 98 + [[2, 0], [0, 2]]
    assert agreement.alpha(ratings, "ordinal") == pytest.approx(0, abs=0.02)
    assert agreement.ac1(ratings, 3) == pytest.approx(0.98, abs=0.005)


def test_nothing_is_told_of_nothing() -> None:
    for ratings in ([], [[1, None], [None, 0]]):
        assert agreement.alpha(ratings, "nominal") is None
        assert agreement.ac1(ratings, 2) is None
        assert agreement.plain(ratings, 2) is None
    assert agreement.alpha([[1, 1], [1, 1]], "nominal") is None, "without any difference, chance is all there is"
