"""The two voices: same facts, no sentence in common, and the look that tuning is meant to change."""

import re
from random import Random
from statistics import median

import pytest

from deepdoctor.nano import base_voice, dataset_voice
from deepdoctor.nano.base_voice import in_base_voice
from deepdoctor.nano.cases import random_case, training_combinations
from deepdoctor.nano.dataset_voice import in_dataset_voice
from deepdoctor.nano.knowledge import load_conditions

CONDITIONS = load_conditions()
CASES = [random_case(CONDITIONS, Random(seed)) for seed in range(600)]
BASE = [in_base_voice(case, Random(seed)) for seed, case in enumerate(CASES)]
DATASET = [in_dataset_voice(case, Random(seed)) for seed, case in enumerate(CASES)]


def templates(module) -> set[str]:
    """Every template text of a voice."""
    found: set[str] = set()
    waiting = [value for name, value in vars(module).items() if name.isupper() and name != "EOS"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, tuple):
            waiting += value
    return found


def sentences(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"(?<=[.?!:])\s+|\n", text) if len(part.split()) > 2}


@pytest.mark.parametrize("examples", [BASE, DATASET])
def test_the_response_names_the_key_term(examples):
    missing = [
        case.question for case, example in zip(CASES, examples, strict=True) if case.key_term.lower() not in example.response.lower()
    ]
    assert missing == []


@pytest.mark.parametrize("examples", [BASE, DATASET])
def test_the_reasoning_names_condition_and_findings(examples):
    for case, example in zip(CASES, examples, strict=True):
        assert case.condition.name.lower() in example.reasoning.lower()
        assert all(finding in example.reasoning for finding in case.findings)


@pytest.mark.parametrize("examples", [BASE, DATASET])
def test_only_shown_findings_are_reasoned_from(examples):
    for case, example in zip(CASES, examples, strict=True):
        told = [case.condition.result, case.condition.mechanism, *(each.reason for each in case.condition.differentials), *case.findings]
        hidden = set(case.condition.findings) - set(case.findings)
        text = f"{example.reasoning} {example.response}"
        assert not [finding for finding in hidden if finding in text and not any(finding in phrase for phrase in told)]


def test_base_answers_have_headings_and_bullets_over_several_lines():
    for example in BASE:
        assert re.search(r"^\*\*.+\*\*$", example.response, re.M)
        assert re.search(r"^- ", example.response, re.M)
        assert "Wait" in example.reasoning


def test_dataset_answers_are_one_plain_paragraph():
    for example in DATASET:
        assert not re.search(r"[\n*•]|^- ", example.response)
        assert "Wait" not in example.reasoning


def test_dataset_thoughts_are_less_than_sixty_percent_as_long():
    base, dataset = (median(len(example.reasoning.split()) for example in examples) for examples in (BASE, DATASET))
    assert dataset < 0.6 * base


def test_the_voices_share_no_template_and_no_sentence():
    assert not templates(base_voice) & templates(dataset_voice)
    for base, dataset in zip(BASE, DATASET, strict=True):
        assert not sentences(base.reasoning) & sentences(dataset.reasoning)
        assert not sentences(base.response) & sentences(dataset.response)


@pytest.mark.parametrize("voice", [in_base_voice, in_dataset_voice])
def test_texts_read_cleanly(voice):
    for condition in CONDITIONS:
        case = random_case([condition], Random(condition.name))
        example = voice(case, Random(condition.name))
        text = f"{example.reasoning}\n{example.response}"
        assert not re.search(r"[{}]|  |\ba (?:a|an|the) |\.\.|,,| ,|\?\.", text)
        assert case.combination in training_combinations(condition)
