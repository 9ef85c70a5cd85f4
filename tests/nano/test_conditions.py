"""The conditions file that ships keeps to what the model's teaching relies on."""

import pytest

from deepdoctor.errors import DatasetError
from deepdoctor.nano.cases import SHOWCASE_FINDINGS, combinations_of, make_case, showcase_case
from deepdoctor.nano.knowledge import ASKED, load_conditions

CONDITIONS = load_conditions()


def test_enough_conditions_in_enough_specialties():
    assert len(CONDITIONS) >= 120
    assert len({condition.specialty for condition in CONDITIONS}) >= 15


def test_no_finding_is_shared_by_two_conditions():
    findings = [finding for condition in CONDITIONS for finding in condition.findings]
    assert {finding for finding in findings if findings.count(finding) > 1} == set()


def test_key_terms_do_not_hide_inside_other_words():
    from re import escape, search

    facts = [(c, asked, c.name if asked == "diagnosis" else getattr(c, asked)) for c in CONDITIONS for asked in ASKED]
    assert all(search(rf"\b{escape(c.key_term(asked))}", fact) for c, asked, fact in facts)
    assert min(len(c.key_term(asked)) for c in CONDITIONS for asked in ASKED) >= 3


def test_the_showcase_is_a_case_of_its_condition():
    case = showcase_case(CONDITIONS)
    assert set(SHOWCASE_FINDINGS) < set(case.condition.findings)
    assert case.combination in combinations_of(case.condition)
    assert case.key_term == "no involuntary detrusor contractions"


def test_no_question_gives_its_answer_away():
    from random import Random

    random = Random(2)
    cases = [make_case(condition, asked, combinations_of(condition)[-1], random) for condition in CONDITIONS for asked in ASKED]
    assert [case.question for case in cases if case.leaks] == []


def test_a_missing_finding_is_told_with_its_condition(tmp_path):
    file = tmp_path / "conditions.toml"
    text = (
        '[[condition]]\nname = "gout"\nspecialty = "s"\nsex = "man"\nages = [1, 2]\nbackground = ["a", "b"]\nfindings = ["c"]\n'
        'test = "t"\nresult = "r"\nmechanism = "m"\ntreatment = "u"\nsource = "s"\ndifferentials = []\n'
        'key = { test = "t", result = "r", mechanism = "m", treatment = "u" }\n'
    )
    file.write_text(text)
    with pytest.raises(DatasetError, match=r"gout.*exactly 6 different findings.*exactly 3 differentials"):
        load_conditions(file)
