"""What stands below a comparison: numbers, badge, proof."""

from dataclasses import replace
from typing import get_args

import pytest

from deepdoctor.comparison import Comparisons
from deepdoctor.overlap import Grade, Overlap, Seen, graded
from deepdoctor.ui.findings import changes_table, findings, proof_card, seen_card
from tests.ui.fakes import PROOF, fake_comparison


def test_changes_are_told_with_sign_and_share():
    table = changes_table(fake_comparison())
    assert "Bullets" in table
    assert "−3 (−100%)" in table
    same = changes_table(fake_comparison(base="a</think>b", tuned="a</think>b"))
    assert same.count("same") == 6


@pytest.mark.parametrize(
    ("base", "tuned", "says"),
    [
        ("stopped", "stopped", "Both texts are unfinished"),
        ("stop", "length", "The tuned text is unfinished"),
        ("stopped", "stop", "The base text is unfinished"),
    ],
)
def test_changes_between_unfinished_texts_say_so(base, tuned, says):
    made = fake_comparison()
    cut = replace(made, base=replace(made.base, finish_reason=base), tuned=replace(made.tuned, finish_reason=tuned))
    assert says in changes_table(cut)
    assert "unfinished" not in changes_table(made)


@pytest.mark.parametrize("grade", get_args(Grade))
def test_the_badge_tells_the_grade_and_the_nearest_training_question(grade):
    card = seen_card(vars(Seen(grade, "A <i>woman</i>", 3, 0.8)))
    assert f'class="dd-badge {grade}"' in card
    assert "row 3, similarity 80%" in card
    assert "A &lt;i&gt;woman&lt;/i&gt;" in card
    assert seen_card({}) == ""


def test_what_is_graded_and_saved_is_shown_again(tmp_path):
    comparisons = Comparisons(tmp_path)
    found = vars(Overlap(["Which sign shows first?", "Why does she leak when she coughs?"]).grade("Why does she leak when she runs?"))
    saved = comparisons.save(fake_comparison(seen=found))
    card = findings(comparisons.get(saved.id))
    assert f"row 2, similarity {found['similarity']:.0%}" in card
    assert "<blockquote>Why does she leak when she coughs?</blockquote>" in card


def test_where_no_training_rows_are_recorded_the_badge_says_unknown():
    card = seen_card(graded([], "Why?"))
    assert "Unknown" in card
    assert "does not record the rows" in card
    assert "nseen" not in card
    assert graded(["Why not?"], "Why?") == vars(Overlap(["Why not?"]).grade("Why?"))


def test_a_question_that_nothing_resembles_has_no_nearest():
    card = seen_card(vars(Overlap(["Something else entirely"]).grade("Why?")))
    assert "Unseen" in card
    assert "Nearest" not in card


def test_the_proof_card_shows_numbers_and_whole_hashes():
    card = proof_card(PROOF, 7)
    for part in ("2.1e-06", "3.4e-06", "4.7", "0.001", f'title="{PROOF.base_hash}"', f'title="{PROOF.adapter_hash}"', "Holds"):
        assert part in card
    assert f">{PROOF.prompt_hash[:12]}<" in card


def test_in_32_bit_the_same_two_texts_come_again_without_a_condition():
    for rows_at_once in (2, 6):
        card = proof_card(PROOF, 7, rows_at_once)
        assert "give the same two texts again on this machine." in card
        assert "can differ" not in card


@pytest.mark.parametrize("tolerance", [0.25, 1.0])
def test_in_16_bit_the_card_says_what_the_texts_depend_on(tolerance):
    made = fake_comparison(proof=replace(PROOF, tolerance=tolerance), rows_at_once=6)
    card = findings(made)
    assert "Up to 6 texts were written in one pass." in card
    assert "written beside more or fewer, they can differ." in card
    assert "on this machine" not in card
    alone = findings(replace(made, rows_at_once=1))
    assert "give the same two texts again on this machine." in alone, "nothing stood beside them"


def test_a_proof_that_does_not_hold_says_why():
    card = proof_card(replace(PROOF, effect=0.0, base_hash="0" * 64), 7)
    assert "Does not hold" in card
    assert "The adapter changes nothing" in card
    assert "no longer what was loaded" in card
    assert "carries no proof" in proof_card(None, 7)
