"""Which questions are kept from those who could be raters, and for how long."""

from pathlib import Path

from deepdoctor.studies.blinded import Blinded
from deepdoctor.studies.study import Studies
from tests.studies.prepared import bank_question, created, prepared

ASKED = bank_question(0).question
OTHER = "Which enzyme is deficient in phenylketonuria, and how is it treated in newborns?"


def test_the_questions_of_a_study_are_held_until_it_is_closed(tmp_path: Path) -> None:
    blinded = Blinded(Studies(tmp_path))
    assert blinded.held([ASKED, OTHER]) == set()
    study = prepared(tmp_path, 1)
    assert blinded.held([ASKED, OTHER]) == {ASKED}
    study.close()
    assert blinded.held([ASKED]) == set()
    study.open()
    assert blinded.held([ASKED]) == {ASKED}
    Studies(tmp_path).delete(study.id)
    assert blinded.held([ASKED]) == set()


def test_a_study_holds_its_questions_from_the_moment_it_is_made(tmp_path: Path) -> None:
    study, blinded = created(tmp_path, 1), Blinded(Studies(tmp_path))
    assert blinded.held([ASKED]) == {ASKED}
    for state in ("interrupted", "failed"):
        study.set_status(state=state)
        assert blinded.held([ASKED]) == {ASKED}


def test_spelling_and_a_few_words_more_make_no_other_question(tmp_path: Path) -> None:
    prepared(tmp_path, 1)
    alike = [ASKED.upper(), f"  {ASKED.replace('?', ' ??')}\n", f"Please answer this. {ASKED}", ASKED.replace("40", "41"), ASKED[:-30]]
    assert Blinded(Studies(tmp_path)).held([*alike, OTHER, ""]) == set(alike)


def test_all_studies_count_and_a_damaged_one_hides_no_other(tmp_path: Path) -> None:
    broken, _sound = prepared(tmp_path, 1), prepared(tmp_path, 12)
    (broken.path / "questions.json").write_text("{")
    last = bank_question(11).question
    assert Blinded(Studies(tmp_path)).held([last, OTHER]) == {last}
