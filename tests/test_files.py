"""Writing that survives crashes: readers see the old file or the new one, and torn lines harm nobody."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.config import Settings
from deepdoctor.files import append_row, holds_runs, read_rows, write_json, write_text


def test_a_file_is_replaced_with_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "note.txt"
    write_text(file, "one ü\n")
    write_text(file, "two\n")
    assert file.read_text(encoding="utf-8") == "two\n"
    assert list(file.parent.iterdir()) == [file]


def test_who_may_read_a_file_stays_when_it_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.touch()
    file.chmod(0o640)
    write_text(file, "two\n")
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "a lone surrogate cannot be written: \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": {1, 2}})
    assert json.loads(file.read_text()) == {"a": 1}


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"unit": "µg", "rows": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "µg" in text
    assert text.endswith("}\n")
    assert text.count("\n") > 2


def test_rows_come_back_in_order_and_only_new_ones_after(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "rows.jsonl"
    assert read_rows(file) == ([], 0)
    append_row(file, {"step": 1})
    rows, place = read_rows(file)
    assert rows == [{"step": 1}]
    assert place == file.stat().st_size
    assert read_rows(file, place) == ([], place)
    append_row(file, {"step": 2, "text": "zwölf\nlines"})
    assert read_rows(file, place)[0] == [{"step": 2, "text": "zwölf\nlines"}]


def test_a_row_being_written_waits_until_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st')
    rows, place = read_rows(file)
    assert rows == [{"step": 1}]
    with file.open("ab") as writer:
        writer.write(b'ep": 2}\n')
    assert read_rows(file, place)[0] == [{"step": 2}]


def test_a_row_torn_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"step": 1}\n{"text": "zwö'.encode()[:-1])
    append_row(file, {"step": 3})
    append_row(file, {"step": 4})
    assert [row["step"] for row in read_rows(file)[0]] == [1, 3, 4]


@pytest.mark.parametrize("line", [b"", b"   ", b"nonsense", b"[1, 2]", b"3", b"null", b"\xff\xfe\x00"])
def test_lines_that_are_no_rows_are_skipped(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    rows, place = read_rows(file)
    assert rows == [{"step": 1}, {"step": 2}]
    assert place == file.stat().st_size


@pytest.mark.parametrize("content", [b"", b"\n", b"torn"])
def test_files_without_rows_have_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert read_rows(file) == ([], content.count(b"\n"))


def test_every_value_of_a_row_survives(tmp_path: Path) -> None:
    row: dict[str, Any] = {"a": None, "b": True, "c": 1e-9, "d": '\u2028 \\ " {x}', "e": [1, {"f": 2}]}
    append_row(tmp_path / "rows.jsonl", row)
    assert read_rows(tmp_path / "rows.jsonl")[0] == [row]


def test_only_a_mounted_disk_that_can_be_appended_to_holds_runs(tmp_path: Path) -> None:
    assert not holds_runs(tmp_path), "a folder of the disk that a restart empties"
    assert not holds_runs(tmp_path / "missing")
    assert not Settings(data_dir=Path("/not-mounted/deepdoctor")).data_lasts


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="needs a second disk to write to; Linux has one in memory")
def test_a_mounted_disk_holds_runs_and_is_left_as_it_was() -> None:
    before = sorted(Path("/dev/shm").iterdir())
    assert holds_runs(Path("/dev/shm"))
    assert sorted(Path("/dev/shm").iterdir()) == before
    assert Settings(data_dir=Path("/dev/shm/deepdoctor/runs")).data_lasts


@pytest.mark.skipif(not Path("/proc").is_mount(), reason="needs a mounted disk that refuses files")
def test_a_disk_that_refuses_files_holds_no_runs() -> None:
    assert not holds_runs(Path("/proc"))
