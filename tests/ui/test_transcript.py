"""The value behind the two panels: phases, status lines, cut-off thoughts, and that no text becomes markup."""

from dataclasses import replace

import pytest

from deepdoctor.comparison import Further, Transcript
from deepdoctor.config import SamplingConfig
from deepdoctor.ui import transcript
from tests.ui.fakes import BASE_TEXT, PROOF, TUNED_TEXT, fake_comparison
from tests.ui.fakes import transcript as written


def panel(side: Transcript, limit: int = 1200) -> dict:
    shown = fake_comparison(sampling=SamplingConfig(max_new_tokens=limit))
    return transcript.panels(replace(shown, base=side), "k", "my run")["base"]


def test_an_open_thought_is_thinking_with_an_open_fold_and_no_answer():
    shown = panel(Transcript("Hmm, let me see", 5, 5, 0.5))
    assert (shown["phase"], shown["open"], shown["answer"], shown["note"]) == ("thinking", True, "", "")
    assert shown["reasoning"] == "Hmm, let me see"
    assert shown["status"] == "Thinking · 5 tokens · 10 tokens/s"


def test_the_fold_closes_when_the_answer_begins():
    shown = panel(Transcript("Hmm.</think>\nIt is", 6, 3, 0.5))
    assert (shown["phase"], shown["open"]) == ("answering", False)
    assert shown["answer"] == "<p>It is</p>"
    assert shown["status"].startswith("Answering · 6 tokens")


def test_a_finished_side_tells_reason_counts_and_seconds():
    shown = panel(Transcript("Hmm.</think>\nIt is.", 2000, 1500, 4.0, "stop"), limit=4000)
    assert shown["status"] == "Finished · 2,000 tokens (1,500 thinking, 500 answering) · 4.0 s · 500 tokens/s"
    assert shown["note"] == ""


@pytest.mark.parametrize(
    ("side", "note"),
    [
        (Transcript("Hmm", 9, 9, 1, "length"), "Cut off: no answer was given. The thought reached the limit of 1,200 tokens."),
        (Transcript("Hmm</think>It", 9, 5, 1, "length"), "The answer is cut off: the limit of 1,200 tokens was reached."),
        (Transcript("Hmm", 9, 9, 1, "stopped"), "You stopped it: no answer was given."),
        (Transcript("Hmm</think>It", 9, 5, 1, "stopped"), "You stopped it here; the answer is not whole."),
        (Transcript("Hmm", 9, 9, 1, "stop"), "No answer was given: the model ended its text without one."),
    ],
)
def test_what_is_missing_is_said_and_never_shown_as_an_answer(side, note):
    shown = panel(side)
    assert (shown["note"], shown["note_kind"]) == (note, "warn")
    assert "Hmm" not in shown["answer"]


def test_a_cut_off_thought_stays_open_to_be_read():
    assert panel(Transcript("Hmm", 9, 9, 1, "length"))["open"]


def test_the_answer_is_escaped_and_templates_are_inert():
    shown = panel(Transcript("x</think><img src=x onerror=a()> ${1+1} {{value}} **bold**", 9, 2, 1, "stop"))
    assert "<img" not in shown["answer"]
    assert "${" not in shown["answer"]
    assert "{{" not in shown["answer"]
    assert "<strong>bold</strong>" in shown["answer"]


def test_panels_say_how_they_were_made_and_from_what():
    value = transcript.panels(fake_comparison(step=20), "k", "my run")
    assert value["made"] == "Article prompt, temperature 0.6, top-p 0.95, seed 3407, at most 1,200 tokens"
    assert value["base"]["source"] == "nano, adapter off"
    assert value["tuned"]["source"] == "my run, checkpoint 20"
    assert transcript.panels(fake_comparison(), "k", "my run")["tuned"]["source"] == "my run, final adapter"
    assert "greedy" in transcript.panels(fake_comparison(sampling=SamplingConfig(temperature=0)), "k", "r")["made"]


def test_further_checkpoints_are_titled_by_their_step():
    further = (Further(20, written(BASE_TEXT), PROOF), Further(None, written(TUNED_TEXT), PROOF))
    value = transcript.panels(fake_comparison(step=40, further=further), "k", "my run")
    assert [value[side]["title"] for side in transcript.SIDES] == ["Base", "Tuned", "Checkpoint 20", "Final adapter", ""]
    assert [value[side]["whose"] for side in transcript.SIDES[1:]] == [
        " of the tuned side",
        " of checkpoint 20",
        " of the final adapter",
        "",
    ]
    assert value["further1"]["reasoning"] == written(BASE_TEXT).reasoning
    assert value["further1"]["source"] == "my run"
    failed = transcript.failed(value, "No proof.", keep=False)
    assert (failed["further1"]["title"], failed["further1"]["reasoning"], failed["further1"]["note"]) == ("Checkpoint 20", "", "No proof.")
    assert transcript.waiting("k", "q", "Waiting", (20,))["further1"]["status"] == "Waiting"


def test_a_failure_keeps_the_texts_only_where_that_is_allowed():
    value = transcript.panels(fake_comparison(base=BASE_TEXT, tuned=TUNED_TEXT), "k", "my run")
    kept = transcript.failed(value, "It died.", keep=True)
    assert kept["base"]["reasoning"] == written(BASE_TEXT).reasoning
    refused = transcript.failed(value, "No proof.", keep=False)
    for side in ("base", "tuned"):
        assert (refused[side]["phase"], refused[side]["note"], refused[side]["note_kind"]) == ("failed", "No proof.", "bad")
        assert refused[side]["reasoning"] == refused[side]["answer"] == ""
    assert refused["question"] == value["question"]


def test_every_value_has_the_same_fields_so_that_the_script_finds_them():
    values = [
        transcript.empty(),
        transcript.waiting("k", "q", "Waiting"),
        transcript.waiting("k", "q", "Waiting", (20, None)),
        transcript.panels(fake_comparison(), "k", "r"),
        transcript.failed(transcript.empty(), "why", keep=False),
    ]
    assert {frozenset(value) for value in values} == {frozenset(values[0])}
    assert {frozenset(value[side]) for value in values for side in transcript.SIDES} == {frozenset(values[0]["base"])}
