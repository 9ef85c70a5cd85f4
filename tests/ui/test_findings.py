"""What stands below a comparison: numbers, badge, proof."""

from dataclasses import replace

import pytest

from deepdoctor.ui.findings import changes_table, proof_card, seen_card
from tests.ui.fakes import PROOF, fake_comparison


def test_changes_are_told_with_sign_and_share():
    table = changes_table(fake_comparison())
    assert "Bullets" in table
    assert "−3 (−100%)" in table
    same = changes_table(fake_comparison(base="a</think>b", tuned="a</think>b"))
    assert same.count("same") == 6


@pytest.mark.parametrize("grade", ["seen", "near-seen", "unseen"])
def test_the_badge_tells_the_grade_and_the_nearest_training_question(grade):
    card = seen_card({"grade": grade, "similarity": 0.8, "row": 3, "question": "A <i>woman</i>"})
    assert f'class="dd-badge {grade}"' in card
    assert "row 3, similarity 80%" in card
    assert "A &lt;i&gt;woman&lt;/i&gt;" in card
    assert seen_card({}) == ""


def test_the_proof_card_shows_numbers_and_whole_hashes():
    card = proof_card(PROOF, 7)
    for part in ("2.1e-06", "3.4e-06", "4.7", "0.001", f'title="{PROOF.base_hash}"', f'title="{PROOF.adapter_hash}"', "Holds"):
        assert part in card
    assert f">{PROOF.prompt_hash[:12]}<" in card


def test_a_proof_that_does_not_hold_says_why():
    card = proof_card(replace(PROOF, effect=0.0, base_hash="0" * 64), 7)
    assert "Does not hold" in card
    assert "The adapter changes nothing" in card
    assert "no longer what was loaded" in card
    assert "carries no proof" in proof_card(None, 7)
