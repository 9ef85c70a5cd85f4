"""Plots: what is drawn, what is told, and that nothing in a name becomes markup."""

import math
import re
from itertools import pairwise

import pytest

from deepdoctor.ui.plots import MOST_POINTS, MOST_STOPS, Series, label_of, line_plot, series_of, smooth, smoothed, thinned, ticks

FALLING = Series("Training", [(0, 2.0), (10, 1.5), (20, 1.2)])


def test_a_metric_becomes_a_line_and_gaps_are_left_out() -> None:
    rows = [
        {"step": 0, "loss": 2.5},
        {"step": 1, "held_out_loss": 3},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": None},
        {"loss": 1},
    ]
    assert series_of(rows, "loss", "Training").points == [(0.0, 2.5)]


def test_smoothing_starts_unbiased_and_keeps_a_constant() -> None:
    assert smooth([(0, 4.0), (1, 4.0), (2, 4.0)], 0.9) == [(0, pytest.approx(4)), (1, pytest.approx(4)), (2, pytest.approx(4))]
    assert smooth([(0, 1.0), (1, 2.0)], 0.5) == [(0, pytest.approx(1)), (1, pytest.approx(5 / 3))]
    assert smooth(FALLING.points, 0.0) == list(FALLING.points)


def test_a_smoothed_line_shows_what_it_was_made_from() -> None:
    long = Series("Training", [(x, 1 / (x + 1)) for x in range(20)])
    faint, line = smoothed(long, "strong")
    assert faint.faint
    assert faint.points == long.points
    assert line.points != long.points
    assert smoothed(long, "none") == [long]


def test_a_few_points_are_not_smoothed() -> None:
    assert smoothed(FALLING, "strong") == [FALLING]


def test_many_points_are_thinned_with_both_ends_kept() -> None:
    points = [(float(x), 0.0) for x in range(5000)]
    kept = thinned(points)
    assert len(kept) == MOST_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    drawn = line_plot([Series("a", points)], "Loss")
    assert len(drawn) < 80_000
    assert drawn.count("dd-stop") == MOST_STOPS


@pytest.mark.parametrize(
    ("low", "high"), [(0, 60), (1.2, 2.0), (0.31, 0.33), (2, 2), (0, 0), (1e-6, 2e-4), (-3, 5), (0, 2463), (1.9999, 2.0001)]
)
def test_ticks_span_the_values_evenly(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 9
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (2463, "2,463"), (24_630, "25k"), (1.25, "1.25"), (2e-4, "2e-4"), (0.0046, "0.0046")]
)
def test_labels_are_short(value: float, shown: str) -> None:
    assert label_of(value) == shown


def axis(drawn: str, which: str) -> list[str]:
    """The labels of one axis."""
    found = re.search(rf'<div class="dd-plot-{which}"[^>]*>(.*?)</div>', drawn)
    assert found
    return re.findall(r">([^<]+)</span>", found[1])


@pytest.mark.parametrize(
    "points", [[(0, 1.0905), (5, 1.0932)], [(0, 10_400), (5, 10_900)], [(0, 0.99999), (5, 1.00002)], [(0, 101), (9, 102.5)]]
)
@pytest.mark.parametrize("small", [True, False])
def test_no_two_labels_of_an_axis_are_the_same(points: list[tuple[float, float]], small: bool) -> None:
    drawn = line_plot([Series("Loss", points)], "Loss", small=small)
    for which in "xy":
        labels = axis(drawn, which)
        assert len(labels) == len(set(labels))


@pytest.mark.parametrize("value", [0.0, 4e-3])
def test_one_value_that_cannot_be_negative_has_no_axis_below_zero(value: float) -> None:
    assert not [label for label in axis(line_plot([Series("Rate", [(1, value)])], "Rate"), "y") if label.startswith("-")]


@pytest.mark.parametrize("last", [1, 3, 5, 7, 10, 30, 60])
def test_steps_are_whole(last: int) -> None:
    for small in (True, False):
        labels = axis(line_plot([Series("Loss", [(0, 1.0), (last, 0.5)])], "Loss", small=small), "x")
        assert all(label.isdecimal() for label in labels), labels


def test_a_plot_has_lines_axes_legend_and_words() -> None:
    drawn = line_plot([FALLING, Series("Held out", [(0, 2.2), (20, 1.6)], 1)], "Loss", last_x=60)
    assert 'role="img"' in drawn
    assert "Training from 2 at step 0 to 1.2 at step 20; Held out from 2.2" in drawn
    assert drawn.count('class="dd-key"') == 2
    assert 'class="s0"' in drawn
    assert 'class="s1"' in drawn
    assert ">60</span>" in drawn
    assert "<b>Step 10</b>" in drawn


def test_every_coordinate_lies_inside() -> None:
    drawn = line_plot([FALLING], "Loss")
    path = re.search(r'class="s0" d="M([^"]+)"', drawn)
    assert path
    for spot in path[1].split("L"):
        x, y = map(float, spot.split())
        assert 0 <= x <= 1000
        assert 0 <= y <= 400


def test_nothing_measured_is_said() -> None:
    assert "Nothing measured yet" in line_plot([Series("Training", [])], "Loss")


def test_one_point_is_a_plot() -> None:
    assert "Step 7" in line_plot([Series("Training", [(7, 1.0)])], "Loss")


def test_a_small_plot_tells_its_last_value() -> None:
    drawn = line_plot([FALLING], "Speed", unit="tokens/s", small=True)
    assert "1.2 tokens/s" in drawn


def test_names_stay_text() -> None:
    drawn = line_plot([Series('<img src=x onerror="a()">${b}{{c}}', [(0, 1), (1, 2)])], "<b>")
    assert "<img" not in drawn
    assert "${b}" not in drawn
    assert "{{c}}" not in drawn
