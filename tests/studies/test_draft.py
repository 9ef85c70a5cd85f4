"""Which questions a study would take, and what it would ask of a rater; the same for the page and the command line."""

from pathlib import Path

import pytest

from deepdoctor.config import StudyConfig
from deepdoctor.dataset import Example, held_out_examples
from deepdoctor.errors import ConfigError, DatasetError, StudyError
from deepdoctor.studies.draft import Choice, draft, held_out_questions, questions_of
from deepdoctor.studies.questions import BankQuestion, bundled_bank
from deepdoctor.studies.study import Studies
from tests.studies.prepared import answer_row, bank_question

CONFIG = StudyConfig(run="r")
TRAINED = ["Which enzyme is deficient in phenylketonuria?"]
BANK = [bank_question(number) for number in range(20)]


def ids(questions: list[BankQuestion]) -> list[str]:
    return [question.id for question in questions]


def test_sources_are_put_together(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("id,question\nown-1,What is first?\n")
    rows = [Example("Why?", "Because.", "So.")]
    found = questions_of(["bundled", "held_out", "rows", "file"], file, rows)
    assert ids(found) == [*ids(bundled_bank()), *ids(held_out_questions()), "row-1", "own-1"]
    with pytest.raises(ConfigError, match="Choose the file"):
        questions_of(["file"], None, [])
    file.write_text("question\nWhat is first?\n")
    with pytest.raises(DatasetError, match="several questions have the id 'row-1'"):
        questions_of(["rows", "file"], file, rows)


def test_held_out_cases_carry_what_a_right_answer_names() -> None:
    case, question = held_out_examples()[0], held_out_questions()[0]
    assert (question.question, question.reference, question.specialty) == (case.example.question, case.example.response, case.specialty)
    assert question.terms == (case.key_term,)
    assert len(question.key_points) == 1


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        (Choice(), 20),
        (Choice(specialties=("cardiology", "urology")), 14),
        (Choice(kinds=("general",)), 6),
        (Choice(difficulties=("hard",)), 0),
        (Choice(specialties=("cardiology",), kinds=("general",)), 0),
        (Choice(most=5), 5),
        (Choice(most=50), 20),
        (Choice(ids=("question-3", "question-7", "question-0")), 3),
        (Choice(kinds=("clinical",), ids=("question-3", "question-7")), 2),
        (Choice(ids=("question-3", "question-7", "question-0"), most=2), 2),
    ],
)
def test_filters_and_the_draw(choice: Choice, count: int) -> None:
    made = draft(CONFIG, BANK, choice, TRAINED)
    assert len(made.questions) == count
    assert made.questions == [question for question in BANK if question in made.questions]
    assert made.questions == draft(CONFIG, BANK, choice, TRAINED).questions


def test_picked_questions_must_be_there() -> None:
    assert ids(draft(CONFIG, BANK, Choice(ids=("question-7", "question-3")), TRAINED).questions) == ["question-3", "question-7"]
    for choice, wrong in ((Choice(ids=("question-3", "nope")), "nope"), (Choice(kinds=("general",), ids=("question-3",)), "question-3")):
        with pytest.raises(ConfigError, match=f"picked question '{wrong}' is not among"):
            draft(CONFIG, BANK, choice, TRAINED)


def test_another_assignment_seed_draws_others() -> None:
    drawn = {tuple(ids(draft(CONFIG.changed(seed=seed), BANK, Choice(most=5), TRAINED).questions)) for seed in range(5)}
    assert len(drawn) > 1


def test_a_study_takes_at_least_one_question() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        draft(CONFIG, BANK, Choice(most=-1), TRAINED)


def test_what_training_knows_is_left_out_before_the_draw(tmp_path: Path) -> None:
    known = [question.question for question in BANK[:8]]
    made = draft(CONFIG, BANK, Choice(most=12), known)
    assert made.grades["seen"] == 8
    assert sum(made.grades.values()) == 20
    assert not set(ids(made.questions)) & set(ids(BANK[:8]))
    lax = draft(CONFIG.changed(unseen_only=False), BANK, Choice(), known)
    assert len(lax.questions) == 20
    with pytest.raises(StudyError, match="training has seen all of them"):
        draft(CONFIG, BANK[:8], Choice(), known).create(Studies(tmp_path), "nano")


def test_what_is_asked_of_a_rater_is_what_they_get(tmp_path: Path) -> None:
    config = CONFIG.changed(native_arm=True, seeds_per_question=2, repeat_share=0.25)
    made = draft(config, BANK, Choice(most=3), TRAINED)
    assert (made.pairs, made.repeated, made.minutes) == (6, 2, 8)
    study = made.create(Studies(tmp_path), "nano")
    assert [question.id for question in study.questions()] == ids(made.questions)
    assert study.status["total"] == 6
    for question, seed in study.pending():
        study.append_answer(answer_row(study, question, seed))
    study.open()
    assert len(study.join("Ada", "x", 1).trials) == made.pairs + made.repeated


def test_without_recorded_training_rows_nothing_counts_as_unseen() -> None:
    for lax in (False, True):
        with pytest.raises(StudyError, match="does not record the rows it was trained on"):
            draft(CONFIG.changed(unseen_only=lax), BANK, Choice(), [])
