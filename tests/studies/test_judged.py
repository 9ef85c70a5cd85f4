"""Unblinding: verdicts on slots become verdicts on base and tuned, and only whole ones of this study."""

import time
from pathlib import Path

import pytest

from deepdoctor.studies.judged import Judged, standings, unblind
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Study
from deepdoctor.studies.trials import Rater, Trial
from tests.studies.prepared import other, prepared, verdict


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return prepared(tmp_path, 12, native_arm=True, repeat_share=0.2)


@pytest.fixture
def store(tmp_path: Path) -> Judgments:
    return Judgments(tmp_path)


def on_tuned(study: Study, rater: Rater, trial: Trial, **changes: object) -> dict:
    """A verdict in favour of the tuned answer: it is correct, the other one wrong and severely harmful."""
    tuned, against = trial.tuned_slot, "B" if trial.tuned_slot == "A" else "A"
    said = {"correct": {tuned: "correct", against: "wrong"}, "harm": {tuned: "none", against: "severe"}}
    return verdict(study, rater.token, trial.id, preference=tuned, chips={tuned: [], against: ["biased"]}, **said, **changes)


def test_slots_become_sides_wherever_they_stood(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "Cardiology", 10)
    for trial in rater.trials:
        store.add(on_tuned(study, rater, trial, comment="A comment"))
    found = unblind(study, store.rows(study.id))
    assert [each.trial for each in found] == [trial.id for trial in rater.trials]
    assert {each.tuned_slot for each in found} == {"A", "B"}
    assert {each.other for each in found} == {"base", "native"}
    said = {(each.preference, each.tuned_correct, each.other_correct, each.tuned_harm, each.other_harm) for each in found}
    assert said == {("tuned", "correct", "wrong", "none", "severe")}
    assert {(each.tuned_chips, each.other_chips, each.comment, each.rater) for each in found} == {
        ((), ("biased",), "A comment", rater.token)
    }
    repeats = [each for each in found if each.repeat_of]
    assert len(repeats) == 2
    assert {each.repeat_of for each in repeats} <= {each.trial for each in found}


def test_a_pair_skipped_at_first_counts_by_its_second_presentation(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "Cardiology", 10)
    again, other_again = (trial for trial in rater.trials if trial.repeat_of)
    first = next(trial for trial in rater.trials if trial.id == again.repeat_of)
    for row in (other(on_tuned(study, rater, first), "skip"), on_tuned(study, rater, again), on_tuned(study, rater, other_again)):
        store.add(row)
    found = {each.trial: each.repeat_of for each in unblind(study, store.rows(study.id))}
    assert found == {again.id: "", other_again.id: ""}, "neither was judged before"
    store.add(on_tuned(study, rater, first))
    found = {each.trial: each.repeat_of for each in unblind(study, store.rows(study.id))}
    assert found == {first.id: "", again.id: first.id, other_again.id: ""}


def test_facts_of_the_question_and_the_texts_come_along(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "Cardiology", 10)
    for judge in (rater, study.join("Ben", "Urology", 3)):
        for trial in judge.trials:
            store.add(on_tuned(study, judge, trial))
    found: dict[tuple[str, str], Judged] = {(each.question, each.other): each for each in unblind(study, store.rows(study.id))}
    base = found["question-1", "base"]
    assert (base.specialty, base.kind, base.seen, base.seed) == ("urology", "clinical", "unseen", study.config.sampling.seed)
    assert (base.tuned_bullets, base.other_bullets, base.tuned_words) == (0, 3, 11)
    assert found["question-1", "native"].other_bullets == 4
    assert (found["question-11", "base"].tuned_words, found["question-11", "base"].kind) == (0, "general")


@pytest.mark.parametrize(("said", "means"), [("both", "both"), ("neither", "neither")])
def test_ties_stay_ties(study: Study, store: Judgments, said: str, means: str) -> None:
    rater = study.join("Ada", "x", 1)
    store.add(verdict(study, rater.token, rater.trials[0].id, preference=said))
    assert unblind(study, store.rows(study.id))[0].preference == means


def test_the_last_correction_counts_and_its_time_adds_up(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "x", 1)
    trial = rater.trials[0]
    store.add(verdict(study, rater.token, trial.id, "one", preference="both", seconds=12.5))
    store.add(verdict(study, rater.token, trial.id, "two", preference="neither", seconds=4.0))
    (found,) = unblind(study, store.rows(study.id))
    assert (found.preference, found.seconds) == ("neither", 16.5)


