"""Files become rows, and every broken file says what is wrong and where."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from deepdoctor import readers
from deepdoctor.errors import DatasetError

ROWS = [
    {"Question": "Why “gout”?", "Complex_CoT": "Urate.\nCrystals, then.", "Response": "Crystals."},
    {"Question": "Was ist Gicht?", "Complex_CoT": 'He said "urate", so…', "Response": "Ein Überschuss an Harnsäure 🦶."},
]


def read(path: Path) -> list[dict]:
    return list(readers.read_file(path))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DatasetError) as caught:
        read(path)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message
    return message


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json_list_as_the_dataset_is_published(tmp_path: Path, indent: int | None, bom: str) -> None:
    file = written(tmp_path / "medical_o1_sft.json", bom + json.dumps(ROWS, indent=indent, ensure_ascii=False))
    assert read(file) == ROWS


def test_json_rows_across_the_borders_of_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK", 7)
    rows = [{"n": 12345678, "t": 'a\\u0041 "b" é', "x": [True, None, -1.5e10]}] * 5
    assert read(written(tmp_path / "rows.json", json.dumps(rows, indent=1))) == rows


def test_json_object_with_data_list(tmp_path: Path) -> None:
    assert read(written(tmp_path / "rows.json", json.dumps({"version": 1, "data": ROWS}))) == ROWS
    assert read(written(tmp_path / "rows.json", json.dumps({"data": ROWS, "more": [1]}, indent=2))) == ROWS


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    assert read(written(tmp_path / "rows.json", "\n".join(map(json.dumps, ROWS)))) == ROWS


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_jsonl_with_blank_lines(tmp_path: Path, bom: str) -> None:
    assert read(written(tmp_path / "rows.jsonl", bom + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\n\n")) == ROWS


def test_jsonl_names_the_bad_line(tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0]), json.dumps(ROWS[1]), '{"Question": "cut', json.dumps(ROWS[0])]
    refused(written(tmp_path / "rows.jsonl", "\n".join(lines)), "line 3")
    lines[2] = '["a", "b"]'
    refused(written(tmp_path / "rows.jsonl", "\n".join(lines)), "line 3", "a list")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_with_quoted_newlines_and_separators(tmp_path: Path, separator: str, bom: str) -> None:
    quoted = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in ROWS]
    text = bom + "\r\n".join(separator.join(fields) for fields in [list(ROWS[0]), *quoted]) + "\r\n"
    assert read(written(tmp_path / "rows.csv", text)) == ROWS


def test_csv_with_an_index_column_without_a_name(tmp_path: Path) -> None:
    assert read(written(tmp_path / "rows.csv", "x,,y\n1,2,3\n")) == [{"x": "1", "column 2": "2", "y": "3"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n1,2\n", ["row 2", "line 3", "2 fields", "3 columns"]),
        ("a,b\n1,2,3\n", ["row 1", "3 fields"]),
        ('a,b\n1,2\n3,"never closed\n', ["row 2", "double quote"]),
        ("a,a,b\n1,2,3\n", ["several columns", "a"]),
        ('a\n"' + "x" * 140_000 + '"\n', ["row 1", "limit"]),
        ("\n1,2\n", ["first line"]),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, words: list[str]) -> None:
    refused(written(tmp_path / "rows.csv", text), *words)


def test_parquet(tmp_path: Path) -> None:
    rows = [*ROWS, {"Question": None, "Complex_CoT": "", "Response": "x"}] * 700
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == rows


def test_damaged_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 100), tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    refused(written(tmp_path / "cut.parquet", whole[:-40]), "not a Parquet file")
    refused(written(tmp_path / "text.parquet", "Question,Response"), "not a Parquet file")
    refused(written(tmp_path / "zeroes.parquet", whole[:4] + bytes(300) + whole[304:]), "not a Parquet file")


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["Question", "Question"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    refused(tmp_path / "rows.parquet", "several columns", "Question")


WHOLE = json.dumps(ROWS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WHOLE[:-1], ["row 3", "cut off"]),
        (WHOLE[:-20], ["row 2", "column Response", "cut off"]),
        (WHOLE[: WHOLE.index("Crystals")], ["row 1, column Complex_CoT", "cut off"]),
        ("[", ["row 1", "cut off"]),
        ('[{"a": "b"} {"a": "c"}' + " " * 99 + "]", ["row 2", "comma"]),
        ('[{"a": "b"}, {"a": c}' + " " * 99 + "]", ["row 2, column a, is not JSON"]),
        ('[{"a": "says {\\"b\\": 1}, then', ["row 1, column a,", "cut off"]),
        ('[{"a": {"b": [1, 2]}, "c": {"d": "e', ["row 1, column c,", "cut off"]),
        ('[{"a": "b", "c', ["row 1 is", "cut off"]),
        ('[{"a": "b"}, 7]', ["row 2", "a number"]),
        ('[{"a": "b"}, ["c"]]', ["row 2", "a list"]),
        ('[{"a": "b"}] trailing', ["after the end", "trailing"]),
        ('{"Question": {"0": "x"},\n "Response": {"0": "y"}}', ["data", "Question, Response"]),
        ('{"data": [{"a": "b"}', ["cut off"]),
        ('{"data": [{"a": "b"}, null]}', ["row 2", "null"]),
        ("Question,Response", ["not JSON"]),
        ("  \n ", ["empty"]),
        ("[" + "[" * 100_000, ["nested too deeply"]),
        ('[{"n": ' + "1" * 5000 + "}]", ["row 1"]),
    ],
)
def test_bad_json(tmp_path: Path, text: str, words: list[str]) -> None:
    refused(written(tmp_path / "rows.json", text), *words)


def test_bad_jsonl_names_line_and_column(tmp_path: Path) -> None:
    refused(written(tmp_path / "rows.jsonl", '{"a": "b"}\n{"a": "b", "c": "d'), "line 2, column c, is not JSON")


def test_an_endless_row_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK", 10)
    monkeypatch.setattr(readers, "LONGEST_ROW", 100)
    refused(written(tmp_path / "rows.json", '[{"a": "' + "x" * 10_000), "row 1")


def test_an_object_too_large_to_hold_says_what_to_write_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_OBJECT", 10)
    refused(written(tmp_path / "rows.json", json.dumps({"data": ROWS})), "JSONL")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_latin_1_names_the_line(tmp_path: Path, suffix: str) -> None:
    text = {"json": '[{"a": "b"},\n {"a": "café"}]', "jsonl": '{"a": "b"}\n{"a": "café"}', "csv": "a,b\nx,café\n"}[suffix]
    refused(written(tmp_path / f"rows.{suffix}", text.encode("latin-1")), "line 2", "0xe9", "UTF-8")


def test_utf_16_is_recognised(tmp_path: Path) -> None:
    refused(written(tmp_path / "rows.csv", "a,b\n1,2\n".encode("utf-16")), "UTF-16")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    refused(written(tmp_path / f"rows.{suffix}", ""), "empty")


def test_missing_file_folder_and_unknown_kind(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "no file")
    (tmp_path / "folder.json").mkdir()
    refused(tmp_path / "folder.json", "folder")
    refused(written(tmp_path / "rows.xlsx", "x"), ".xlsx", ".parquet")


def test_reading_the_first_row_does_not_read_on(tmp_path: Path) -> None:
    first = next(readers.read_file(written(tmp_path / "rows.json", WHOLE[:-30])))
    assert first == ROWS[0]
