"""Rows out of files: JSON, JSONL, CSV and Parquet, read piece by piece, so that a huge file costs no more than what is asked of it.

Every reader yields one dict a row and raises DatasetError naming the file and the row or line. Light at import: PyArrow is loaded on use.
"""

import csv
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from deepdoctor.errors import DatasetError

Row = dict[str, Any]

CHUNK = 1 << 20
LONGEST_ROW = 64 << 20
LARGEST_OBJECT = 256 << 20
# a broken-off number, literal or escape is reported this close to the end of what was read
BROKEN_OFF = 16
_SPACE = re.compile(r"\s*")
# what the structure of JSON is made of; a quote by itself begins a text that is broken off
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,"]', re.DOTALL)
_END = object()


def read_file(path: Path) -> Generator[Row, None, None]:
    """The rows of a file, in order, by its suffix. Raises DatasetError, while reading too, naming file and row."""
    readers = {
        ".json": read_json,
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".csv": read_csv,
        ".tsv": read_csv,
        ".parquet": read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path.name}: cannot read {path.suffix or 'a file without a suffix'}. Give one of: {', '.join(readers)}.")
    try:
        if not path.is_file():
            raise DatasetError(f"There is no file {path}." if not path.exists() else f"{path} is a folder, not a file.")
        if path.stat().st_size == 0:
            raise DatasetError(f"{path.name} is empty.")
        yield from reader(path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except RecursionError:
        raise DatasetError(f"{path.name}: the values are nested too deeply to read. A row needs three texts: one for each part.") from None
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror or error}.") from None


def read_json(path: Path) -> Iterator[Row]:
    """Rows of a JSON array of objects, of {"data": [objects]}, or of one object a line."""
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()[:1]
        file.seek(0)
        if start == "[":
            yield from _array(file, path.name)
        elif start == "{":
            yield from _object_or_lines(file, path)
        elif start == "":
            raise DatasetError(f"{path.name} is empty.")
        else:
            raise DatasetError(f"{path.name} is not JSON: it begins with {start!r}. Expected a list of rows, [{{…}}, {{…}}].")


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; blank lines are skipped."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                where = f"line {number}{_in_column(error, line, 0)}"
                raise DatasetError(f"{path.name}: {where} is not JSON: {_reason(error)}.") from None
            yield _checked(value, path.name, f"line {number}")


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header; separated by commas, semicolons or tabs, whichever the header uses most."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        separator = max(",;\t", key=header.count)
        rows = csv.reader(file, delimiter=separator, strict=True)
        number = 0
        try:
            columns = _header(next(rows, []), path.name)
            for fields in rows:
                if not fields:
                    continue
                number += 1
                if len(fields) != len(columns):
                    has = f"has {_count(len(fields), 'field')}, the header names {_count(len(columns), 'column')}"
                    raise DatasetError(
                        f"{path.name}: row {number} (line {rows.line_num}) {has}. Put texts with separators in double quotes."
                    )
                yield dict(zip(columns, fields, strict=True))
        except csv.Error as error:
            # the module speaks of limits and expectations where nearly always a quote is missing
            where = f"row {number + 1} (up to line {rows.line_num})"
            raise DatasetError(f"{path.name}: {where} is not CSV: {error}. Is a double quote missing, or the file cut off?") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _unrepeated(file.schema_arrow.names, path.name)
            for batch in file.iter_batches(batch_size=1000):
                rows = batch.to_pylist()
                yield from rows
                number += len(rows)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        where = f"after row {number}" if number else "from its start"
        raise DatasetError(f"{path.name} is not a Parquet file that can be read ({where}): {_first_line(error)}.") from None


