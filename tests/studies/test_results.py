"""Results: every number from the verdicts it should come from, empty and tiny studies included."""

import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from deepdoctor.studies.contest import preferred
from deepdoctor.studies.judged import Course, Judged, Standing
from deepdoctor.studies.results import results
from tests.studies.panel import PLAIN, drawn, question_rows, verdicts

# 4 May 2026, noon, in UTC
NOON, DAY = 1777896000.0, 86400.0
PLANNED = Course(0.65, 20, "closed", (NOON,), (NOON + DAY,))


def found(
    judged: list[Judged], raters: Sequence[Standing] = (), questions: int = 30, course: Course = PLANNED, **seen: Any
) -> dict[str, Any]:
    """Results without answers."""
    return results(judged, raters, question_rows(questions, **seen), [], {}, course)


def standing(rater: str, guess: Any = "", specialty: str = "Cardiology") -> Standing:
    """A rater who was shown 12 pairs, judged 8, locked 7 and skipped 3."""
    return Standing(rater, specialty, 7, 12, 8, 7, 3, guess)


@pytest.mark.parametrize(
    "judged", [[], verdicts(["tuned"]), verdicts(["neither"]), verdicts(["tuned", "other"]), verdicts(["tuned"] * 6, 1)]
)
def test_small_studies_are_whole_json_without_nan(judged: list[Judged]) -> None:
    value = found(judged)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["headline"]
    assert value["preference"]["call"] == value["correctness"]["call"] == "" or len(judged) == 6
    assert value["counts"]["verdicts"] == len(judged)


def test_preference_correctness_and_harm_are_counted() -> None:
    said = verdicts(["tuned", "tuned", "other", "both", "neither"])
    said[0] = replace(said[0], tuned_correct="wrong", tuned_harm="severe", tuned_chips=("wrong_fact",))
    said[1] = replace(said[1], other_correct="partly", other_harm="moderate")
    said[2] = replace(said[2], tuned_correct="unsure")
    value = found(said)
    preference = {name: value["preference"][name] for name in ("verdicts", "wins", "losses", "both", "neither", "decided")}
    assert preference == {"verdicts": 5, "wins": 2, "losses": 1, "both": 1, "neither": 1, "decided": 3}
    assert value["preference"]["share"] == pytest.approx(2 / 3, abs=1e-6)
    correctness = value["correctness"]
    assert correctness["tuned"] == {"correct": 3, "partly": 0, "wrong": 1, "unsure": 1}
    assert [correctness[name] for name in ("rated", "base_correct", "tuned_correct", "only_base", "only_tuned")] == [4, 3, 3, 1, 1]
    assert value["harm"]["tuned"] == {"none": 4, "moderate": 0, "severe": 1}
    assert (value["harm"]["worse"], value["harm"]["better"]) == (1, 1)
    assert value["harm"]["difference"] == pytest.approx(0.2)
    assert value["chips"] == {"base": {}, "tuned": {"wrong_fact": 1}}


def test_a_pair_shown_again_counts_once_and_tells_consistency() -> None:
    first = verdicts(["tuned", "other", "both", "tuned"], raters=2)
    again = [
        replace(first[0], trial="again-1", repeat_of="trial-1", tuned_slot="B"),
        replace(first[1], trial="again-2", repeat_of="trial-2", preference="tuned", reference_read=True),
        replace(first[2], trial="again-3", repeat_of="trial-3", preference="neither"),
        # the first presentation was skipped: there is nothing to compare with
        replace(first[3], trial="again-4", repeat_of="trial-9"),
    ]
    value = found([*first, *again])
    assert (value["counts"]["verdicts"], value["counts"]["repeats"]) == (4, 4)
    assert value["preference"]["wins"] == 2
    assert {name: value["repeats"][name] for name in ("pairs", "same", "opposite")} == {"pairs": 3, "same": 1, "opposite": 1}
    assert (value["repeats"]["reference_read"], value["repeats"]["same_reference_read"]) == (1, 0)
    assert value["counts"]["reference_read"] == 0, "of first verdicts none"
    informed = found([replace(first[0], reference_read=True), *first[1:]])
    assert informed["counts"]["reference_read"] == 1
    shown = [verdict for pair in value["questions"] for verdict in pair["verdicts"]]
    assert [verdict["again"] for verdict in shown] == [False, False, True, True, False, False, True, True]
    assert [pair["disagree"] for pair in value["questions"]] == [["preference"], []], "the second presentation contradicts nobody"


