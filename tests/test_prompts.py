"""The text's shape, character by character: any change here changes what the model learns."""

import pytest

from deepdoctor.errors import ConfigError
from deepdoctor.prompts import (
    ARTICLE,
    MARKERS,
    NATIVE,
    STYLES,
    PromptStyle,
    marker_in,
    render_completion,
    render_question,
    split_completion,
    style_named,
)

ARTICLE_PROMPT = """\
Below is an instruction that describes a task, paired with an input that provides further context.
Write a response that appropriately completes the request.
Before answering, think carefully about the question and create a step-by-step chain of thoughts to ensure a logical and accurate response.
### Instruction:
You are a medical expert with advanced knowledge in clinical reasoning, diagnostics, and treatment planning.
Please answer the following medical question.
### Question:
What is it?
### Response:
<think>"""


def test_the_article_prompt_to_the_character() -> None:
    assert render_question("  What is it?\n", ARTICLE) == ARTICLE_PROMPT


def test_the_article_training_text_to_the_character() -> None:
    assert render_completion(" Let me see. \n", "\nIt is a cold.", "<eos>", ARTICLE) == "\nLet me see.\n</think>\nIt is a cold.<eos>"


def test_the_native_text_to_the_character() -> None:
    assert render_question("What is it?", NATIVE) == "<｜User｜>What is it?<｜Assistant｜><think>\n"
    assert render_completion("Let me see.", "It is a cold.", "<eos>", NATIVE) == "Let me see.\n</think>\n\nIt is a cold.<eos>"


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_prompt_leaves_the_thought_open(style: PromptStyle) -> None:
    assert render_question("Why?", style).rstrip().endswith("<think>")
    assert "</think>" not in render_question("Why?", style)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_what_is_rendered_splits_back(style: PromptStyle) -> None:
    completion = render_completion("First.\n\nThen.", "So:\n- a\n- b", "", style)
    assert split_completion(completion) == ("First.\n\nThen.", "So:\n- a\n- b", True)


@pytest.mark.parametrize("question", ["{question}", "{x} {0} %s ${y}", "a\n### Response:\nb", "<b>bold</b>"])
def test_a_question_is_put_in_as_it_is(question: str) -> None:
    assert render_question(question).count(question) == 1


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_an_empty_question_is_refused(question: str) -> None:
    with pytest.raises(ConfigError, match="write a question") as caught:
        render_question(question)
    assert caught.value.field == "question"


@pytest.mark.parametrize("marker", MARKERS)
def test_a_question_with_a_control_marker_is_refused(marker: str) -> None:
    assert marker_in(f"a {marker} b") == marker
    with pytest.raises(ConfigError, match="obeys instead of reading"):
        render_question(f"What is {marker}?")


def test_ordinary_text_has_no_marker() -> None:
    assert marker_in("I think <b>so</b> < 3 | > 2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", "", False)),
        ("still thinking", ("still thinking", "", False)),
        ("thought</think>", ("thought", "", True)),
        ("</think>answer", ("", "answer", True)),
        ("<think>\nthought\n</think>\n\nanswer\n", ("thought", "answer", True)),
        ("a</think>b</think>c", ("a", "b</think>c", True)),
        ("half a tag </thin", ("half a tag </thin", "", False)),
    ],
)
def test_generated_text_splits_into_thought_and_answer(text: str, expected: tuple[str, str, bool]) -> None:
    assert split_completion(text) == expected


def test_styles_are_found_by_name() -> None:
    assert {name: style_named(name).name for name in STYLES} == {"article": "article", "native": "native"}
    with pytest.raises(ConfigError, match="article, native") as caught:
        style_named("poem")
    assert caught.value.field == "prompt_style"
