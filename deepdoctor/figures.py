"""Pictures for paper and for model cards: the loss curve as PNG. Matplotlib is loaded on use, and none of its global state is touched."""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepdoctor.errors import RunError

INK, RULE = "#1b2729", "#d7dfe0"
FEW = 60  # up to so many points each has its own marker


@dataclass(frozen=True)
class Line:
    """How one metric is drawn. Colours are those of the page's palette; dashes and markers tell the lines apart without them."""

    metric: str
    label: str
    colour: str
    dash: str
    marker: str


LINES = (
    Line("loss", "training", "#0f6b6b", "-", "o"),
    Line("held_out_loss", "held-out", "#7d5200", "--", "s"),
)


def loss_curve(curve: Iterable[Mapping[str, Any]], title: str) -> bytes:
    """Training and held-out loss against the step, as a PNG of 1050 by 600 pixels; the same curve gives the same bytes.

    `curve` has rows as `Run.curve` returns them. Raises RunError if no row has a loss.
    """
    # takes half a second to load, and only who publishes needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = list(curve)
    drawn = {line: points for line in LINES if (points := _points(rows, line.metric))}
    if not drawn:
        raise RunError("This run has no losses to draw yet. Train it for some steps first.")
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for line, points in drawn.items():
        marker = line.marker if len(points) <= FEW else ""
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, label=line.label, color=line.colour, linestyle=line.dash, marker=marker, markersize=4)
    axes.set_title(title, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss (mean cross-entropy per token)", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=RULE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _points(rows: list[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    found = [(row.get("step"), row.get(metric)) for row in rows]
    return [(float(step), float(value)) for step, value in found if step is not None and value is not None and math.isfinite(value)]
