"""The question bank: questions with what a good answer says and what makes one dangerous, and whether training has seen them."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepdoctor.dataset import Example, guess_columns
from deepdoctor.errors import DatasetError
from deepdoctor.overlap import Overlap, Seen
from deepdoctor.prompts import marker_in
from deepdoctor.readers import read_file

BUNDLED = Path(__file__).parent / "question_bank.toml"
DIFFICULTIES = ("", "easy", "medium", "hard")
KINDS = ("clinical", "emergency", "general")
MOST = 5_000
LISTS = ("key_points", "terms", "red_flags")
SEPARATOR = " | "


@dataclass(frozen=True)
class BankQuestion:
    """One question to judge answers by.

    `kind` is clinical, emergency or general (not medical at all); `difficulty` easy, medium, hard or "". Each of `terms` stands beside
    the key point of the same place: what a right answer would contain, in lower case, "a|b" for alternatives; there may be none.
    """

    id: str
    specialty: str
    difficulty: str
    kind: str
    question: str
    reference: str
    key_points: tuple[str, ...]
    terms: tuple[str, ...]
    red_flags: tuple[str, ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BankQuestion":
        """Read back what `to_dict` wrote; other names are left aside. Raises KeyError or TypeError for anything else."""
        fields: dict[str, Any] = {name: tuple(values[name]) if name in LISTS else str(values[name]) for name in cls.__dataclass_fields__}
        return cls(**fields)


def bundled_bank() -> list[BankQuestion]:
    """The questions that ship with DeepDoctor, written for it."""
    return read_bank(BUNDLED)


def read_bank(path: Path) -> list[BankQuestion]:
    """The questions of a file: TOML with [[question]] blocks, or rows as JSON, JSONL, CSV or Parquet.

    Only the question is needed; a missing id becomes "row-N", a missing kind "clinical". Columns may be named as in a dataset (Question,
    Response). Lists are lists, or one text separated by " | ". Raises DatasetError naming row and column.
    """
    path = Path(path)
    rows = _toml_rows(path) if path.suffix.lower() == ".toml" else list(read_file(path))
    if not rows:
        raise DatasetError(f"{path.name} has no questions.")
    if len(rows) > MOST:
        raise DatasetError(f"{path.name} has {len(rows):,} rows; a question bank has at most {MOST:,}.")
    columns = _columns(rows, path.name)
    questions = [_question(row, columns, f"{path.name}: row {number}", number) for number, row in enumerate(rows, start=1)]
    require_unique(questions, path.name)
    return questions


def from_examples(examples: Iterable[Example]) -> list[BankQuestion]:
    """Rows of a dataset as questions: ids "row-N" by their place, from 1, and the response as reference."""
    return [
        BankQuestion(f"row-{number}", "", "", "clinical", example.question, example.response, (), (), (), "the dataset")
        for number, example in enumerate(examples, start=1)
        if example.question
    ]


def grade(questions: Iterable[BankQuestion], training_questions: Sequence[str]) -> dict[str, Seen]:
    """The leak guard: how well training knows each question, by question id. See overlap.py for how questions are compared."""
    overlap = Overlap(training_questions)
    return {question.id: overlap.grade(question.question) for question in questions}


def require_unique(questions: Iterable[BankQuestion], name: str) -> None:
    """Raise DatasetError if two questions share an id."""
    twice = [each for each, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise DatasetError(f"{name}: several questions have the id {twice[0]!r}. Give each its own.")


def _toml_rows(path: Path) -> list[dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DatasetError(f"{path.name} is not UTF-8 text. Save it as UTF-8 and load it again.") from None
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{path.name} is not TOML: {error}.") from None
    rows = values.get("question", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path.name} has no [[question]] blocks.")
    return rows


def _columns(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """Which column holds which field."""
    names = list(dict.fromkeys(column for row in rows for column in row))
    plain = {column.strip().lower().replace(" ", "_"): column for column in reversed(names)}
    columns = {field: plain[field] for field in BankQuestion.__dataclass_fields__ if field in plain}
    guessed = guess_columns(names)
    for field, part in (("question", "question"), ("reference", "response")):
        if field not in columns and part in guessed:
            columns[field] = guessed[part]
    if "question" not in columns:
        raise DatasetError(f"{name}: which column is the question? There is none called so. Columns found: {', '.join(names)}.")
    return columns


def _question(row: Mapping[str, Any], columns: Mapping[str, str], where: str, number: int) -> BankQuestion:
    fields: dict[str, Any] = {}
    for field in BankQuestion.__dataclass_fields__:
        column = columns.get(field, field)
        read = _texts if field in LISTS else _text
        fields[field] = read(row.get(column), f"{where}, column {column!r}")
    fields |= {field: fields[field].lower() for field in ("specialty", "difficulty")}
    fields |= {"id": fields["id"] or f"row-{number}", "kind": fields["kind"].lower() or "clinical"}
    question = BankQuestion(**fields | {"terms": tuple(term.lower() for term in fields["terms"])})
    _check(question, where)
    return question


def _check(question: BankQuestion, where: str) -> None:
    if not question.question:
        raise DatasetError(f"{where}: the question is empty.")
    if marker := marker_in(question.question):
        raise DatasetError(f"{where}: the question contains {marker}, which the model obeys instead of reading. Remove it.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", question.id):
        raise DatasetError(f"{where}: the id {question.id[:40]!r} may hold only letters, digits, hyphen, dot and underscore (100 at most).")
    for field, known in (("kind", KINDS), ("difficulty", DIFFICULTIES)):
        if getattr(question, field) not in known:
            raise DatasetError(f"{where}: {field} is {getattr(question, field)[:40]!r}; it is one of: {', '.join(filter(None, known))}.")
    if question.terms and len(question.terms) != len(question.key_points):
        raise DatasetError(
            f"{where}: {len(question.terms)} terms for {len(question.key_points)} key points. Give one for each, or none at all."
        )


def _text(value: Any, where: str) -> str:
    if value is None or value != value:  # NaN, as Parquet may hold for nothing
        return ""
    if not isinstance(value, str | int):
        raise DatasetError(f"{where} is not text but {type(value).__name__}. Turn it into text.")
    return str(value).strip()


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(SEPARATOR)
    if value is None or value != value:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DatasetError(f'{where} is not a list of texts. Give a list, or one text with the parts separated by "{SEPARATOR}".')
    return tuple(each.strip() for each in value if each.strip())
