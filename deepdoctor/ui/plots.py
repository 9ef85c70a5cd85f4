"""Line plots as inline SVG and HTML: no script, sharp at every width, coloured by CSS variables, read out by screen readers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, nan
from typing import Any, TypeVar

from deepdoctor.ui.components import escape

# of a plot, over all its lines; a page with ten viewers loses ticks if it sends many more
MOST_POINTS = 480
MOST_STOPS = 120
FEWEST_SMOOTHED = 8
SMOOTHING = {"none": 0.0, "light": 0.6, "strong": 0.9}
STYLES = 6
WIDTH, HEIGHT = 1000, 400

Point = tuple[float, float]
Number = TypeVar("Number")
NUMBERS = (float, int)


@dataclass(frozen=True)
class Series:
    """One line: its name, its points by ascending x, and its style (0 to STYLES - 1: colour and dashes, see train.css).

    faint: drawn thin and pale, without legend, hover or words; for what a smoothed line was made from.
    """

    name: str
    points: Sequence[Point]
    style: int = 0
    faint: bool = False


def series_of(rows: Iterable[Mapping[str, Any]], key: str, name: str, style: int = 0) -> Series:
    """The line of one metric over "step". Rows without it, or with what is no finite number, are left out."""
    points = [
        (float(x), float(y))
        for row in rows
        # a truth value is an int too, but of another type; no function is called for each of thousands of rows at every tick
        if type(y := row.get(key, nan)) in NUMBERS and type(x := row.get("step", nan)) in NUMBERS and isfinite(y) and isfinite(x)
    ]
    return Series(name, points, style)


def smooth(points: Sequence[Point], weight: float) -> list[Point]:
    """The exponential moving average, corrected for its start; weight 0 leaves the points as they are, towards 1 it smooths more."""
    total = norm = 0.0
    found = []
    for x, y in points:
        total, norm = weight * total + (1 - weight) * y, weight * norm + (1 - weight)
        found.append((x, total / norm))
    return found


def smoothed(series: Series, how: str) -> list[Series]:
    """The series as drawn under that choice of SMOOTHING: itself, or its faint original below its average.

    Fewer than FEWEST_SMOOTHED points stay as they are: an average of them would only lag behind.
    """
    weight = SMOOTHING.get(how, 0.0)
    if not weight or len(series.points) < FEWEST_SMOOTHED:
        return [series]
    return [Series(series.name, series.points, series.style, True), Series(series.name, smooth(series.points, weight), series.style)]


def evenly(points: Sequence[Number], most: int) -> list[Number]:
    """At most `most` of the points, evenly picked, first and last among them."""
    if len(points) <= most:
        return list(points)
    if most < 2:
        return list(points[:most])
    last = len(points) - 1
    return [points[round(index * last / (most - 1))] for index in range(most)]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (4 or more) of the points: first, last, and lowest and highest of each stretch between: no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretches, last = most // 2 - 1, len(points) - 1
    edges = [1 + (last - 1) * index // stretches for index in range(stretches + 1)]
    found = [points[0]]
    for begin, end in pairwise(edges):
        stretch = points[begin:end]
        low, high = min(stretch, key=_height), max(stretch, key=_height)
        found += [low] if low is high else sorted((low, high))
    return [*found, points[last]]


def _height(point: Point) -> float:
    return point[1]


def shared_out(lines: Sequence[Series], most: int = MOST_POINTS) -> list[Series]:
    """The lines with at most `most` points together: those with few keep all, the others get equal parts of the rest."""
    left, parts = most, {}
    for done, index in enumerate(sorted(range(len(lines)), key=lambda index: len(lines[index].points))):
        parts[index] = min(len(lines[index].points), left // (len(lines) - done))
        left -= parts[index]
    return [replace(line, points=thinned(line.points, parts[index])) for index, line in enumerate(lines)]


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many, evenly spaced; on request whole ones only."""
    if high <= low:
        pad = abs(low) * 0.1
        low, high = low - pad, high + pad or 1.0
    rough = max((high - low) / max(1, about - 1), 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (power * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(each for each in factors if each >= rough * 0.999 and not (whole and each % 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def label_of(value: float) -> str:
    """A number at an axis or in words: short, with thousands separated."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:,.0f}k"
    if size >= 100:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:.4g}" if size < 1 else f"{value:.3g}"


def labels_of(ticks: Sequence[float]) -> list[str]:
    """The ticks of an axis as labels: as short as `label_of` makes them, unless that would tell another number."""
    step = min((after - before for before, after in pairwise(ticks)), default=1.0)
    for decimals in range(12):
        exact = [f"{tick:,.{decimals}f}" for tick in ticks]
        if all(abs(float(label.replace(",", "")) - tick) < step / 100 for label, tick in zip(exact, ticks, strict=True)):
            break
    short = [label_of(tick) for tick in ticks]
    told = [float(label.replace(",", "").replace("k", "e3")) for label in short]
    return short if all(abs(value - tick) < step / 100 for value, tick in zip(told, ticks, strict=True)) else exact


@dataclass(frozen=True)
class _Frame:
    """The ticks of both axes; they span the plot."""

    x: list[float]
    y: list[float]

    def left(self, x: float) -> float:
        """Share of the width, 0 to 1."""
        return (x - self.x[0]) / (self.x[-1] - self.x[0])

    def top(self, y: float) -> float:
        """Share of the height from the top, 0 to 1."""
        return 1 - (y - self.y[0]) / (self.y[-1] - self.y[0])


def line_plot(series: Sequence[Series], title: str, *, unit: str = "", small: bool = False, last_x: float | None = None) -> str:
    """The lines as HTML with title, axes, legend and values on hover; a sentence where there is nothing to draw yet.

    last_x: where the x axis ends at least, such as a run's last step. x is the step.
    """
    whole = [replace(one, style=one.style % STYLES) for one in series if one.points]
    lines = shared_out(whole)
    kind = "dd-plot small" if small else "dd-plot"
    heading = f'<figcaption><span class="dd-plot-title">{escape(title)}</span>{_legend(lines, small, unit)}</figcaption>'
    if not lines:
        return f'<figure class="{kind}">{heading}<p class="dd-plot-none">Nothing measured yet.</p></figure>'
    frame = _frame(lines, small, last_x)
    told = [one for one in whole if not one.faint]
    return (
        f'<figure class="{kind}">{heading}<div class="dd-plot-frame">{_axis_labels(frame)}'
        f'<div class="dd-plot-area">{_drawing(lines, frame, _words(told, title), not small)}{_stops(told, frame)}</div></div></figure>'
    )


def _frame(lines: Sequence[Series], small: bool, last_x: float | None) -> _Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    right = max(max(xs), last_x or 0.0)
    across = [tick for tick in ticks(min(xs), right, 4 if small else 7, whole=True) if tick >= 0 or min(xs) < 0]
    return _Frame(across if len(across) > 1 else [0.0, right or 1.0], ticks(min(ys), max(ys), 3 if small else 5))


def _legend(lines: Sequence[Series], small: bool, unit: str) -> str:
    told = [line for line in lines if not line.faint]
    if small:
        return f'<span class="dd-plot-now">{escape(label_of(told[-1].points[-1][1]))} {escape(unit)}</span>' if told else ""
    marks = "".join(f'<span class="dd-key"><i class="k{line.style}"></i>{escape(line.name)}</span>' for line in told)
    return f'<span class="dd-legend">{marks}</span>'


def _axis_labels(frame: _Frame) -> str:
    beside = "".join(
        f'<span style="top:{frame.top(y) * 100:.2f}%">{label}</span>' for y, label in zip(frame.y, labels_of(frame.y), strict=True)
    )
    below = "".join(
        f'<span style="left:{frame.left(x) * 100:.2f}%">{label}</span>' for x, label in zip(frame.x, labels_of(frame.x), strict=True)
    )
    return f'<div class="dd-plot-y" aria-hidden="true">{beside}</div><div class="dd-plot-x" aria-hidden="true">{below}</div>'


def _drawing(lines: Sequence[Series], frame: _Frame, words: str, dotted: bool) -> str:
    grid = "".join(f'<path class="grid" d="M0 {frame.top(y) * HEIGHT:.1f}H{WIDTH}"/>' for y in frame.y)
    drawn = "".join(_line(line, frame, dotted or len(line.points) == 1) for line in sorted(lines, key=lambda line: not line.faint))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(words)}">{grid}{drawn}</svg>'


def _line(line: Series, frame: _Frame, dotted: bool) -> str:
    spots = [f"{frame.left(x) * WIDTH:.1f} {frame.top(y) * HEIGHT:.1f}" for x, y in line.points]
    kind = f"s{line.style}{' faint' if line.faint else ''}"
    # a line of no length with round ends is a dot that the stretched drawing does not distort
    dots = "".join(f"M{spot}h0" for spot in spots) if dotted and len(spots) <= 40 and not line.faint else ""
    return f'<path class="{kind}" d="M{"L".join(spots)}"/>' + (f'<path class="{kind} dots" d="{dots}"/>' if dots else "")


def _words(lines: Sequence[Series], title: str) -> str:
    parts = []
    for line in lines:
        (x0, y0), (x1, y1) = line.points[0], line.points[-1]
        parts.append(f"{line.name} from {label_of(y0)} at step {label_of(x0)} to {label_of(y1)} at step {label_of(x1)}")
    return f"{title}: {'; '.join(parts)}."


def _stops(lines: Sequence[Series], frame: _Frame) -> str:
    """Invisible columns, one at each x; hovering one shows the values there."""
    places = _places(lines)
    values: dict[float, list[tuple[Series, float]]] = {x: [] for x in places}
    for line in lines:
        for x, y in line.points:
            if x in values:
                values[x].append((line, y))
    edges = [0.0, *(frame.left((a + b) / 2) for a, b in pairwise(places)), 1.0]
    return "".join(_stop(x, values[x], frame, edges[index], edges[index + 1]) for index, x in enumerate(places))


def _places(lines: Sequence[Series]) -> list[float]:
    """Up to MOST_STOPS of the lines' x, ascending: all of lines with few points, such as held-out losses, and others evenly between."""
    every = sorted({x for line in lines for x, _ in line.points})
    if len(every) <= MOST_STOPS:
        return every
    rare = set(evenly(sorted({x for line in lines if len(line.points) <= MOST_STOPS // 2 for x, _ in line.points}), MOST_STOPS))
    return sorted({*rare, *evenly([x for x in every if x not in rare], MOST_STOPS - len(rare))})


def _stop(x: float, values: Sequence[tuple[Series, float]], frame: _Frame, begin: float, end: float) -> str:
    told = "".join(f'<span><i class="k{line.style}"></i>{escape(line.name)} <b>{label_of(y)}</b></span>' for line, y in values)
    spot = (frame.left(x) - begin) / (end - begin) * 100 if end > begin else 0
    side = "left" if frame.left(x) > 0.55 else "right"
    return (
        f'<div class="dd-stop {side}" aria-hidden="true" style="left:{begin * 100:.2f}%;width:{(end - begin) * 100:.2f}%;--at:{spot:.1f}%">'
        f'<div class="dd-tip"><b>Step {label_of(x) if x < 10_000 else f"{x:,.0f}"}</b>{told}</div></div>'
    )
