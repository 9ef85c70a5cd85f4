"""Studies on disk: made, prepared, opened, joined, closed; and the assignment's promises."""

import json
from collections import Counter
from pathlib import Path

import pytest

from deepdoctor.config import StudyConfig
from deepdoctor.errors import ConfigError, DatasetError, StudyError
from deepdoctor.overlap import Seen
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.study import Studies
from deepdoctor.studies.trials import Pair, Trial, assign, repeats
from tests.studies.prepared import UNSEEN, answer_row, bank_question, created, prepared

PAIRS = [Pair(f"question-{number}", 1, "base") for number in range(40)]


def test_a_study_keeps_its_settings_and_questions(tmp_path: Path) -> None:
    study = created(tmp_path, 3, seeds_per_question=2, step=20)
    again = Studies(tmp_path).get(study.id)
    assert (again.name, again.config.step, again.state) == ("A secret name", 20, "preparing")
    assert [question.id for question in again.questions()] == ["question-0", "question-1", "question-2"]
    assert again.questions()[1] == bank_question(1)
    assert again.status["total"] == 6
    assert again.details["model"] == "nano"


def test_only_unseen_questions_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    bank = [bank_question(number) for number in range(3)]
    seen = {"question-0": UNSEEN, "question-1": Seen("near-seen", "alike", 4, 0.8), "question-2": Seen("seen", "same", 5, 1.0)}
    strict, lax = (StudyConfig(run="r", unseen_only=only) for only in (True, False))
    assert Studies(tmp_path).create(strict, bank, "nano", seen).seen() == {"question-0": "unseen"}
    study = Studies(tmp_path).create(lax, bank, "nano", seen)
    assert study.seen() == {"question-0": "unseen", "question-1": "near-seen", "question-2": "seen"}
    rows = json.loads((study.path / "questions.json").read_text())
    assert (rows[1]["nearest"], rows[1]["similarity"]) == ("alike", 0.8)
    with pytest.raises(StudyError, match="training has seen all of them"):
        Studies(tmp_path).create(strict, bank[1:], "nano", seen)
    with pytest.raises(StudyError, match="none was chosen"):
        Studies(tmp_path).create(strict, [], "nano", seen)
    with pytest.raises(DatasetError, match="several questions have the id 'question-0'"):
        Studies(tmp_path).create(strict, [bank[0], bank[0]], "nano", seen)
    assert len(Studies(tmp_path).list()) == 2


def test_settings_that_do_not_fit_are_refused() -> None:
    for wrong in ({}, {"run": ""}, {"run": "r", "effect": 0.5}, {"run": "r", "repeat_share": 0.6}, {"run": "r", "seeds_per_question": 6}):
        with pytest.raises(ConfigError):
            StudyConfig.of(wrong)
    with pytest.raises(ConfigError, match="both arms would be the same base"):
        StudyConfig.of({"run": "r", "native_arm": True, "prompt_style": "native"})
    for sampling in ({"temperature": 0}, {"top_k": 1}):
        with pytest.raises(ConfigError, match="every seed would give the same pair again"):
            StudyConfig.of({"run": "r", "seeds_per_question": 2, "sampling": sampling})
        assert StudyConfig.of({"run": "r", "sampling": sampling}).seeds_per_question == 1
    for name, field in StudyConfig.model_fields.items():
        assert field.title, name
        assert field.description, name


def test_preparing_can_go_on_where_it_stopped(tmp_path: Path) -> None:
    study = created(tmp_path, 2, seeds_per_question=2)
    first, second, *_ = study.pending()
    assert [(question.id, seed - first[1]) for question, seed in study.pending()] == [
        ("question-0", 0),
        ("question-0", 1),
        ("question-1", 0),
        ("question-1", 1),
    ]
    study.append_answer(answer_row(study, *second))
    with (study.path / "answers.jsonl").open("a") as file:
        file.write('{"question": "question-0", "se')
    assert second not in study.pending()
    with pytest.raises(StudyError, match="3 answers are still missing"):
        study.open()
    for question, seed in study.pending():
        study.append_answer(answer_row(study, question, seed))
    study.open()
    assert study.state == "open"
    assert len(study.answers()) == 4


@pytest.mark.parametrize("other", ["adapter_hash", "base_hash"])
def test_answers_of_two_adapters_or_bases_are_not_opened(tmp_path: Path, other: str) -> None:
    study = created(tmp_path, 3)
    for number, (question, seed) in enumerate(study.pending()):
        row = answer_row(study, question, seed)
        hashes = {"adapter_hash": "first", "base_hash": "first", **({other: "second"} if number == 2 else {})}
        study.append_answer({**row, "comparison": {**row["comparison"], "proof": hashes}})
    with pytest.raises(StudyError, match=r"not all be of the same adapter and base.*Make a new study"):
        study.open()
    assert study.state == "preparing"
    study.append_answer({**row, "comparison": {**row["comparison"], "proof": {**hashes, other: "first"}}})
    study.open()
    assert study.state == "open"


