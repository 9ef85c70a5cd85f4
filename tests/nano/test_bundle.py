"""The bundled rows are what their conditions give, and the held-out rows are held out."""

import json
from collections import Counter

from deepdoctor.nano.bundle import HELD_OUT_FILE, TEACHING_FILE, write_bundle
from deepdoctor.nano.cases import SHOWCASE_QUESTION, held_out_combinations
from deepdoctor.nano.knowledge import ASKED, load_conditions
from deepdoctor.overlap import Overlap

CONDITIONS = {condition.name: condition for condition in load_conditions()}
TEACHING = json.loads(TEACHING_FILE.read_text(encoding="utf-8"))
HELD_OUT = json.loads(HELD_OUT_FILE.read_text(encoding="utf-8"))


def combination_in(question: str) -> tuple[str, frozenset[str]]:
    """The condition whose findings a question shows, and which of them."""
    shown = {
        name: frozenset(finding for finding in condition.findings if finding.lower() in question.lower())
        for name, condition in CONDITIONS.items()
    }
    name = max(shown, key=lambda each: len(shown[each]))
    return name, shown[name]


def test_the_files_are_what_the_generator_writes(tmp_path):
    write_bundle(tmp_path)
    for file in (TEACHING_FILE, HELD_OUT_FILE):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_five_hundred_teaching_rows_over_all_conditions():
    assert len(TEACHING) == 500
    assert {tuple(row) for row in TEACHING} == {("Question", "Complex_CoT", "Response")}
    assert TEACHING[0]["Question"] == SHOWCASE_QUESTION
    assert "no involuntary detrusor contractions" in TEACHING[0]["Response"]
    assert {combination_in(row["Question"])[0] for row in TEACHING[1:]} == set(CONDITIONS)
    assert len({row["Question"] for row in TEACHING}) == 500


def test_held_out_rows_are_balanced_and_carry_what_scores_them():
    assert len(HELD_OUT) >= 136
    assert {row["Condition"] for row in HELD_OUT} == set(CONDITIONS)
    assert Counter(row["Asked"] for row in HELD_OUT) == dict.fromkeys(ASKED, len(HELD_OUT) // len(ASKED))
    for row in HELD_OUT:
        assert row["Key_Term"] == CONDITIONS[row["Condition"]].key_term(row["Asked"])
        assert row["Specialty"] == CONDITIONS[row["Condition"]].specialty
        assert row["Key_Term"].lower() in row["Response"].lower()
        assert row["Key_Term"].lower() not in row["Question"].lower()


def test_held_out_combinations_are_in_no_teaching_row():
    held_out = {each for condition in CONDITIONS.values() for each in held_out_combinations(condition)}
    assert all(combination_in(row["Question"]) in held_out for row in HELD_OUT)
    assert not [row["Question"] for row in TEACHING[1:] if combination_in(row["Question"]) in held_out]


def test_every_teaching_row_can_be_trained_on():
    held_out = Overlap([row["Question"] for row in HELD_OUT])
    assert [place for place, row in enumerate(TEACHING, start=1) if held_out.grade(row["Question"]).grade != "unseen"] == []
