"""Pictures of results: valid, self-contained SVG that also reads without colours and without eyes."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from deepdoctor.studies.figures import CORRECT, HARM, PREFERENCE, Drawing, Fill, drawings
from deepdoctor.studies.judged import Course
from deepdoctor.studies.results import results
from tests.studies.panel import question_rows, verdicts

SVG = "{http://www.w3.org/2000/svg}"


def drawn(said: Sequence[str], specialty: str = "cardiology") -> list[Drawing]:
    """Pictures of a study with these verdicts."""
    judged = [replace(each, specialty=specialty) for each in verdicts(said)]
    return drawings(results(judged, (), question_rows(len(said)), [], {}, Course(0.65)))


def test_three_pictures_tell_their_numbers_in_words() -> None:
    preference, levels, specialties = drawn(["tuned"] * 5 + ["other"] * 3 + ["both", "neither"])
    assert "base preferred 3, both acceptable 1, both bad 1, tuned preferred 5" in preference.alt
    assert "tuned in 62% of 8 decided pairs, 95% interval over questions and raters 0–100%" in preference.alt
    assert "correctness of base: correct 10" in levels.alt
    assert "harm of tuned: none 10" in levels.alt
    assert "cardiology 5 of 8" in specialties.alt


def test_pictures_are_self_contained_svg() -> None:
    for drawing in drawn(["tuned", "other", "both"]):
        root = ElementTree.fromstring(drawing.svg)
        assert root.tag == f"{SVG}svg"
        assert not {f"{SVG}script", f"{SVG}image", f"{SVG}foreignObject"} & {element.tag for element in root.iter()}
        links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_nothing_is_drawn_of_nothing_and_only_what_there_is() -> None:
    assert drawn([]) == []
    assert [drawing.title for drawing in drawn(["both"])] == ["Preference", "Correctness and harm"]
    assert "no pair was decided" in drawn(["both"])[0].alt


def test_a_specialty_is_text_and_no_formula() -> None:
    name = r"$\frac{a}{b}$ & <b>"
    drawing = drawn(["tuned", "other"], name)[-1]
    assert f"{name} 1 of 2" in drawing.alt
    ElementTree.fromstring(drawing.svg)


@pytest.mark.parametrize("fills", [PREFERENCE, CORRECT, HARM])
def test_parts_of_a_bar_differ_without_colour(fills: dict[str, Fill]) -> None:
    for one, other in itertools.combinations(fills.values(), 2):
        assert abs(lightness(one.colour) - lightness(other.colour)) > 0.1 or one.hatch != other.hatch, (one.label, other.label)
    for fill in fills.values():
        light, dark = sorted((lightness(fill.colour), lightness(fill.on)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"the number on {fill.label} can be read"


def lightness(colour: str) -> float:
    """Relative luminance as WCAG 2 has it."""
    channels = [int(part, 16) / 255 for part in re.findall("..", colour[1:])]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