def test_the_native_arm_stands_by_itself() -> None:
    native = [replace(each, other="native") for each in verdicts(["other"] * 8)]
    value = found([*verdicts(["tuned"] * 6), *native])
    assert (value["preference"]["wins"], value["preference"]["losses"]) == (6, 0)
    assert (value["native"]["preference"]["wins"], value["native"]["preference"]["losses"]) == (0, 8)
    assert set(value["native"]["harm"]) >= {"native", "tuned"}
    assert "native prompt" in value["native"]["headline"][0]
    assert found(verdicts(["tuned"]))["native"] is None
    harmful = found([*verdicts(["tuned"] * 6), *(replace(each, tuned_harm="severe") for each in native)])
    assert harmful["headline"][0] == harmful["native"]["headline"][0]
    assert harmful["headline"][0].startswith("More severe harm on the tuned side")


def test_soundness_is_counted_by_side_where_it_was_said() -> None:
    said = verdicts(["tuned"] * 3)
    said[0] = replace(said[0], tuned_sound="flawed", other_sound="sound")
    said[1] = replace(said[1], tuned_sound="sound", other_sound="unsure")
    value = found(said)
    assert value["soundness"] == {
        "judged": 2,
        "base": {"sound": 1, "flawed": 0, "unsure": 1},
        "tuned": {"sound": 1, "flawed": 1, "unsure": 0},
    }
    assert value["questions"][0]["verdicts"][0]["tuned_sound"] == "flawed"
    assert value["questions"][0]["verdicts"][2]["tuned_sound"] is None


def test_how_well_training_knew_a_question_is_told_by_group() -> None:
    """Tuned wins what training has seen, and loses what it has not."""
    grades = ["seen"] * 8 + ["near-seen"] * 8 + ["unseen"] * 24
    said = verdicts(["tuned"] * 8 + ["both"] * 8 + ["other", "other", "other", "tuned"] * 6)
    judged = [
        replace(each, seen=grade, tuned_harm="severe" if grade == "seen" else "none") for each, grade in zip(said, grades, strict=True)
    ]
    groups = found(judged)["by"]["seen"]
    assert list(groups) == ["near-seen", "seen", "unseen"]
    counted = {name: [group[each] for each in ("verdicts", "wins", "losses", "both", "share")] for name, group in groups.items()}
    assert counted == {"seen": [8, 8, 0, 0, 1.0], "near-seen": [8, 0, 0, 8, None], "unseen": [24, 6, 18, 0, 0.25]}
    assert [groups[name]["severe"] for name in ("seen", "unseen")] == [{"base": 0, "tuned": 8}, {"base": 0, "tuned": 0}]
    assert groups["seen"]["two_way"][0] < groups["seen"]["interval"][0], "eight verdicts on two questions"
    assert groups["near-seen"]["two_way"] is None


def test_the_raters_specialties_make_groups_of_their_own() -> None:
    said = verdicts(["tuned", "tuned", "other", "both"] * 3)
    raters = [standing("token-1"), standing("token-2", specialty="cardiology"), standing("token-3", specialty="Urology")]
    groups = found(said, raters)["by"]["rater_specialty"]
    assert {name: (group["wins"], group["losses"]) for name, group in groups.items()} == {
        "cardiology": (6, 0),
        "urology": (0, 3),
        "not given": (0, 0),
    }


def test_groups_add_up_and_an_unnamed_one_is_named() -> None:
    said = [replace(each, specialty=("", "urology")[number % 2]) for number, each in enumerate(drawn(Random(1), 20, 3, 0.3))]
    by = found(said)["by"]["specialty"]
    assert list(by) == ["not given", "urology"]
    assert sum(group["verdicts"] for group in by.values()) == 60


