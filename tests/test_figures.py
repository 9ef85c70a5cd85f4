"""The loss curve as a picture: a PNG with a line for each loss there is, the same bytes for the same curve, whatever the title says."""

import io
from typing import Any

import pytest
from PIL import Image

from deepdoctor.errors import RunError
from deepdoctor.figures import LINES, loss_curve

CURVE: list[dict[str, Any]] = [{"step": step, "loss": 2 / step} for step in range(1, 11)] + [
    {"step": 0, "held_out_loss": 2.5},
    {"step": 10, "held_out_loss": 1.0, "loss": float("nan")},
    {"time": 1.0},
]


def colours(picture: bytes) -> set[tuple[int, int, int]]:
    """All colours in a picture."""
    found = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(2**24)
    assert found
    return {colour for _, colour in found}  # type: ignore[misc]


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_it_is_a_picture_with_a_line_for_each_loss() -> None:
    picture = loss_curve(CURVE, "A run")
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.size) == ("PNG", (1050, 600))
    assert {rgb(line.colour) for line in LINES} <= colours(picture)


def test_a_loss_that_was_not_measured_is_not_drawn() -> None:
    picture = loss_curve([row for row in CURVE if "held_out_loss" not in row], "A run")
    assert rgb(LINES[0].colour) in colours(picture)
    assert rgb(LINES[1].colour) not in colours(picture)


def test_lines_differ_by_more_than_colour() -> None:
    assert len({line.dash for line in LINES}) == len({line.marker for line in LINES}) == len(LINES)


def test_the_same_curve_gives_the_same_bytes_and_the_title_is_plain_text() -> None:
    assert loss_curve(CURVE, "cost: $5 \\frac{ _x") == loss_curve(iter(CURVE), "cost: $5 \\frac{ _x")


def test_without_losses_there_is_no_picture() -> None:
    with pytest.raises(RunError, match="no losses"):
        loss_curve([{"step": 1, "learning_rate": 0.1}], "A run")
