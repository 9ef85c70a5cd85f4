"""Text stays text, answers show only bold and lists, and errors reach the user in their own words."""

import errno
from collections.abc import Iterator

import gradio as gr
import pytest

from deepdoctor.errors import DatasetError
from deepdoctor.ui.components import badge, empty_state, escape, note, number, render_answer, stats, user_errors

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'; alert(1); '",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "`${1}`",
    "</div><form action=//evil><input>",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "made", [escape, render_answer, badge, note, lambda text: empty_state(text, text), lambda text: stats([(text, text)])]
)
def test_no_payload_survives_as_markup_or_template(made, payload: str) -> None:
    plain = made("x")
    html = made(payload)
    assert html.count("<") == plain.count("<")
    assert html.count('"') == plain.count('"')
    assert not set("`${}'") & set(html)


def test_escaped_text_reads_as_it_was() -> None:
    import html

    for payload in PAYLOADS:
        assert html.unescape(escape(payload)) == payload


def test_an_answer_shows_bold_bullets_and_numbers() -> None:
    html = render_answer("**Finding**\n- **Residual** volume: normal\n* none\n\n2. second\n3) third\nEnd **not bold")
    assert html == (
        "<p><strong>Finding</strong></p><ul><li><strong>Residual</strong> volume: normal</li><li>none</li></ul>"
        '<ol><li value="2">second</li><li value="3">third</li></ol><p>End **not bold</p>'
    )


def test_bold_does_not_reach_into_markup() -> None:
    assert render_answer("**<b>**") == "<p><strong>&lt;b&gt;</strong></p>"


@pytest.mark.parametrize(("value", "shown"), [(1234567, "1,234,567"), (2.0, "2"), (0.256, "0.26"), (12.34, "12.3")])
def test_numbers_are_short_and_grouped(value: float, shown: str) -> None:
    assert number(value) == shown


def test_stats_pair_numbers_with_labels() -> None:
    assert "<dt>rows</dt><dd>1,200</dd>" in stats([(1200, "rows"), ("—", "none")])


@user_errors
def plain(text: str) -> str:
    if text == "bad":
        raise DatasetError("Row 3 is <empty>.")
    return text


@user_errors
def generator(log: list[str]) -> Iterator[int]:
    try:
        yield 1
        raise DatasetError("Broken off.")
    finally:
        log.append("closed")


def test_an_error_of_ours_becomes_a_message_and_is_escaped() -> None:
    assert plain("good") == "good"
    with pytest.raises(gr.Error, match="Row 3 is &lt;empty&gt;"):
        plain("bad")


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(TypeError):
        plain()


def test_a_generator_tells_its_error_and_closes() -> None:
    log: list[str] = []
    made = generator(log)
    assert next(made) == 1
    with pytest.raises(gr.Error, match="Broken off"):
        next(made)
    early = generator(log)
    next(early)
    early.close()
    assert log == ["closed", "closed"]


def test_a_full_disk_reaches_the_user_in_words_and_other_errors_of_files_stay() -> None:
    @user_errors
    def write(number: int) -> None:
        raise OSError(number, "No")

    with pytest.raises(gr.Error, match=r"The disk that holds runs is full\. Free some space, then try again\."):
        write(errno.ENOSPC)
    with pytest.raises(PermissionError):
        write(errno.EACCES)