def _array(file: IO[str], name: str) -> Iterator[Row]:
    """Rows of a JSON array, decoded one at a time from a buffer that grows only while a row is incomplete."""
    decoder = json.JSONDecoder()
    text = file.read(CHUNK)
    at, number = text.index("[") + 1, 0
    while True:
        try:
            value, at = _next_value(decoder, text, at, number)
        except ValueError as error:
            more = ""
            if (broken_off := _broken_off(error, text)) and len(text) - at < LONGEST_ROW:
                more = file.read(max(CHUNK, len(text) - at))
            if not more:
                what = "the file is cut off in or after it" if broken_off else _reason(error)
                raise DatasetError(f"{name}: row {number + 1}{_in_column(error, text, at)} is not JSON: {what}.") from None
            text, at = text[at:] + more, 0
            continue
        if value is _END:
            break
        number += 1
        yield _checked(value, name, f"row {number}")
    if rest := (text[at:] + file.read(CHUNK)).strip():
        raise DatasetError(f"{name}: after the end of the list there is more: {rest[:40]!r}.")


def _next_value(decoder: json.JSONDecoder, text: str, at: int, number: int) -> tuple[Any, int]:
    """The value after `at` and where it ends, or _END; raises JSONDecodeError, at the text's end if it just needs more text."""
    at = _after_space(text, at)
    if text[at : at + 1] == "]":
        return _END, at + 1
    if number:
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("expected a comma or the list's end", text, at)
        at = _after_space(text, at + 1)
    return decoder.raw_decode(text, at)


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _broken_off(error: ValueError, text: str) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - BROKEN_OFF


def _in_column(error: ValueError, text: str, at: int) -> str:
    """ ", column NAME," for the column of the row beginning at `at` whose value could not be read, or nothing."""
    depth, seen, column = 0, "", ""
    for mark in _MARK.finditer(text, at, error.pos + 1 if isinstance(error, json.JSONDecodeError) else len(text)):
        match mark[0]:
            case "{" | "[":
                depth += 1
            case "}" | "]":
                depth -= 1
            case ":" | "," if depth == 1:
                column = seen if mark[0] == ":" else ""
            case '"':
                break
            case word:
                seen = word
    return f", column {json.loads(column)}," if column and depth else ""


def _object_or_lines(file: IO[str], path: Path) -> Iterator[Row]:
    try:
        first = json.loads(file.readline(LONGEST_ROW))
    except ValueError:
        first = None
    if isinstance(first, dict) and not isinstance(first.get("data"), list):
        yield from read_jsonl(path)
        return
    if path.stat().st_size > LARGEST_OBJECT:
        raise DatasetError(f"{path.name} is too large for one JSON object. Write its rows as a list, [{{…}}, {{…}}], or as JSONL.")
    file.seek(0)
    try:
        whole = json.load(file)
    except ValueError as error:
        raise DatasetError(f"{path.name} is not JSON, or is cut off: {_reason(error, line=True)}.") from None
    rows = whole.get("data")
    if not isinstance(rows, list):
        found = ", ".join(list(whole)[:8]) or "nothing"
        raise DatasetError(f'{path.name} is one JSON object without a list of rows under "data"; it has: {found}.')
    for number, row in enumerate(rows, start=1):
        yield _checked(row, path.name, f"row {number}")


def _checked(value: Any, name: str, where: str) -> Row:
    if isinstance(value, dict):
        return value
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    raise DatasetError(f'{name}: {where} is {kinds[type(value)]}, expected an object with named columns, such as {{"Question": …}}.')


def _header(fields: list[str], name: str) -> list[str]:
    columns = [field.strip() or f"column {number}" for number, field in enumerate(fields, start=1)]
    if not columns:
        raise DatasetError(f"{name}: the first line must name the columns, but it is blank.")
    _unrepeated(columns, name)
    return columns


def _unrepeated(columns: list[str], name: str) -> None:
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise DatasetError(f"{name}: several columns are called {', '.join(repeated)}. Rename them, so that each can be told apart.")


def _not_utf8(path: Path) -> DatasetError:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return DatasetError(f"{path.name} is UTF-16 text. Save it as UTF-8 and load it again.")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number} has the byte 0x{line[error.start]:02x} at position {error.start + 1}"
                return DatasetError(
                    f"{path.name} is not UTF-8 text: {where}. Save it as UTF-8 (it may be Latin-1 or Windows-1252) and load it again."
                )
    return DatasetError(f"{path.name} is not UTF-8 text. Save it as UTF-8 and load it again.")


def _reason(error: ValueError, *, line: bool = False) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return _first_line(error)
    return error.msg + (f" (line {error.lineno}, column {error.colno})" if line else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
