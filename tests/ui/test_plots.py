"""Plots: what is drawn, what is told, and that nothing in a name becomes markup."""

import math
import random
import re
from itertools import pairwise

import pytest

from deepdoctor.ui.plots import (
    MOST_POINTS,
    MOST_STOPS,
    Series,
    label_of,
    line_plot,
    series_of,
    shared_out,
    smooth,
    smoothed,
    thinned,
    ticks,
)

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


def drawn_points(drawn: str) -> int:
    """How many points the lines of a plot have."""
    return sum(path.count("L") + 1 for path in re.findall(r'<path class="s[^"]*" d="([^"]*)"', drawn) if "h0" not in path)


def noisy(count: int, seed: int = 7) -> list[tuple[float, float]]:
    """A loss that falls and is noisy."""
    drawn = random.Random(seed)
    return [(float(x), 1 + 1 / (1 + x / 50) + drawn.gauss(0, 0.05)) for x in range(count)]


@pytest.mark.parametrize("count", [4, 5, 481, 482, 961, 2500, 100_000])
@pytest.mark.parametrize("most", [4, 7, 480])
def test_many_points_are_thinned_with_ends_peaks_and_order_kept(count: int, most: int) -> None:
    points = noisy(count)
    points[count // 2] = (points[count // 2][0], 9.0)
    points[count // 3] = (points[count // 3][0], 0.01)
    kept = thinned(points, most)
    assert len(kept) <= most
    assert len(kept) >= min(count, most // 2)
    assert kept == sorted(set(kept)), "in order, none twice"
    assert set(kept) <= set(points)
    assert {points[0], points[-1], points[count // 2], points[count // 3]} <= set(kept)


def test_a_thinned_line_runs_where_the_whole_one_runs() -> None:
    points = noisy(2500)
    kept = thinned(points, 240)
    for begin in range(0, 2500, 100):
        whole = [y for x, y in points if begin <= x < begin + 100]
        left = [y for x, y in kept if begin <= x < begin + 100]
        assert min(left) == pytest.approx(min(whole), abs=0.05)
        assert max(left) == pytest.approx(max(whole), abs=0.05)


def test_a_line_of_one_height_is_thinned_too() -> None:
    points = [(float(x), 0.0) for x in range(5000)]
    drawn = line_plot([Series("a", points)], "Loss")
    assert 200 < drawn_points(drawn) <= MOST_POINTS
    assert len(drawn) < 80_000
    assert drawn.count("dd-stop") == MOST_STOPS


@pytest.mark.parametrize("how", ["none", "light", "strong"])
def test_a_plot_shares_its_points_out_and_rare_lines_keep_theirs(how: str) -> None:
    held_out = [(float(x), 2.0 - x / 5000) for x in range(0, 2500, 100)]
    lines = [*smoothed(Series("Training", noisy(2500)), how), *smoothed(Series("Held out", held_out, 1), how)]
    shared = shared_out(lines)
    assert sum(len(line.points) for line in shared) <= MOST_POINTS
    for line, whole in zip(shared, lines, strict=True):
        assert (line.points[0], line.points[-1]) == (whole.points[0], whole.points[-1])
        assert len(line.points) >= min(len(whole.points), MOST_POINTS // 4)
        assert line.name != "Held out" or line.points == whole.points
    assert drawn_points(line_plot(lines, "Loss")) <= MOST_POINTS


def test_every_held_out_loss_can_be_hovered_beside_the_training_loss_of_its_step() -> None:
    held_out = Series("Held out", [(float(x), 2.0) for x in range(0, 2500, 100)], 1)
    drawn = line_plot([Series("Training", noisy(2500)), held_out], "Loss")
    tips = re.findall(r"<b>Step ([\d,]+)</b>(.*?)</div>", drawn)
    assert len(tips) == MOST_STOPS
    told = {int(step.replace(",", "")): said for step, said in tips}
    for step in range(0, 2500, 100):
        assert "Training" in told[step]
        assert "Held out" in told[step]


def test_six_long_lines_share_the_points() -> None:
    assert [len(line.points) for line in shared_out([Series(str(seed), noisy(3000, seed)) for seed in range(6)])] == [80] * 6


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
