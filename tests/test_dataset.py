"""Rows become examples: sources, column mapping, held-out cases and the split. Broken files are in test_readers, the Hub in test_hub."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from deepdoctor import dataset
from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import Columns, Example, guess_columns, held_out_examples, load_rows, map_columns, split, to_examples
from deepdoctor.errors import DatasetError

PUBLISHED = ["Question", "Complex_CoT", "Response"]
ROWS = [{"Question": f"q{n}", "Complex_CoT": f"c{n}", "Response": f"r{n}"} for n in range(6)]


def file_config(path: Path, rows: list | None = None, **changes: Any) -> DatasetConfig:
    if rows is not None:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return DatasetConfig(source="file", path=str(path), **changes)


def test_import_is_light() -> None:
    heavy = "{'pandas', 'pyarrow', 'datasets', 'huggingface_hub', 'numpy', 'torch', 'gradio', 'pydantic', 'tokenizers'}"
    program = (
        f"import sys, deepdoctor.dataset, deepdoctor.checks, deepdoctor.readers, deepdoctor.hub; print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_bundled_rows_become_examples() -> None:
    read = load_rows(DatasetConfig(first_rows=20))
    assert read.columns == PUBLISHED
    assert len(read.rows) == 20
    assert "bundled" in read.source
    examples = to_examples(read.rows, map_columns(read.columns))
    assert all(example.question and example.reasoning and example.response for example in examples)


def test_a_file_and_its_first_rows(tmp_path: Path) -> None:
    whole = load_rows(file_config(tmp_path / "medical_o1_sft.json", ROWS, first_rows=None))
    assert whole.rows == ROWS
    assert whole.columns == PUBLISHED
    first = load_rows(file_config(tmp_path / "medical_o1_sft.json", first_rows=2))
    assert first.rows == ROWS[:2]
    assert first.source == "medical_o1_sft.json, first 2 rows"
    for more in (len(ROWS), 500):
        assert load_rows(file_config(tmp_path / "medical_o1_sft.json", first_rows=more)).source == "medical_o1_sft.json"
    assert first.fingerprint != whole.fingerprint


def test_the_hub_is_asked_through_the_loader_and_named_with_its_revision() -> None:
    config = DatasetConfig(source="hub", name="owner/cases", revision="abc123", first_rows=3)
    read = load_rows(config, load_hub=lambda *_args, **_named: iter(ROWS))
    assert read.rows == ROWS[:3]
    assert read.source == "owner/cases, en, train, revision abc123, first 3 rows"


def test_the_fingerprint_is_that_of_the_values_not_of_the_kind_of_file(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "Note": None}, {**ROWS[1], "Note": "é"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(dict(reversed(row.items()))) for row in rows))
    (tmp_path / "a.csv").write_text("Question,Complex_CoT,Response,Note\nq0,c0,r0,\nq1,c1,r1,é\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    prints = {load_rows(file_config(tmp_path / f"a.{kind}")).fingerprint for kind in ("json", "jsonl", "csv", "parquet")}
    assert len(prints) == 1
    assert prints != {load_rows(file_config(tmp_path / "b.json", list(reversed(rows)))).fingerprint}


def test_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    assert load_rows(file_config(tmp_path / "a.json", [{"b": "1"}, {"a": "2", "b": "3"}])).columns == ["b", "a"]


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PROGRESS_ROWS", 4)
    told: list[str] = []
    load_rows(file_config(tmp_path / "a.json", ROWS), told.append)
    assert told == ["Reading a.json …", "4 rows read …", "6 rows read"]


def test_too_many_rows_stop_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "LARGEST", 5)
    config = file_config(tmp_path / "a.json", ROWS, first_rows=None)
    with pytest.raises(DatasetError, match=r"a\.json has more than 5 rows\. Set first rows"):
        load_rows(config)
    assert len(load_rows(config.changed(first_rows=5)).rows) == 5
    with pytest.raises(DatasetError, match="At most 5 rows"):
        load_rows(config.changed(first_rows=6))


def test_a_million_rows_are_not_read_to_their_end() -> None:
    taken = []

    def endless(*_args: Any, **_named: Any) -> Any:
        class Endless:
            def __len__(self) -> int:
                return 10

            def __iter__(self) -> Any:
                for number in range(1_000_000):
                    taken.append(number)
                    yield {"n": "x"}

        return Endless()

    with pytest.raises(DatasetError, match="200,000"):
        load_rows(DatasetConfig(source="hub", name="owner/cases", first_rows=None), load_hub=endless)
    assert len(taken) == dataset.LARGEST + 1


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[]"), ("a.json", '{"data": []}'), ("a.csv", "Question,Response\n"), ("a.jsonl", "\n\n")]
)
def test_no_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=f"{name} has no rows"):
        load_rows(file_config(tmp_path / name))


def test_no_file_chosen() -> None:
    with pytest.raises(DatasetError, match="Choose a file first"):
        load_rows(DatasetConfig(source="file"))


def test_half_a_character_is_refused_with_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"Question": "fine"}, {"Question": "broken \\ud83d"}]')
    with pytest.raises(DatasetError, match=r"a\.json: row 2, column 'Question'"):
        load_rows(file_config(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("columns", "guess"),
    [
        (PUBLISHED, PUBLISHED),
        (["id", "instruction", "input", "chain_of_thought", "output"], ["instruction", "chain_of_thought", "output"]),
        (["PROMPT", "Rationale", "Completion"], ["PROMPT", "Rationale", "Completion"]),
        (["query", "Final Answer", "thinking"], ["query", "thinking", "Final Answer"]),
        (["answer", "explanation", "question", "response"], ["question", "explanation", "response"]),
        (["complex-cot", "question", "question_id", "response"], ["question", "complex-cot", "response"]),
    ],
)
def test_guessed_columns(columns: list[str], guess: list[str]) -> None:
    assert list(guess_columns(columns).values()) == guess
    assert map_columns(columns) == Columns(*guess)


def test_a_part_without_a_likely_column_is_not_guessed() -> None:
    assert guess_columns(["question", "label"]) == {"question": "question"}
    with pytest.raises(DatasetError, match=r"Which column is the reasoning.*question, label"):
        map_columns(["question", "label"])


def test_chosen_columns_win_over_the_guess() -> None:
    columns = ["question", "reasoning", "response", "case_text"]
    assert map_columns(columns, DatasetConfig(question_column="case_text")) == Columns("case_text", "reasoning", "response")
    # a column chosen for one part is not guessed for another
    swapped = map_columns(["answer", "output", "why", "q"], DatasetConfig(question_column="output", reasoning_column="why"))
    assert swapped == Columns("output", "why", "answer")


def test_a_chosen_column_must_exist_and_serve_one_part() -> None:
    with pytest.raises(DatasetError, match=r"no column 'Frage' for the question.*Question, Complex_CoT, Response"):
        map_columns(PUBLISHED, DatasetConfig(question_column="Frage"))
    with pytest.raises(DatasetError, match="'Response' is chosen for more than one part"):
        map_columns(PUBLISHED, DatasetConfig(reasoning_column="Response", response_column="Response"))


def test_examples_are_stripped_and_missing_values_are_empty() -> None:
    rows = [{"q": "  why?\n", "c": None, "r": float("nan")}, {"q": "x"}]
    assert to_examples(rows, Columns("q", "c", "r")) == [Example("why?", "", ""), Example("x", "", "")]


@pytest.mark.parametrize(("value", "kind"), [(["a"], "list"), ({"a": "b"}, "dict"), (7, "int"), (True, "bool"), (1.5, "float")])
def test_anything_but_text_is_refused_with_row_and_column(value: Any, kind: str) -> None:
    with pytest.raises(DatasetError, match=f"Row 2, column 'r' is not text but {kind}"):
        to_examples([{"q": "a", "c": "b", "r": "c"}, {"q": "a", "c": "b", "r": value}], Columns("q", "c", "r"))


def test_nested_parquet_values_are_refused_with_row_and_column(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "Response": None}, {**ROWS[1], "Response": {"text": "x"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = load_rows(file_config(tmp_path / "a.parquet"))
    with pytest.raises(DatasetError, match="Row 2, column 'Response' is not text but dict"):
        to_examples(read.rows, map_columns(read.columns))


def test_bundled_held_out_cases_are_not_training_rows() -> None:
    cases = held_out_examples()
    assert len(cases) >= 100
    assert all(case.key_term and case.condition and case.specialty and case.asked for case in cases)
    training = {row["Question"] for row in load_rows(DatasetConfig(first_rows=None)).rows}
    assert not training & {case.example.question for case in cases}


def test_damaged_held_out_cases(tmp_path: Path) -> None:
    (tmp_path / "held.json").write_text(json.dumps([{**ROWS[0], "Condition": "gout"}]))
    with pytest.raises(DatasetError, match=r"held\.json: row 1 lacks one of"):
        held_out_examples(tmp_path / "held.json")


EXAMPLES = [Example(f"q{n}", "c", "r") for n in range(50)]


def test_split_keeps_order_and_depends_only_on_the_seed() -> None:
    training, held_out = split(EXAMPLES, 10, seed=1)
    assert (len(training), len(held_out)) == (40, 10)
    for part in (training, held_out):
        assert part == sorted(part, key=EXAMPLES.index)
    assert {*training, *held_out} == set(EXAMPLES)
    assert split(EXAMPLES, 10, seed=1) == (training, held_out)
    assert split(EXAMPLES, 10, seed=2) != (training, held_out)


def test_split_of_nothing_and_of_everything() -> None:
    assert split(EXAMPLES, 0, seed=1) == (EXAMPLES, [])
    with pytest.raises(DatasetError, match="Of 50 rows, 50 held out leave none"):
        split(EXAMPLES, 50, seed=1)
