"""Pictures of a study's results as SVG, for paper and without colours too. Matplotlib is loaded on use, its global state left alone."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepdoctor.studies.headline import NO_INTERVAL, OVER_BOTH, percent, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b2729", "#536165", "#d7dfe0"
WIDTH = 7.2
LONGEST_LABEL = 34


@dataclass(frozen=True)
class Fill:
    """How a part of a bar looks. Lightness and hatching tell the parts apart without colour."""

    label: str
    colour: str
    on: str = INK
    hatch: str = ""


PREFERENCE = {
    "losses": Fill("base preferred", "#b9c3d3"),
    "both": Fill("both acceptable", "#ffffff"),
    "neither": Fill("both bad", "#ffffff", hatch="////"),
    "wins": Fill("tuned preferred", "#0f6b6b", on="#ffffff"),
}
CORRECT = {
    "correct": Fill("correct", "#e4eff3"),
    "partly": Fill("partly", "#8fb6c4"),
    "wrong": Fill("wrong", "#1d4552", on="#ffffff"),
    "unsure": Fill("can't tell", "#ffffff", hatch="xx"),
}
HARM = {
    "none": Fill("none", "#f6ece2"),
    "moderate": Fill("mild or moderate", "#d9a06a"),
    "severe": Fill("severe or death", "#6e1f16", on="#ffffff"),
}


@dataclass(frozen=True)
class Drawing:
    """One picture: its heading, what it shows in words for who cannot see it, and the SVG document."""

    title: str
    alt: str
    svg: str


def drawings(results: Mapping[str, Any]) -> list[Drawing]:
    """Preference, correctness and harm, and preference by specialty, of a value of results.py; [] without verdicts."""
    if not results["preference"]["verdicts"]:
        return []
    return [_preference(results["preference"]), _levels(results), *_by_specialty(results)]


def _preference(found: Mapping[str, Any]) -> Drawing:
    figure = _figure(2.5)
    bar, whisker = figure.subplots(2, 1, height_ratios=[1.1, 1])
    _stack(bar, 0, {name: found[name] for name in PREFERENCE}, PREFERENCE)
    _bare(bar, ["all verdicts"], "verdicts")
    _whole(bar)
    _legend(bar, PREFERENCE, 4)
    counts = ", ".join(f"{fill.label} {found[name]}" for name, fill in PREFERENCE.items())
    told = "no pair was decided"
    if found["decided"]:
        _whisker(whisker, 0, found, "o")
        told = f"tuned in {percent(found['share'])} of {found['decided']} decided pairs, {_over(found)}"
    _half(whisker, [f"decided: {found['decided']}"])
    return Drawing("Preference", f"Of {found['verdicts']} verdicts: {counts}; {told}.", _svg(figure))


def _levels(results: Mapping[str, Any]) -> Drawing:
    figure = _figure(2.4)
    panels: list[Axes] = list(figure.subplots(1, 2))
    said = []
    for axes, name, fills in zip(panels, ("correctness", "harm"), (CORRECT, HARM), strict=True):
        for place, side in enumerate(("tuned", "base")):
            _stack(axes, place, results[name][side], fills)
            said.append(f"{name} of {side}: " + ", ".join(f"{fill.label} {results[name][side][level]}" for level, fill in fills.items()))
        _bare(axes, ["tuned", "base"], f"{name}, verdicts")
        _whole(axes)
        _legend(axes, fills, 2 if len(fills) == 4 else 3)
    return Drawing("Correctness and harm", f"{'; '.join(said)}.", _svg(figure))


def _by_specialty(results: Mapping[str, Any]) -> list[Drawing]:
    groups = [(name, group) for name, group in results["by"]["specialty"].items() if group["decided"]]
    if not groups:
        return []
    rows = [("all", results["preference"]), *reversed(groups)]
    figure = _figure(0.9 + 0.28 * len(rows))
    axes = figure.subplots()
    for place, (_, group) in enumerate(rows):
        _whisker(axes, place, group, "o" if place else "D")
    labels = [f"{name[:LONGEST_LABEL]}  {group['wins']}/{group['decided']}" for name, group in rows]
    _half(axes, labels)
    said = ", ".join(f"{name} {group['wins']} of {group['decided']} ({_over(group)})" for name, group in reversed(rows))
    return [Drawing("Preference by specialty", f"Tuned preferred in decided pairs: {said}.", _svg(figure))]


def _figure(height: float) -> "Figure":
    # takes half a second to load, and only who looks at results needs it
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _stack(axes: "Axes", place: int, counts: Mapping[str, int], fills: Mapping[str, Fill]) -> None:
    """One bar of parts side by side, with the counts in them."""
    start, total = 0, max(1, sum(counts[name] for name in fills))
    for name, fill in fills.items():
        axes.barh(place, counts[name], left=start, color=fill.colour, hatch=fill.hatch, edgecolor=INK, linewidth=0.8, height=0.62)
        if counts[name] / total > 0.04:
            box = {"facecolor": fill.colour, "edgecolor": "none", "pad": 1.5} if fill.hatch else None
            axes.text(start + counts[name] / 2, place, str(counts[name]), color=fill.on, ha="center", va="center", fontsize=9, bbox=box)
        start += counts[name]


def _over(group: Mapping[str, Any]) -> str:
    return f"{OVER_BOTH} {spread(group['two_way'])}" if group["two_way"] else NO_INTERVAL


def _whisker(axes: "Axes", place: int, group: Mapping[str, Any], marker: str) -> None:
    if group["two_way"]:
        low, high = group["two_way"]
        axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
    axes.plot([100 * group["share"]], [place], marker=marker, color="#0f6b6b", markeredgecolor=INK, markersize=7, clip_on=False)


def _half(axes: "Axes", labels: Sequence[str]) -> None:
    """A scale of 0 to 100% with a line at the half, where the sides are equal."""
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100], labels=["0%", "25%", "50%", "75%", "100%"])
    axes.axvline(50, color=MUTED, linestyle="--", linewidth=1)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    _bare(axes, labels, f"share of decided pairs in which tuned was preferred,\nwith {OVER_BOTH}")


def _whole(axes: "Axes") -> None:
    """A scale of counts has no fractions."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bare(axes: "Axes", labels: Sequence[str], name: str) -> None:
    # labels are text: a dollar sign in a specialty is no formula
    axes.set_yticks(range(len(labels)), labels=list(labels), fontsize=9, parse_math=False)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(name, fontsize=9, color=MUTED)
    axes.tick_params(length=0, labelsize=9)
    axes.tick_params(axis="y", pad=8)  # beside a marker at 0%
    axes.spines[["top", "right", "left"]].set_visible(False)


def _legend(axes: "Axes", fills: Mapping[str, Fill], columns: int) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=fill.colour, edgecolor=INK, hatch=fill.hatch, label=fill.label) for fill in fills.values()]
    axes.legend(handles=handles, ncols=columns, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _svg(figure: "Figure") -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
