"""What stands below a comparison: numbers, badge, proof."""

from dataclasses import replace
from typing import get_args

import pytest

from deepdoctor.comparison import Comparisons, Further
from deepdoctor.overlap import Grade, Overlap, Seen, graded
from deepdoctor.ui.findings import changes_table, findings, proof_card, seen_card
from tests.ui.fakes import BASE_TEXT, PROOF, fake_comparison, transcript


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


FURTHER = (
    Further(20, transcript(BASE_TEXT), replace(PROOF, tuned_difference=5.6e-6, effect=1.25, adapter_hash="20" * 32)),
    Further(None, transcript("a</think>b"), PROOF),
)


def test_further_checkpoints_have_their_own_columns_and_lines_of_the_proof():
    made = fake_comparison(further=FURTHER)
    table = changes_table(made)
    heads = [table.index(f'class="num">{head}<') for head in ("Base", "Tuned", "Change", "Step 20", "Final")]
    assert heads == sorted(heads)
    assert '<td class="num">3</td>' in table.partition("Bullets")[2].partition("</tr>")[0].partition("−3")[2]
    card = findings(made)
    for part in (
        "<dt>Checkpoint 20</dt>",
        "5.6e-06",
        "To the base it is 1.2.",
        f'title="{"20" * 32}"',
        "<dt>Final adapter</dt>",
        "all sides read",
    ):
        assert part in card
    assert "give the same four texts again" in card
    assert "Does not hold" not in card


def test_the_proof_of_every_checkpoint_must_hold():
    wrong = proof_card(PROOF, 7, 3, (replace(FURTHER[0], proof=replace(PROOF, effect=0.0)),))
    assert "Does not hold" in wrong
    assert "Checkpoint 20: the adapter changes nothing" in wrong
    missing = proof_card(PROOF, 7, 3, (replace(FURTHER[1], proof=None),))
    assert "Does not hold" in missing
    assert "The final adapter: this text carries no proof." in missing


def test_unfinished_texts_are_named_further_ones_too():
    made = fake_comparison(further=FURTHER[:1])
    cut = (replace(FURTHER[0], written=replace(FURTHER[0].written, finish_reason="stopped")),)
    assert "The checkpoint 20 text is unfinished" in changes_table(replace(made, further=cut))
    tuned = replace(made.tuned, finish_reason="length")
    assert "The tuned and checkpoint 20 texts are unfinished" in changes_table(replace(made, tuned=tuned, further=cut))
    base = replace(made.base, finish_reason="stopped")
    assert "All texts are unfinished" in changes_table(replace(made, base=base, tuned=tuned, further=cut))


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
