"""Rows become examples: read from the bundle, a file or the Hub; columns mapped; split. Light at import: only the standard library."""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from deepdoctor.errors import DatasetError

if TYPE_CHECKING:
    from deepdoctor.config import DatasetConfig

LARGEST = 200_000
PROGRESS_ROWS = 5_000
TEACHING_CASES = Path(__file__).parent / "nano" / "teaching_cases.json"
HELD_OUT_CASES = Path(__file__).parent / "nano" / "held_out_cases.json"
PARTS = ("question", "reasoning", "response")
SYNONYMS = {
    "question": ("question", "prompt", "instruction", "query", "input", "problem", "user"),
    "reasoning": (
        *("complexcot", "cot", "reasoning", "chainofthought", "chainofthoughts", "rationale"),
        *("thought", "thoughts", "thinking", "explanation", "reasoningcontent", "exp"),
    ),
    "response": ("response", "finalanswer", "answer", "output", "completion", "target", "assistant"),
}


@dataclass(frozen=True)
class Example:
    """One teaching case: a question, the reasoning it deserves, and the response."""

    question: str
    reasoning: str
    response: str


@dataclass(frozen=True)
class Columns:
    """Which column holds which part of an example."""

    question: str
    reasoning: str
    response: str


@dataclass(frozen=True)
class Rows:
    """Rows as they were read. `columns` are all their names in order of appearance; a row may lack some.

    `source` describes where they came from, for people. `fingerprint` is the SHA-256 of their filled-in values: the same rows
    have the same one whichever kind of file carried them.
    """

    columns: list[str]
    rows: list[dict[str, Any]]
    source: str
    fingerprint: str


@dataclass(frozen=True)
class HeldOutCase:
    """A bundled case that no training row shows: what is `asked` about which condition, and the term a right answer names."""

    example: Example
    condition: str
    specialty: str
    asked: str
    key_term: str