def test_skips_and_strangers_are_left_out(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "x", 1)
    row = verdict(study, rater.token, rater.trials[0].id)
    store.add(other(row, "skip"))
    store.add(verdict(study, rater.token, "no-such-trial"))
    store.add(verdict(study, "f" * 24, rater.trials[1].id))
    assert unblind(study, store.rows(study.id)) == []
    store.add(row)
    assert [each.trial for each in unblind(study, store.rows(study.id))] == [rater.trials[0].id]


def test_nothing_judged_gives_nothing(study: Study, store: Judgments) -> None:
    study.join("Ada", "x", 1)
    assert unblind(study, store.rows(study.id)) == []
    (idle,) = standings(study, store.rows(study.id))
    assert (idle.judged, idle.skipped, idle.unfinished, idle.guess) == (0, 0, 14, "")


def test_guesses_are_right_wrong_or_none(study: Study, store: Judgments) -> None:
    raters = [study.join(name, "x", 1) for name in ("Ada", "Ben", "Cleo", "Dana")]
    for number, rater in enumerate(raters[:3]):
        trial = rater.trials[number]
        wrong = "B" if trial.tuned_slot == "A" else "A"
        row = verdict(study, rater.token, trial.id)
        store.add(row)
        store.add(other(row, "guess", guess=(trial.tuned_slot, wrong, "none")[number]))
    found = standings(study, store.rows(study.id))
    assert [(each.rater, each.guess) for each in found] == list(
        zip([rater.token for rater in raters], ["right", "wrong", "none", ""], strict=True)
    )


def test_how_far_raters_came_counts_their_own_trials_once(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "Cardiology", 7)
    rows = [verdict(study, rater.token, trial.id) for trial in rater.trials]
    for row in (*rows[:5], other(rows[0], "lock"), other(rows[1], "lock"), other(rows[4], "skip"), other(rows[5], "skip")):
        store.add(row)
    store.add(verdict(study, rater.token, "no-such-trial"))
    (found,) = standings(study, store.rows(study.id))
    assert (found.specialty, found.years) == ("Cardiology", 7)
    assert (found.assigned, found.judged, found.locked, found.skipped, found.unfinished) == (14, 4, 2, 2, 8)
    assert [each.locked for each in unblind(study, store.rows(study.id))] == [True, True, False, False]


def test_soundness_goes_to_the_side_whose_reasoning_it_was(study: Study, store: Judgments) -> None:
    rater = study.join("Ada", "x", 1)
    for trial in rater.trials[:8]:
        row = on_tuned(study, rater, trial)
        against = "B" if trial.tuned_slot == "A" else "A"
        for each in (row, other(row, "lock", revealed=True), other(row, "soundness", **{trial.tuned_slot: "flawed", against: "sound"})):
            store.add(each)
    store.add(on_tuned(study, rater, rater.trials[8]))
    found = unblind(study, store.rows(study.id))
    assert {each.tuned_slot for each in found[:8]} == {"A", "B"}
    assert [(each.tuned_sound, each.other_sound) for each in found] == [("flawed", "sound")] * 8 + [(None, None)]


@pytest.mark.parametrize("revealed", ["with the lock", "later", "never"])
def test_a_verdict_after_the_reference_was_read_is_told_apart(study: Study, store: Judgments, revealed: str) -> None:
    rater = study.join("Ada", "x", 1)
    repeat = next(trial for trial in rater.trials if trial.repeat_of)
    first = next(trial for trial in rater.trials if trial.id == repeat.repeat_of)
    unrelated = next(trial for trial in rater.trials if trial.question != first.question)
    row = verdict(study, rater.token, first.id)
    for each in (row, other(row, "lock", revealed=revealed == "with the lock")):
        store.add(each)
    if revealed == "later":
        store.add({**other(row, "lock", revealed=True), "submission": "read"})
    time.sleep(0.002)
    for trial in (repeat, unrelated):
        store.add(verdict(study, rater.token, trial.id))
    read = {each.trial: each.reference_read for each in unblind(study, store.rows(study.id))}
    assert read == {first.id: False, repeat.id: revealed != "never", unrelated.id: False}