def test_raters_who_always_take_slot_a_are_seen_and_favour_nobody() -> None:
    said = [replace(each, preference="tuned" if each.tuned_slot == "A" else "other") for each in verdicts(["both"] * 80)]
    value = found(said)
    assert value["slots"]["share"] == 1
    assert value["preference"]["share"] == 0.5
    assert value["preference"]["call"] == ""
    assert any(
        caution.startswith(
            "Slot A was preferred in 80 of 80 decided pairs (100%). Tuned stood there in 40 of them, so a taste for a slot favours neither"
        )
        for caution in value["cautions"]
    )


@pytest.mark.parametrize(("slot", "favoured"), [("A", "tuned"), ("B", "what it stood against")])
def test_a_taste_for_slot_a_where_tuned_did_not_stand_alike_often_is_told(slot: Any, favoured: str) -> None:
    """As where raters stop early: what they have judged need not be balanced."""
    said = [replace(each, tuned_slot=slot, preference="tuned" if slot == "A" else "other") for each in verdicts(["both"] * 60)]
    (told,) = [caution for caution in found(said)["cautions"] if caution.startswith("Slot A was preferred in 60 of 60")]
    assert told.endswith(f"Tuned stood there in {60 if slot == 'A' else 0} of them, so a taste for a slot favours {favoured}.")


def test_chance_is_seldom_taken_for_a_difference() -> None:
    """Of 120 studies of raters who toss coins, 5% would be 6; more than 12 comes once in 100 seeds."""
    rng = Random(3)
    called = sum(bool(preferred(drawn(rng, 20, 3, 0.0), "base")["call"]) for _ in range(120))
    assert called <= 12


def test_strong_raters_are_believed() -> None:
    value = found(drawn(Random(4), 30, 6, 1.2, (0.5, 0.2)))
    assert value["preference"]["call"] == "tuned"
    low, high = value["preference"]["two_way"]
    assert low <= value["preference"]["interval"][0] < value["preference"]["interval"][1] <= high


def test_agreement_is_told_of_all_three_questions() -> None:
    agreed = [
        replace(each, tuned_harm="moderate") if each.question == "question-2" else each for each in verdicts(["tuned"] * 4 + ["other"] * 4)
    ]
    value = found(agreed)["agreement"]
    assert value["preference"] == {"units": 2, "alpha": 1.0, "ac1": 1.0, "plain": 1.0}
    assert value["harm"]["alpha"] == 1
    assert value["correct"]["alpha"] is None, "everything correct leaves nothing to agree upon"
    assert (value["correct"]["ac1"], value["correct"]["units"]) == (1.0, 4)


def test_disagreement_is_marked_by_pair() -> None:
    said = verdicts(["tuned", "other", "tuned", "both", "tuned", "tuned"], raters=2)
    said[2] = replace(said[2], tuned_correct="wrong", other_harm="severe")
    marks = {pair["question"]: pair["disagree"] for pair in found(said)["questions"]}
    assert marks == {"question-1": ["preference"], "question-2": ["correct", "harm"], "question-3": []}


def test_no_rater_is_called_by_the_token() -> None:
    value = found(verdicts(["tuned"] * 8), [standing("token-9"), standing("token-1", "right")])
    assert "token-" not in json.dumps(value)
    assert [rater["rater"] for rater in value["raters"]] == ["R1", "R2", "R3", "R4"]
    came = value["counts"]["by_rater"]
    assert [each["rater"] for each in came] == ["R1", "R5"], "who has judged nothing comes after who has"
    assert came[0] == {
        **{"rater": "R1", "specialty": "Cardiology", "years": 7, "assigned": 12},
        **{"judged": 8, "locked": 7, "skipped": 3, "unfinished": 1},
    }
    assert {name: value["counts"][name] for name in ("joined", "raters", "locked", "skipped", "unfinished")} == {
        **{"joined": 2, "raters": 4},
        **{"locked": 14, "skipped": 6, "unfinished": 2},
    }


def test_guesses_and_time() -> None:
    raters = [standing("a", "right"), standing("b", "right"), standing("c", "right"), standing("d", "none"), standing("e")]
    value = found([replace(PLAIN, seconds=seconds, trial=str(seconds)) for seconds in (10.0, 20.0, 60.0)], raters)
    assert [value["guesses"][name] for name in ("right", "wrong", "none", "share")] == [3, 0, 1, 1.0]
    assert (value["seconds"]["median"], value["seconds"]["total"], value["seconds"]["left_open"]) == (20, 90, 0)