def test_a_study_that_nobody_prepares_is_lost(tmp_path: Path) -> None:
    claimed, left, opened = created(tmp_path, 1), created(tmp_path, 1), prepared(tmp_path, 1)
    claimed.claim()
    studies = Studies(tmp_path)
    assert [study.id for study in studies.lost()] == [left.id]
    for waiting_or_prepared in (left, claimed):
        with pytest.raises(StudyError, match="being prepared"):
            studies.delete(waiting_or_prepared.id)
    left.set_status(state="interrupted")
    studies.delete(left.id)
    assert {study.id for study in studies.list()} == {claimed.id, opened.id}


@pytest.mark.parametrize("wrong", ["nope", "..", "../runs", "20260101-000000-000000000000", ""])
def test_an_unknown_study_is_told_without_naming_others(tmp_path: Path, wrong: str) -> None:
    known = prepared(tmp_path, 1)
    with pytest.raises(StudyError, match="no such study") as caught:
        Studies(tmp_path).get(wrong)
    assert known.id not in str(caught.value)


def test_ids_cannot_be_guessed(tmp_path: Path) -> None:
    ids = {created(tmp_path, 1).id.rpartition("-")[2] for _ in range(5)}
    assert len(ids) == 5
    assert {len(each) for each in ids} == {12}


def test_raters_join_once_and_are_found_again(tmp_path: Path) -> None:
    study = prepared(tmp_path, 5)
    ada = study.join("  Ada\n Lovelace ", "Cardiology", 12)
    assert (ada.name, ada.specialty, ada.years) == ("Ada Lovelace", "Cardiology", 12)
    assert study.join("Somebody else", "Other", 1, ada.token) == ada
    assert study.rater(ada.token) == ada
    assert study.raters() == [ada]
    with pytest.raises(StudyError, match="joined as ada lovelace already"):
        study.join("ada  lovelace", "Urology", 3)
    for name, specialty, years in (("", "x", 1), ("x" * 81, "x", 1), ("x", "", 1), ("x", "x", -1), ("x", "x", 81)):
        with pytest.raises(StudyError, match="1 to 80 characters"):
            study.join(name, specialty, years)
    assert study.rater("0" * 24) is None
    with pytest.raises(StudyError, match="not a rater's link"):
        study.rater("../../study")


def test_nobody_joins_before_or_after(tmp_path: Path) -> None:
    study = created(tmp_path, 1)
    with pytest.raises(StudyError, match="not open"):
        study.join("Ada", "Cardiology", 1)
    with pytest.raises(StudyError, match="Only an open study"):
        study.close()
    study = prepared(tmp_path, 1)
    study.close()
    with pytest.raises(StudyError, match="not open"):
        study.join("Ada", "Cardiology", 1)


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_every_pair_comes_once_half_with_tuned_in_a_and_repeats_late(pairs: int, share: float) -> None:
    trials = assign(PAIRS[:pairs], share, "a key")
    first, again = ([trial for trial in trials if bool(trial.repeat_of) is repeated] for repeated in (False, True))
    assert {(trial.question, trial.seed, trial.other) for trial in first} == set(PAIRS[:pairs])
    assert len(first) == pairs
    assert len(again) == repeats(pairs, share)
    slots = Counter(trial.tuned_slot for trial in first)
    assert abs(slots["A"] - slots["B"]) <= pairs % 2
    places = {trial.id: place for place, trial in enumerate(trials)}
    known = {trial.id: trial for trial in first}
    for trial in again:
        old = known[trial.repeat_of]
        assert (trial.question, trial.seed, trial.arms) == (old.question, old.seed, (old.arms[1], old.arms[0]))
        assert places[old.id] < pairs / 2
        assert places[trial.id] >= len(trials) * 2 / 3 - 1
    assert len(places) == len(trials)


def test_each_rater_has_an_own_order_that_their_token_alone_does_not_tell(tmp_path: Path) -> None:
    def drawn(trials: list[Trial] | tuple[Trial, ...]) -> list[tuple]:
        return [(trial.question, trial.arms) for trial in trials]

    study = prepared(tmp_path, 12)
    ada, ben = study.join("Ada", "x", 1), study.join("Ben", "x", 1)
    assert drawn(ada.trials) != drawn(ben.trials)
    pairs = [Pair(question, seed, "base") for question, seed in study.answers()]
    secret, config = study.details["secret"], study.config
    assert drawn(assign(pairs, 0.1, f"{config.seed}:{secret}:{ada.token}")) == drawn(ada.trials)
    assert drawn(assign(pairs, 0.1, f"{config.seed}::{ada.token}")) != drawn(ada.trials)


def test_the_order_does_not_follow_the_questions() -> None:
    places = [trial.question for trial in assign(PAIRS, 0, "a key")]
    assert places != [pair.question for pair in PAIRS]
    assert sum(assign(PAIRS[:1], 0, f"key {number}")[0].tuned_slot == "A" for number in range(200)) in range(70, 131)


