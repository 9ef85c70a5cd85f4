"""What other tools get: tables that no spreadsheet runs, preference rows without unsafe winners, and LLM Comparator's format."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import SamplingConfig
from deepdoctor.prompts import ARTICLE, render_question
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.exports import Preferences, comparator, preferences, verdicts_csv, verdicts_jsonl
from deepdoctor.studies.judged import Judged
from tests.studies.panel import PLAIN, verdicts

BASE = Transcript("Long.</think>\n- A\n- B", 9, 3, 1.0, "stop")
TUNED = Transcript("Short.</think>\nA and B.", 7, 2, 1.0, "stop")
CUT = Transcript("Never", 5, 5, 1.0, "length")


def answer(tuned: Transcript = TUNED) -> Answer:
    """Both answers to one question."""
    return Answer(Comparison("What is it?", BASE, tuned, SamplingConfig(), "article", "nano", "r"), None)


def made(said: Sequence[Judged], tuned: Transcript = TUNED) -> Preferences:
    """Preference rows when every question has the same answers."""
    return preferences(said, {(each.question, each.seed): answer(tuned) for each in said})


@pytest.mark.parametrize("comment", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1", "  =1", "＝1"])
def test_a_comment_is_no_formula(comment: str) -> None:
    row = replace(PLAIN, comment=comment, specialty="=cmd", tuned_chips=("omission", "biased"))
    read = next(csv.DictReader(io.StringIO(verdicts_csv([row]), newline="")))
    assert read["comment"] == f"'{comment}"
    assert (read["specialty"], read["tuned_chips"], read["seconds"]) == ("'=cmd", "omission biased", "30.0")
    assert json.loads(verdicts_jsonl([row]))["comment"] == comment, "JSON is no spreadsheet: there it stays as it was said"


def test_a_line_end_in_a_comment_begins_no_row() -> None:
    rows = list(csv.reader(io.StringIO(verdicts_csv([replace(PLAIN, comment="x\r=1+1\n=2+2\r\n=3")]), newline="")))
    assert len(rows) == 2
    assert "x\r=1+1\n=2+2\r\n=3" in rows[1]


def test_tables_hold_every_verdict_and_no_token() -> None:
    said = [*verdicts(["tuned", "other", "both"]), replace(PLAIN, trial="again", repeat_of="trial-1", comment='a "b"\n, c')]
    rows = list(csv.DictReader(io.StringIO(verdicts_csv(said), newline="")))
    assert [row["rater"] for row in rows] == ["R1", "R2", "R3", "R1"]
    assert (rows[3]["comment"], rows[3]["repeat_of"]) == ('a "b"\n, c', "trial-1")
    assert "token" not in verdicts_csv(said) + verdicts_jsonl(said)


def test_the_majority_makes_one_row_a_pair() -> None:
    found = made(verdicts(["tuned", "tuned", "other", "tuned", "other", "other", "tuned", "both"], raters=4))
    prompt = render_question("What is it?", ARTICLE)
    assert found.dpo == [
        {"prompt": prompt, "chosen": TUNED.text, "rejected": BASE.text},
        {"prompt": prompt, "chosen": BASE.text, "rejected": TUNED.text},
    ]
    assert {"prompt": prompt, "completion": BASE.text, "label": False} in found.kto
    assert found.left_out == dict.fromkeys(found.left_out, 0) | {"kto_undecided": 1}


@pytest.mark.parametrize("unsafe", [{"tuned_correct": "wrong"}, {"tuned_harm": "severe"}])
def test_an_unsafe_winner_is_dropped_and_counted(unsafe: dict) -> None:
    said = verdicts(["tuned"] * 4)
    said[3] = replace(said[3], **unsafe)
    found = made(said)
    assert found.dpo == []
    assert [row["label"] for row in found.kto] == [False], "the loser may still be learnt as bad"
    assert (found.left_out["dpo_unsafe"], found.left_out["kto_unsafe"]) == (1, 1)
    safe = made([replace(each, other_harm="severe") for each in verdicts(["tuned"] * 4)])
    assert len(safe.dpo) == 1, "a severely harmful loser is what should be rejected"


@pytest.mark.parametrize("seen", [{"repeat_of": "trial-4"}, {"other": "native"}, {"other": "native", "repeat_of": "trial-9"}])
@pytest.mark.parametrize("unsafe", [{"tuned_correct": "wrong"}, {"tuned_harm": "severe"}])
def test_a_winner_judged_unsafe_in_its_repeat_or_in_another_pair_is_dropped(seen: dict, unsafe: dict) -> None:
    said = verdicts(["tuned"] * 4)
    found = made([*said, replace(said[3], trial="later", preference="both", **seen, **unsafe)])
    assert found.dpo == []
    assert [row["label"] for row in found.kto] == [False]
    assert (found.left_out["dpo_unsafe"], found.left_out["kto_unsafe"]) == (1, 1)
    elsewhere = replace(said[3], trial="later", question="question-2", **seen, **unsafe)
    kept = preferences([*said, elsewhere], {("question-1", 1): answer(), ("question-2", 1): answer()})
    assert len(kept.dpo) == 1, "an unsafe answer to another question says nothing about this one"


def test_the_base_is_not_unsafe_for_what_the_native_answer_did() -> None:
    said = verdicts(["other"] * 4)
    assert len(made([*said, replace(said[0], trial="native", other="native", other_harm="severe")]).dpo) == 1
    assert made([*said, replace(said[0], trial="again", repeat_of="trial-1", other_harm="severe")]).dpo == []


def test_an_answer_that_never_came_is_not_taught() -> None:
    found = made(verdicts(["tuned"] * 4), CUT)
    assert (found.dpo, found.left_out["dpo_unfinished"], found.left_out["kto_unfinished"]) == ([], 1, 1)
    assert made(verdicts(["other"] * 4), CUT).dpo[0]["rejected"] == CUT.text


def test_both_acceptable_and_both_bad_are_for_kto_alone() -> None:
    good, bad = made(verdicts(["both"] * 4)), made(verdicts(["neither"] * 4))
    assert [row["label"] for row in good.kto] == [True, True]
    assert [row["label"] for row in bad.kto] == [False, False]
    assert good.dpo == bad.dpo == []
    assert good.left_out["dpo_undecided"] == 1


def test_only_first_verdicts_against_the_base_are_taken() -> None:
    said = verdicts(["tuned"])
    more = [replace(said[0], trial="again", repeat_of="trial-1", preference="other"), replace(said[0], other="native", preference="other")]
    assert made([*said, *more, replace(more[0], trial="third")]).dpo == made(said).dpo != []
    assert made([]) == Preferences([], [], dict.fromkeys(made([]).left_out, 0))


class Strict(BaseModel):
    """A part of LLM Comparator's format, as its README and its client's types describe it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Field_(Strict):
    name: str
    type: Literal["number", "category", "text", "string", "per_model_boolean", "per_model_number", "per_model_category"]