def test_a_form_left_open_is_no_work() -> None:
    value = found([replace(PLAIN, seconds=seconds, trial=str(seconds)) for seconds in (10.0, 20.0, 30.0 * 3600)])
    assert (value["seconds"]["median"], value["seconds"]["total"], value["seconds"]["left_open"]) == (15, 30, 1)
    assert value["raters"][0]["seconds"] == 15
    alone = found([replace(PLAIN, seconds=30.0 * 3600)])
    assert (alone["seconds"]["median"], alone["seconds"]["total"], alone["raters"][0]["seconds"]) == (None, 0, None)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (2, 0, ""),
        (3, 0, "3 of 3 raters told which side was tuned (100%, 95% interval 44–100%); so few can by chance."),
        (3, 1, "3 of 4 raters told which side was tuned (75%, 95% interval 30–95%); so few can by chance."),
        (8, 4, ""),
        (70, 30, "70 of 100 raters told which side was tuned (70%, 95% interval 60–78%): blinding may not have held."),
        (30, 70, ""),
    ],
)
def test_blinding_is_doubted_where_more_guessed_right_than_chance_gives(right: int, wrong: int, told: str) -> None:
    raters = [standing(f"guest-{number}", "right" if number < right else "wrong") for number in range(right + wrong)]
    cautions = found(verdicts(["both"] * 40, 5), raters)["cautions"]
    assert [caution for caution in cautions if "told which side" in caution] == [told][: bool(told)]


@pytest.mark.parametrize(
    ("given", "told"), [((36, 2, 2), "one of 3 gave 36 of 40"), ((36, 2), "one of 2 gave 36 of 38"), ((36, 20, 18), "")]
)
def test_raters_who_judge_very_unequally_are_a_caution(given: tuple[int, ...], told: str) -> None:
    said = [each for number, each in enumerate(verdicts(["tuned"] * 108, 3)) if number // 3 < dict(enumerate(given)).get(number % 3, 0)]
    cautions = found(said, questions=36)["cautions"]
    assert any(f"Raters judged very unequally: {told}" in caution for caution in cautions) == bool(told)


@pytest.mark.parametrize(
    ("course", "told"),
    [
        (replace(PLANNED, planned=8), []),
        (PLANNED, ["The study was closed after 8 of 20 planned verdicts (opened on 4 May 2026, closed on 5 May 2026)."]),
        (Course(0.65, 20, "closed"), []),
        (replace(PLANNED, planned=8, state="open", closed=()), []),
        (
            replace(PLANNED, state="open", closed=()),
            ["The study was still open when this was computed, with 8 of 20 planned verdicts (opened on 4 May 2026)."],
        ),
        (
            replace(PLANNED, planned=8, opened=(NOON, NOON + 2 * DAY, NOON + 3 * DAY), closed=(NOON + DAY, NOON + 4 * DAY)),
            ["The study was opened again after it had been closed (opened on 4 May 2026, closed on 5 May 2026, opened on 6 May 2026, "],
        ),
    ],
)
def test_how_a_study_ran_is_a_caution_where_it_tells_on_the_numbers(course: Course, told: list[str]) -> None:
    cautions = found(verdicts(["both"] * 8), course=course)["cautions"]
    said = [caution for caution in cautions if caution.startswith("The study was")]
    assert [caution[: len(start)] for caution, start in zip(said, told, strict=True)] == told
    assert found([], course=course)["cautions"] == []


def test_what_was_skipped_is_not_missed() -> None:
    """Raters who skipped what is outside their field have come to the end too."""
    raters = [Standing(f"token-{number}", "Urology", 7, 5, 2, 2, 3) for number in range(1, 5)]
    assert not [each for each in found(verdicts(["both"] * 8), raters)["cautions"] if "planned verdicts" in each]


def test_what_training_knew_is_a_caution() -> None:
    assert any("(30 near-seen)" in caution for caution in found(verdicts(["tuned"]), seen="near-seen")["cautions"])
    assert not any("Training" in caution for caution in found(verdicts(["tuned"]))["cautions"])