def load_rows(
    config: "DatasetConfig", on_progress: Callable[[str], None] | None = None, load_hub: Callable[..., Any] | None = None
) -> Rows:
    """Read the rows that `config` names. `on_progress` is told in words how far it is; `load_hub` replaces `datasets.load_dataset`.

    Raises DatasetError naming the source, and row and column where one is to blame; then nothing was kept.
    """
    tell = on_progress or (lambda _message: None)
    if config.first_rows and config.first_rows > LARGEST:
        raise DatasetError(f"At most {LARGEST:,} rows can be read; first rows asks for {config.first_rows:,}.")
    name, source = _named(config)
    tell(f"Reading {name} …")
    with closing(_reader(config, load_hub)) as reader:
        rows = list(_counted(islice(reader, config.first_rows or LARGEST + 1), tell))
        if len(rows) == config.first_rows and _has_more(config, reader):
            source += ", first row" if len(rows) == 1 else f", first {len(rows):,} rows"
    if len(rows) > LARGEST:
        raise DatasetError(f"{name} has more than {LARGEST:,} rows. Set first rows to read only a part.")
    if not rows:
        raise DatasetError(f"{name} has no rows.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    fingerprint = fingerprint_of(rows, name)
    tell(f"{_rows(len(rows))} read")
    return Rows(columns, rows, source, fingerprint)


def fingerprint_of(rows: Iterable[dict[str, Any]], name: str = "The dataset") -> str:
    """SHA-256 (hex) over the rows' filled-in values, in order. Raises DatasetError for text that is not valid Unicode."""
    digest = hashlib.sha256()
    for number, row in enumerate(rows, start=1):
        filled = {column: value for column, value in row.items() if not _is_missing(value) and value != ""}
        try:
            digest.update(json.dumps(filled, ensure_ascii=False, sort_keys=True, default=_plain).encode("utf-8") + b"\n")
        except UnicodeEncodeError:
            column = next(column for column, value in row.items() if _has_half_character(value) or _has_half_character(column))
            raise DatasetError(
                f"{name}: row {number}, column {column!a} holds half of a character (a lone surrogate). Repair that text."
            ) from None
    return digest.hexdigest()


def guess_columns(columns: Iterable[str]) -> dict[str, str]:
    """The likely column of each part, by its name. Parts without a likely column are absent."""
    columns = list(columns)
    folded = {_folded(column): column for column in reversed(columns)}
    return {part: next(folded[name] for name in names if name in folded) for part, names in SYNONYMS.items() if set(names) & set(folded)}


def map_columns(columns: Iterable[str], config: "DatasetConfig | None" = None) -> Columns:
    """The column of each part: as chosen in `config`, guessed where nothing is chosen.

    Raises DatasetError naming the part or column that is missing, and the columns there are.
    """
    columns = list(columns)
    there_are = f"Columns found: {', '.join(columns) or 'none'}."
    chosen = {part: getattr(config, f"{part}_column") for part in PARTS if config and getattr(config, f"{part}_column")}
    for part, column in chosen.items():
        if column not in columns:
            raise DatasetError(f"There is no column {column!r} for the {part}. {there_are}")
    mapped = {**guess_columns(column for column in columns if column not in chosen.values()), **chosen}
    for part in PARTS:
        if part not in mapped:
            raise DatasetError(f"Which column is the {part}? None could be guessed. {there_are} Choose one as the {part} column.")
    if len(set(mapped.values())) < len(PARTS):
        same = next(column for column in mapped.values() if list(mapped.values()).count(column) > 1)
        raise DatasetError(f"Column {same!r} is chosen for more than one part. Choose a different column for each.")
    return Columns(**mapped)


def to_examples(rows: Iterable[dict[str, Any]], columns: Columns) -> list[Example]:
    """Examples in the rows' order, texts stripped, missing values empty. Raises DatasetError naming row and column of anything but text."""
    return [
        Example(**{part: _text(row.get(getattr(columns, part)), number, getattr(columns, part)) for part in PARTS})
        for number, row in enumerate(rows, start=1)
    ]


def held_out_examples(path: Path = HELD_OUT_CASES) -> list[HeldOutCase]:
    """The bundled held-out cases. Raises DatasetError if the file is missing or damaged."""
    from deepdoctor.readers import read_file

    cases = []
    for number, row in enumerate(read_file(path), start=1):
        names = ("Question", "Complex_CoT", "Response", "Condition", "Specialty", "Asked", "Key_Term")
        question, reasoning, response, *rest = (_text(row.get(name), number, name) for name in names)
        if not all((question, reasoning, response, *rest)):
            raise DatasetError(
                f"{path.name}: row {number} lacks one of {', '.join(names)}. Build it again: python -m deepdoctor.nano.build."
            )
        cases.append(HeldOutCase(Example(question, reasoning, response), *rest))
    return cases


def split(examples: list[Example], held_out: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held-out): `held_out` examples drawn by `seed`, both in their old order. DatasetError if none remain to train on."""
    if held_out >= len(examples):
        rows = _rows(len(examples))
        raise DatasetError(f"Of {rows}, {held_out} held out leave none to train on. Hold out fewer, or read more rows.")
    drawn = set(Random(seed).sample(range(len(examples)), held_out))
    training = [example for index, example in enumerate(examples) if index not in drawn]
    return training, [examples[index] for index in sorted(drawn)]


def known_reference(question: str) -> str:
    """The reference answer of a bundled held-out question, or ""."""
    return next((case.example.response for case in held_out_examples() if case.example.question == question.strip()), "")


def keep_apart(examples: list[Example], source: str, held_out: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, kept apart): bundled cases have held-out cases of their own, all kept apart; from other sources `split` draws them."""
    if source == "bundled":
        return examples, [case.example for case in held_out_examples()]
    return split(examples, held_out, seed)


def _reader(config: "DatasetConfig", load_hub: Callable[..., Any] | None) -> Generator[dict[str, Any], None, None]:
    from deepdoctor.hub import read_hub
    from deepdoctor.readers import read_file

    if config.source == "hub":
        return read_hub(config, LARGEST, load_hub)
    if config.source == "bundled":
        return read_file(TEACHING_CASES)
    if not config.path:
        raise DatasetError("Choose a file first: JSON, JSONL, CSV or Parquet.")
    return read_file(Path(config.path).expanduser())


def _named(config: "DatasetConfig") -> tuple[str, str]:
    """What messages call the source, and its description without how much of it was read."""
    name = {"bundled": "the bundled teaching cases", "file": Path(config.path or "").name, "hub": config.name}[config.source]
    parts = [name]
    if config.source == "hub":
        parts += [part for part in (config.config, config.split) if part]
        parts.append(f"revision {config.revision}" if config.revision else "newest revision")
    return name, ", ".join(parts)


def _has_more(config: "DatasetConfig", reader: Iterator[dict[str, Any]]) -> bool:
    """Whether rows follow those that were read. The Hub is not asked for another one only to know that."""
    if config.source == "hub":
        return True
    try:
        return next(reader, None) is not None
    except DatasetError:
        return True


def _counted(rows: Iterable[dict[str, Any]], tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if number % PROGRESS_ROWS == 0:
            tell(f"{number:,} rows read …")
        yield row


def _text(value: Any, number: int, column: str) -> str:
    if _is_missing(value):
        return ""
    if not isinstance(value, str):
        shown = repr(value)[:40]
        raise DatasetError(
            f"Row {number}, column {column!r} is not text but {type(value).__name__}: {shown}. Turn it into text, or map another column."
        )
    return value.strip()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _folded(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _plain(value: Any) -> str:
    # values of other kinds may carry a memory address in their text, which would differ each time
    return str(value) if isinstance(value, (date, time, Decimal, bytes)) else type(value).__name__


def _has_half_character(value: Any) -> bool:
    return any(
        "\ud800" <= character <= "\udfff"
        for character in (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain))
    )


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"
