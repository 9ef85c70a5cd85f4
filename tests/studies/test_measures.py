"""Automatic measures: what is counted, over which answers, and what an open thought costs."""

import pytest

from deepdoctor.comparison import Transcript
from deepdoctor.studies.measures import chrf, losses, measure, named, repetition

REFERENCE = "Take a chest radiograph and ask about smoking."
QUESTION = {"id": "q", "terms": ["radiograph|x-ray", "smok", "biopsy"], "reference": REFERENCE}


def row(question: str, tuned: Transcript, native: Transcript | None = None) -> dict:
    """A row of answers.jsonl as far as it is measured."""
    base = Transcript("Let me think.</think>\n- X-ray\n- Ask for smoking\n- Weight", 20, 8, 1.0, "stop")
    return {
        "question": question,
        "seed": 1,
        "comparison": {"base": base.to_dict(), "tuned": tuned.to_dict()},
        "native": native and native.to_dict(),
    }


def test_each_arm_is_measured_by_itself() -> None:
    done = Transcript(f"Short.</think>\n{REFERENCE}", 12, 4, 1.0, "stop")
    cut = Transcript("on and on and on and on and on and on", 100, 100, 1.0, "length")
    found = measure([row("q", done), row("q", cut)], [QUESTION])
    assert list(found) == ["base", "tuned"]
    base, tuned = found["base"], found["tuned"]
    assert (base["answers"], base["closed"], base["bullets"], base["response_words"]) == (2, 2, 3, 8)
    assert (tuned["answers"], tuned["closed"], tuned["bullets"], tuned["reasoning_tokens"]) == (2, 1, 0, 4)
    assert base["key_points"] == pytest.approx(2 / 3)
    assert tuned["key_points"] == pytest.approx(2 / 6), "an answer that never came names nothing"
    assert tuned["key_points_asked"] == 6
    assert tuned["repetition"] > 0.3 > base["repetition"]
    assert 0 < tuned["chrf"] < 100
    assert list(measure([row("q", done, done)], [QUESTION])) == ["base", "tuned", "native"]


def test_what_cannot_be_told_is_none() -> None:
    assert measure([], [QUESTION]) == {}
    cut = Transcript("No end", 9, 9, 1.0, "length")
    found = measure([row("q", cut)], [{"id": "q", "terms": [], "reference": " "}])["tuned"]
    told = {name: value for name, value in found.items() if value is not None}
    assert told == {"answers": 1, "closed": 0, "key_points_asked": 0}


def test_repetition_is_the_share_of_sequences_that_came_before() -> None:
    assert repetition("one two three four five") == 0
    assert repetition("a b c d, A B C D") == pytest.approx(1 / 5)
    assert repetition("too short") is None


@pytest.mark.parametrize(
    ("terms", "found"),
    [("nitrate|gtn", True), ("NITRATES", True), ("right sided|x", True), ("art", False), ("sided right", False), (" | ", False)],
)
def test_terms_are_found_at_the_beginning_of_words(terms: str, found: bool) -> None:
    assert named("Stop nitrates. Record right-sided leads; chart them.", [terms]) == [found]


def test_chrf_ends_at_a_hundred() -> None:
    assert chrf([REFERENCE], [REFERENCE]) == pytest.approx(100)
    assert chrf(["xyz"], [REFERENCE]) == pytest.approx(0, abs=2)


def test_losses_are_the_first_and_the_last() -> None:
    curve = [{"step": 0, "held_out_loss": 2.0, "held_out_response_loss": 1.5}, {"step": 1, "loss": 3.0}, {"step": 9, "held_out_loss": 1.2}]
    response = {"first": 1.5, "last": 1.5, "step": 0}
    assert losses(curve) == {"held_out_loss": {"first": 2.0, "last": 1.2, "step": 9}, "held_out_response_loss": response}
    assert losses([]) == {}


@pytest.mark.parametrize(("step", "last", "at"), [(4, 1.6, 4), (8, 1.6, 4), (9, 1.2, 9), (None, 1.1, 12), (0, 2.0, 0)])
def test_losses_of_a_checkpoint_are_the_last_at_or_before_it(step: int | None, last: float, at: int) -> None:
    curve = [{"step": number, "held_out_loss": loss} for number, loss in ((0, 2.0), (4, 1.6), (9, 1.2), (12, 1.1))]
    assert losses(curve, step) == {"held_out_loss": {"first": 2.0, "last": last, "step": at}}