def test_the_native_arm_stands_in_half_of_the_pairs(tmp_path: Path) -> None:
    study = prepared(tmp_path, 4, native_arm=True, repeat_share=0)
    trials = study.join("Ada", "x", 1).trials
    assert Counter(trial.other for trial in trials) == {"base": 2, "native": 2}
    answer = Answer.from_row(next(iter(study.answers().values())))
    assert "another prompt" in answer.side("native").response
    assert "another prompt" not in answer.side("base").response


@pytest.mark.parametrize(("questions", "seeds"), [(1, 1), (7, 1), (12, 1), (5, 3)])
def test_nobody_reads_the_same_text_in_two_pairs(tmp_path: Path, questions: int, seeds: int) -> None:
    """The text that came back beside another one would be the tuned one."""
    for seed in range(3):
        study = prepared(tmp_path, questions, native_arm=True, seeds_per_question=seeds, repeat_share=0.5, seed=seed)
        raters = [study.join(f"Rater {number}", "x", 1) for number in range(9)]
        for rater in raters:
            first = [trial for trial in rater.trials if not trial.repeat_of]
            read = Counter((trial.question, trial.seed, arm) for trial in first for arm in trial.arms)
            assert set(read.values()) == {1}
            assert {(trial.question, trial.seed) for trial in first} == study.answers().keys()
            assert len(rater.trials) == len(first) + repeats(len(first), 0.5)


def test_both_arms_are_balanced_over_pairs_and_raters_by_the_secret(tmp_path: Path) -> None:
    """41 questions have 10^11 halves: that two drawn at random are the same does not happen."""
    study = prepared(tmp_path, 41, native_arm=True, repeat_share=0)
    raters = [study.join(f"Rater {number}", "x", 1) for number in range(7)]
    for rater in raters:
        found = Counter(trial.other for trial in rater.trials)
        assert abs(found["base"] - found["native"]) == 1
    for question in {trial.question for trial in raters[0].trials}:
        found = Counter(trial.other for rater in raters for trial in rater.trials if trial.question == question)
        assert abs(found["base"] - found["native"]) == 1
    halves = {frozenset(trial.question for trial in rater.trials if trial.other == "native") for rater in raters}
    assert len(halves) == 7
    again = prepared(tmp_path, 41, native_arm=True, repeat_share=0)
    assert frozenset(each.question for each in again.join("Ada", "x", 1).trials if each.other == "native") not in halves


def test_without_the_native_arm_there_is_no_such_side(tmp_path: Path) -> None:
    answer = Answer.from_row(next(iter(prepared(tmp_path, 1).answers().values())))
    with pytest.raises(StudyError, match="native prompt"):
        answer.side("native")


@pytest.mark.parametrize(
    "content",
    [b"{}", b"{", b"\xff", b"[]", b'{"rater": "TOKEN", "name": "Ada", "specialty": "x", "years": 1, "joined": "now", "trials": []}'],
)
def test_one_damaged_rater_stops_nobody_else_and_is_named_to_nobody(tmp_path: Path, content: bytes) -> None:
    study = prepared(tmp_path, 2)
    ada, ben = study.join("Ada", "x", 1), study.join("Ben", "x", 1)
    assert study.damaged_raters == 0
    (study.path / "raters" / f"{ada.token}.json").write_bytes(content.replace(b"TOKEN", ada.token.encode()))
    assert (study.raters(), study.damaged_raters) == ([ben], 1)
    with pytest.raises(StudyError, match="cannot be read") as caught:
        study.rater(ada.token)
    assert ada.token[:6] not in str(caught.value)
    cy = study.join("Cy", "x", 1)
    again = study.join("Ada", "x", 1)
    assert study.raters() == [ben, cy, again], "who was lost may join again"


@pytest.mark.parametrize(
    ("file", "content"),
    [("status.json", '{"state": "open"}'), ("study.json", '{"config": {"run": "r", "evil": 1}, "created": 1.0}'), ("questions.json", "{}")],
)
def test_a_damaged_study_is_counted_and_the_others_are_listed(tmp_path: Path, file: str, content: str) -> None:
    whole, damaged = prepared(tmp_path, 1), prepared(tmp_path, 1)
    (damaged.path / file).write_text(content)
    studies = Studies(tmp_path)
    assert studies.list() == [whole]
    assert studies.damaged() == [damaged.id]


def test_a_damaged_study_is_left_out_of_the_list_and_told(tmp_path: Path) -> None:
    study = prepared(tmp_path, 1)
    rater = study.join("Ada", "x", 1)
    (study.path / "raters" / f"{rater.token}.json").write_text("{}")
    with pytest.raises(StudyError, match="cannot be read"):
        study.rater(rater.token)
    (study.path / "questions.json").write_text("{}")
    with pytest.raises(StudyError, match="holds something else"):
        study.questions()
    (study.path / "study.json").write_text("{")
    assert Studies(tmp_path).list() == []
