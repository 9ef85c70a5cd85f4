"""Comparisons: what is measured and what comes back from disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepdoctor.comparison import Comparison, Comparisons, Further, Transcript, changes, comparison_text, measures
from deepdoctor.config import SamplingConfig
from deepdoctor.errors import ProofError, RunError
from deepdoctor.files import write_json
from tests.test_proof import PROOF

BASE = Transcript(
    "Hmm. Wait, </think>\n**Answer:**\n\n- one\n- two\n\n1. three", tokens=30, reasoning_tokens=12, seconds=3.0, finish_reason="stop"
)
TUNED = Transcript("Short. </think>\nIt is a cold.", tokens=10, reasoning_tokens=4, seconds=2.0, finish_reason="stop")
PAIR = Comparison(
    question="Was ist das? <b>${x}</b>",
    base=BASE,
    tuned=TUNED,
    sampling=SamplingConfig(seed=1, temperature=0.0),
    prompt_style="article",
    model="nano",
    run="20260101-000000-abcd",
    step=20,
    proof=PROOF,
    seen={"grade": "unseen", "similarity": 0.2},
    reference="A cold.",
    versions={"torch": "2.13.0"},
)


@pytest.fixture
def store(tmp_path: Path) -> Comparisons:
    return Comparisons(tmp_path)


def test_a_transcript_knows_its_parts() -> None:
    assert (TUNED.reasoning, TUNED.response, TUNED.closed) == ("Short.", "It is a cold.", True)
    assert TUNED.tokens_per_second == 5.0
    assert Transcript().tokens_per_second == 0.0


def test_a_thought_that_never_closed_is_no_answer() -> None:
    cut = Transcript("I think that it is a cold.", tokens=8, reasoning_tokens=8, finish_reason="length")
    assert (cut.response, cut.closed) == ("", False)
    assert cut.to_dict()["response"] == ""
    assert measures(cut)["response_tokens"] == 0


def test_style_in_numbers() -> None:
    assert measures(BASE) == {
        "reasoning_tokens": 12,
        "response_tokens": 18,
        "response_words": 7,
        "bullets": 3,
        "headings": 1,
        "paragraphs": 0,
    }
    assert measures(Transcript())["paragraphs"] == 0


@pytest.mark.parametrize(
    ("response", "bullets", "headings", "paragraphs"),
    [
        ("One paragraph, with - a dash and 2. a number inside.", 0, 0, 1),
        ("* a\n• b\n2) c", 3, 0, 0),
        ("**Diagnosis**\nRetinal detachment\n- a curtain\n- floaters", 2, 1, 1),
        ("**Bold** begins this sentence.", 0, 0, 1),
        ("# Title\nText", 0, 1, 1),
        ("**Title:**\nText", 0, 1, 1),
        ("#hashtag", 0, 0, 1),
        ("-5 degrees", 0, 0, 1),
        ("First.\n\n \n\nSecond.", 0, 0, 2),
    ],
)
def test_bullets_headings_and_paragraphs_are_told_apart(response: str, bullets: int, headings: int, paragraphs: int) -> None:
    found = measures(Transcript(f"</think>{response}"))
    assert (found["bullets"], found["headings"], found["paragraphs"]) == (bullets, headings, paragraphs)


def test_changes_put_base_before_tuned() -> None:
    found = changes(BASE, TUNED)
    assert found["reasoning_tokens"] == {"base": 12, "tuned": 4}
    assert list(found["bullets"]) == ["base", "tuned"]


def test_a_comparison_is_finished_when_both_sides_are() -> None:
    assert PAIR.finished
    assert not replace(PAIR, tuned=replace(TUNED, finish_reason="")).finished
    assert not replace(PAIR, base=Transcript()).finished
    assert replace(PAIR, further=FURTHER).finished
    assert not replace(PAIR, further=(FURTHER[0], Further(None, Transcript(), PROOF))).finished


FURTHER = (Further(40, replace(TUNED, text="Shorter.</think>\nA flu."), replace(PROOF, effect=1.5)), Further(None, BASE, PROOF))


@pytest.mark.parametrize(
    "pair",
    [PAIR, replace(PAIR, proof=None, step=None, seen={}, reference="", versions={}), replace(PAIR, further=FURTHER)],
)
def test_a_comparison_survives_json(pair: Comparison) -> None:
    assert Comparison.from_dict(json.loads(json.dumps(pair.to_dict()))) == pair


def test_the_json_has_what_readers_need() -> None:
    values = PAIR.to_dict()
    for side in ("base", "tuned"):
        assert {"reasoning", "response", "closed", "tokens", "reasoning_tokens", "seconds", "finish_reason"} <= set(values[side])
    assert values["proof"]["problems"] == []
    assert values["changes"]["bullets"] == {"base": 3, "tuned": 0}
    assert values["sampling"]["seed"] == 1
    assert list(values).index("base") < list(values).index("tuned")


def test_a_comparison_saved_before_there_were_further_checkpoints_has_none() -> None:
    values = PAIR.to_dict()
    del values["further"]
    assert Comparison.from_dict(values) == PAIR


def test_the_json_of_a_further_checkpoint_has_what_readers_need() -> None:
    first, last = replace(PAIR, further=FURTHER).to_dict()["further"]
    assert (first["step"], first["reasoning"], first["response"]) == (40, "Shorter.", "A flu.")
    assert first["measures"] == measures(FURTHER[0].written)
    assert first["proof"] == {**vars(FURTHER[0].proof), "problems": []}
    assert last["step"] is None


def test_a_damaged_further_checkpoint_is_said_to_be() -> None:
    values = replace(PAIR, further=FURTHER).to_dict()
    del values["further"][1]["tokens"]
    with pytest.raises(RunError, match="tokens"):
        Comparison.from_dict(values)


def test_every_proof_that_a_comparison_carries_is_required() -> None:
    replace(PAIR, further=FURTHER).require_proven()
    replace(PAIR, proof=None).require_proven()
    with pytest.raises(ProofError, match="not shown, because the adapter changes nothing"):
        replace(PAIR, proof=replace(PROOF, effect=0.0)).require_proven()
    wrong = Further(None, BASE, replace(PROOF, effect=0.0))
    with pytest.raises(ProofError, match="for the final adapter, the adapter changes nothing"):
        replace(PAIR, further=(FURTHER[0], wrong)).require_proven()


def test_the_text_for_reading_names_every_checkpoint() -> None:
    told = comparison_text(replace(PAIR, further=FURTHER))
    places = [told.index(words) for words in ("BASE: 30", "TUNED: 10", "CHECKPOINT 40: 10 tokens", "A flu.", "FINAL ADAPTER: 30")]
    assert places == sorted(places)
    assert "proof of checkpoint 40: it differs from PEFT by 2e-06, and changes logits by 1.5" in told
    assert "CHECKPOINT" not in comparison_text(PAIR)


def test_a_saved_comparison_comes_back_with_id_and_time(store: Comparisons) -> None:
    saved = store.save(PAIR)
    assert saved.id
    assert saved.created > 0
    assert replace(saved, id="", created=0.0) == PAIR
    assert store.get(saved.id) == saved


def test_comparisons_are_listed_newest_first_and_damaged_ones_left_out(store: Comparisons) -> None:
    assert store.list() == []
    kept = {}
    for day in ("01", "03", "02"):
        saved = store.save(PAIR)
        named = replace(saved, id=f"202601{day}-000000-0123abcd")
        store.path(saved.id).unlink()
        write_json(store.path(named.id), named.to_dict())
        kept[day] = named
    (store.root / "20260104-000000-0123abcd.json").write_text("{")
    (store.root / "notes.json").write_text("{}")
    write_json(store.root / "20260105-000000-0123abcd.json", {**PAIR.to_dict(), "sampling": {"temperature": 99}})
    assert store.list() == [kept["03"], kept["02"], kept["01"]]


def test_a_list_can_be_cut(store: Comparisons) -> None:
    for _ in range(3):
        store.save(PAIR)
    assert len(store.list(most=2)) == 2


@pytest.mark.parametrize(
    "comparison_id",
    [
        "",
        "..",
        "../config",
        "/etc/passwd",
        "20260101-000000-0123ABCD",
        "20260101-000000-0123abcd.json",
        "20260101-000000-0123abcd\n",
        "x" * 999,
    ],
)
def test_ids_that_are_no_plain_names_are_refused(store: Comparisons, comparison_id: str) -> None:
    with pytest.raises(RunError, match="There is no comparison"):
        store.get(comparison_id)


def test_a_comparison_that_is_gone_is_said_to_be(store: Comparisons) -> None:
    with pytest.raises(RunError, match="may have been deleted"):
        store.get("20260101-000000-0123abcd")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}", '{"base": "text"}'])
def test_a_damaged_comparison_is_said_to_be(store: Comparisons, content: str) -> None:
    store.root.mkdir()
    file = store.root / "20260101-000000-0123abcd.json"
    file.write_text(content)
    with pytest.raises(RunError, match=r"cannot be read|not a saved comparison"):
        store.get(file.stem)


@pytest.mark.parametrize("missing", ["base", "tuned", "sampling", "proof", "question", "run"])
def test_a_missing_field_is_named(missing: str) -> None:
    values = PAIR.to_dict()
    del values[missing]
    with pytest.raises(RunError, match=missing):
        Comparison.from_dict(values)
