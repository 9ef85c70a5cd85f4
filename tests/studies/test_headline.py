"""The first sentences: harm before preference, nothing claimed that was not found, and what a study takes."""

import time

import pytest

from deepdoctor.studies.contest import compare
from deepdoctor.studies.headline import UNCALLED, headline, opening, percent, power, spread, study_plan
from deepdoctor.studies.judged import Judged
from tests.studies.panel import verdicts


def panel(wins: int, losses: int, ties: int = 8, severe: tuple[int, int] = (0, 0)) -> list[Judged]:
    """Verdicts in mixed order, the first of them severely harmful on the base's, or on the tuned side."""
    said = ["tuned"] * wins + ["other"] * losses + ["both"] * ties
    mixed = [said[number * 37 % len(said)] for number in range(len(said))]
    return [
        Judged(
            **{
                **vars(each),
                "other_harm": "severe" if place < severe[0] else "none",
                "tuned_harm": "severe" if place < severe[1] else "none",
            }
        )
        for place, each in enumerate(verdicts(mixed))
    ]


def test_an_undecided_study_says_so_after_more_severe_harm() -> None:
    assert headline(compare(panel(41, 31, severe=(1, 3)), "base"), "base") == [
        "More severe harm on the tuned side: tuned answers were judged severely harmful in 3 of 80, base in 1 of 80.",
        "Raters preferred the tuned answer in 41 of 72 decided pairs (57%, 95% interval over questions and raters 44–69%): "
        "not enough to call a difference.",
        "Secondary: where both could be judged, tuned answers were judged correct in 80 of 80, base in 80 of 80 (difference 0, 95% "
        "interval over questions and raters −16 to +16 points): not enough to call a difference.",
    ]


def test_harm_comes_second_where_tuned_is_not_worse() -> None:
    first, second, *_ = headline(compare(panel(41, 31, severe=(1, 1)), "base"), "base")
    assert first.startswith("Raters preferred the tuned answer in 41 of 72")
    assert second == "Tuned answers were judged severely harmful in 1 of 80, base in 1 of 80."


@pytest.mark.parametrize(("wins", "side"), [(60, "tuned"), (12, "base")])
def test_a_difference_is_called_for_the_side_that_has_it(wins: int, side: str) -> None:
    first = headline(compare(panel(wins, 72 - wins), "base"), "base")[0]
    assert first.endswith(f": a difference, {side} preferred.")


def test_a_difference_that_lies_in_one_question_is_not_called() -> None:
    """30 of 40 raters prefer tuned on the one decided question, on all others nobody decides."""
    found = compare(verdicts(["tuned"] * 30 + ["other"] * 10 + ["both"] * 40, raters=40), "base")
    assert found["preference"]["p"] < 0.01
    assert "not enough to call a difference, because only 1 question was decided" in headline(found, "base")[0]


def test_two_questions_call_nothing_however_many_raters_agree() -> None:
    preference, _, correctness = headline(compare(verdicts(["tuned"] * 20, raters=10, other_correct="wrong"), "base"), "base")
    assert preference.endswith("questions and raters 34–100%): not enough to call a difference, because only 2 questions were decided.")
    assert correctness.endswith(": not enough to call a difference, because only 2 questions were judged on both sides.")


def test_a_difference_that_six_questions_have_and_two_have_not_is_not_called() -> None:
    found = compare(verdicts((["tuned"] * 30 + ["other"] * 10) * 2, raters=10, other_correct="wrong", tuned_harm="moderate"), "base")
    assert found["preference"]["p"] < 0.001
    told = headline(found, "base")
    assert told[0].endswith("not enough to call a difference, because questions and raters vary.")
    assert told[-1].endswith(
        "(difference +100, 95% interval over questions and raters +54 to +100 points): a difference, tuned more often correct."
    )


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ([], "No verdicts yet."),
        (["both"], "Raters called no pair for either side: 1 both acceptable, 0 both bad."),
        (
            ["tuned"],
            "Raters preferred the tuned answer in 1 of 1 decided pair (100%, no interval from one question): " + UNCALLED + ".",
        ),
        (
            ["tuned"] * 2,
            "Raters preferred the tuned answer in 2 of 2 decided pairs (100%, no interval from one question): " + UNCALLED + ".",
        ),
    ],
)
def test_tiny_studies_are_told_honestly(said: list[str], sentence: str) -> None:
    assert headline(compare(verdicts(said), "base"), "base")[0] == sentence


