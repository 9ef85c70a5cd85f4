"""Cases: the split that keeps combinations apart, and questions that read well."""

from random import Random

import pytest

from deepdoctor.nano.cases import (
    Patient,
    capital,
    combinations_of,
    held_out_combinations,
    listed,
    make_case,
    random_case,
    training_combinations,
)
from deepdoctor.nano.knowledge import ASKED, load_conditions

CONDITIONS = load_conditions()


def test_every_condition_holds_one_or_two_combinations_out():
    for condition in CONDITIONS:
        held_out, training = held_out_combinations(condition), training_combinations(condition)
        assert len(held_out) in (1, 2)
        assert not set(held_out) & set(training)
        assert set(held_out) | set(training) == set(combinations_of(condition))
        assert len(combinations_of(condition)) == 35


def test_random_cases_never_show_a_held_out_combination():
    random = Random(1)
    held_out = {each for condition in CONDITIONS for each in held_out_combinations(condition)}
    shown = {random_case(CONDITIONS, random).combination for _ in range(8000)}
    assert len(shown) > 2000
    assert not shown & held_out


def test_the_same_seed_gives_the_same_case():
    condition = CONDITIONS[0]
    combination = training_combinations(condition)[5]
    first, second = (make_case(condition, "test", combination, Random(7)) for _ in range(2))
    assert first == second
    assert make_case(condition, "test", combination, Random(8)) != first


def test_a_question_shows_its_findings_and_the_patient():
    random = Random(3)
    for _ in range(300):
        case = random_case(CONDITIONS, random)
        question = case.question.lower()
        assert all(finding.lower() in question for finding in case.findings)
        assert f"{case.patient.age}-{case.patient.unit}-old {case.patient.noun}" in question
        assert question.endswith(("?", "?."))
        assert "{" not in question


def test_questions_are_worded_in_many_ways():
    condition = CONDITIONS[0]
    random = Random(4)
    combination = training_combinations(condition)[0]
    for asked in ASKED:
        assert len({make_case(condition, asked, combination, random).question for _ in range(200)}) > 150


@pytest.mark.parametrize(
    ("age", "text"), [(8, "an 8-year-old boy"), (11, "an 11-year-old boy"), (83, "an 83-year-old boy"), (10, "a 10-year-old boy")]
)
def test_an_age_takes_its_article(age, text):
    assert str(Patient(age, "year", "boy")) == text


@pytest.mark.parametrize(
    ("phrases", "text"),
    [
        (("a", "b"), "a and b"),
        (("a", "b", "c"), "a, b and c"),
        (("a and d", "b", "c"), "a and d, b, and c"),
        (("a, d", "b", "c"), "a, d; b; and c"),
    ],
)
def test_phrases_are_listed(phrases, text):
    assert listed(phrases) == text


def test_a_capital_letter_leaves_acronyms_alone():
    assert [capital(text) for text in ("a scan", "pH of 7", "CT", "")] == ["A scan", "pH of 7", "CT", ""]