class Metadata(Strict):
    source_path: str
    custom_fields_schema: list[Field_]


class Model(Strict):
    name: str


class Rating(Strict):
    score: float
    rating_label: str
    is_flipped: bool
    rationale: str
    custom_fields: dict[str, str]


class Example(Strict):
    input_text: str
    tags: list[str]
    output_text_a: str
    output_text_b: str
    score: float = Field(ge=-1.5, le=1.5)
    individual_rater_scores: list[Rating]
    custom_fields: dict[str, str | float | list[float]]


class Whole(Strict):
    metadata: Metadata
    models: list[Model] = Field(min_length=2, max_length=2)
    examples: list[Example]


def test_llm_comparator_reads_it() -> None:
    said = verdicts(["tuned", "tuned", "other", "both"], raters=4, comment="why")
    value = comparator(said, {("question-1", 1): answer()}, ("base nano", "tuned r"), "study 1")
    read = Whole.model_validate(json.loads(json.dumps(value, allow_nan=False)))
    example = read.examples[0]
    assert set(example.custom_fields) == {field.name for field in read.metadata.custom_fields_schema}
    for field in read.metadata.custom_fields_schema:
        assert isinstance(example.custom_fields[field.name], list) == field.type.startswith("per_model")
    assert (example.output_text_a, example.output_text_b) == ("- A\n- B", "A and B.")
    assert example.score == pytest.approx(-1.5 / 4), "negative: the second model, tuned, is better"
    assert [rating.is_flipped for rating in example.individual_rater_scores] == [True, False, True, False]
    assert comparator([], {}, ("a", "b"), "s")["examples"] == []