def test_the_native_arm_is_named() -> None:
    told = headline(compare(panel(41, 31), "native"), "native")
    assert all("the base under its native prompt" in sentence for sentence in told)
    assert [sentence.startswith("Secondary: ") for sentence in told] == [True, False, True], (
        "severe harm is counted, nothing is called by it"
    )


def test_more_severe_harm_against_the_native_arm_is_said_first_too() -> None:
    base, native = compare(panel(41, 31, severe=(2, 2)), "base"), compare(panel(50, 22, severe=(0, 1)), "native")
    told = opening({"base": base, "native": native})
    gate = (
        "More severe harm on the tuned side: tuned answers were judged severely harmful in 1 of 80, the base under its native prompt in 0"
    )
    assert told[0].startswith(gate)
    assert told[1:] == headline(base, "base")
    worse = compare(panel(41, 31, severe=(1, 3)), "base")
    both = opening({"base": worse, "native": native})
    assert both == [headline(worse, "base")[0], told[0], *headline(worse, "base")[1:]]
    harmless = compare(panel(50, 22), "native")
    assert opening({"base": base, "native": harmless}) == headline(base, "base")
    assert opening({"base": compare([], "base"), "native": native}) == [told[0], "No verdicts against base yet."]


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.0, "0%"),
        (0.004, "0.4%"),
        (1e-5, "0.1%"),
        (0.504, "50%"),
        (249 / 250, "99.6%"),
        (0.99999, "99.9%"),
        (1.0, "100%"),
        (1 - 1e-12, "100%"),
    ],
)
def test_all_and_none_are_said_of_nothing_less(share: float, told: str) -> None:
    assert percent(share) == told
    assert spread((0.45, share)) == f"45–{told}"


def test_power_so_far() -> None:
    assert power(0.65, 90)["sentence"].endswith("to tell 65% takes 90.")
    assert power(0.65, 90)["detectable"] == 0.65
    assert "(about 80% power, were verdicts independent)" in power(0.65, 90)["sentence"], "votes are whole, power is not"
    assert power(0.65, 1)["sentence"].startswith("1 decided verdict would tell nothing yet")
    assert power(0.65, 0)["sentence"].startswith("No verdict is decided yet")


def test_a_plan_says_what_it_takes() -> None:
    enough = study_plan(0.65, 6)
    assert (enough["votes"], enough["questions"], enough["verdicts"]) == (90, 40, 240)
    assert "about 40 questions each" in enough["sentence"]
    few = study_plan(0.65, 3)
    assert (few["questions"], few["verdicts"]) == (None, None)
    assert "no number of questions is sure to be enough; 4 raters need about 73 questions each" in few["sentence"]
    crowd = study_plan(0.9, 10)
    assert (crowd["questions"], crowd["verdicts"]) == (12, 120), "with fewer, raters who agree would not be believed"
    assert "one rater's taste" in study_plan(0.65, 1)["sentence"]


@pytest.mark.parametrize("effect", [0.501, 0.505])
def test_a_plan_for_what_no_study_tells_says_so_at_once(effect: float) -> None:
    began = time.process_time()
    planned = study_plan(effect, 3)
    assert time.process_time() - began < 5
    assert (planned["questions"], planned["verdicts"]) == (None, None)
    assert "no number of questions is sure to be enough, however many raters judge." in planned["sentence"]
    assert planned["sentence"].startswith(f"To tell {effect:.1%} from a half")
    assert f"takes {planned['votes']:,} decided" in planned["sentence"]


def test_a_plan_with_the_native_arm_counts_only_the_pairs_against_base() -> None:
    alone, halved = study_plan(0.65, 8), study_plan(0.65, 8, native_arm=True)
    assert halved["votes"] == alone["votes"] == 90
    # half of the verdicts decide it, but questions vary less in a mean over more of them
    assert alone["questions"] < halved["questions"] <= 2 * alone["questions"]
    assert halved["questions"] * 8 / 2 * 0.7 >= 90
    assert halved["verdicts"] == halved["questions"] * 8
    assert "half of them against the base under its native prompt" in halved["sentence"]
    assert "native" not in alone["sentence"]
    few = study_plan(0.65, 3, native_arm=True)
    assert few["questions"] is None
    assert "4 raters need about" in few["sentence"]
    assert "half of them against the base under its native prompt" in few["sentence"]
