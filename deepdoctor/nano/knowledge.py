"""The teaching conditions: structured facts, written for demonstration, that everything the nano model knows is made from."""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deepdoctor.errors import DatasetError

CONDITIONS_FILE = Path(__file__).with_name("conditions.toml")
ASKED = ("diagnosis", "test", "result", "mechanism", "treatment")
SEXES = {"woman", "man", "person", "girl", "boy", "child"}
AGE_UNITS = {"year", "month", "week", "day"}


@dataclass(frozen=True)
class Differential:
    """Another condition to think of, and a clause saying why it is less likely here."""

    name: str
    reason: str


@dataclass(frozen=True)
class Condition:
    """One condition's facts. Phrases are lower case without a full stop, so that they fit inside any sentence."""

    name: str
    specialty: str
    sex: str
    ages: tuple[int, int]
    background: tuple[str, ...]
    findings: tuple[str, ...]
    test: str
    result: str
    mechanism: str
    treatment: str
    key: dict[str, str]
    differentials: tuple[Differential, ...]
    source: str
    age_unit: str = "year"
    aliases: tuple[str, ...] = field(default=())

    def key_term(self, asked: str) -> str:
        """The shortest words an answer must contain to have named what was asked (one of ASKED)."""
        return self.name if asked == "diagnosis" else self.key[asked]

    @property
    def fingerprint(self) -> str:
        """Of all that cases are written from, so that a model knows which facts it was taught; 16 hex digits of SHA-256."""
        facts = {name: value for name, value in asdict(self).items() if name not in ("source", "aliases")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_conditions(path: Path = CONDITIONS_FILE) -> list[Condition]:
    """Read and check the conditions file.

    Raises DatasetError naming the condition and field when a fact is missing or malformed.
    """
    with path.open("rb") as file:
        entries = tomllib.load(file).get("condition", [])
    conditions = [_read(entry, index) for index, entry in enumerate(entries)]
    names = [condition.name for condition in conditions]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DatasetError(f"{path.name}: written twice: {', '.join(sorted(repeated))}.")
    return conditions


def _read(entry: dict, index: int) -> Condition:
    where = f"condition {index + 1} ({entry.get('name', 'no name')})"
    try:
        condition = Condition(
            **{
                **entry,
                "ages": tuple(entry["ages"]),
                "background": tuple(entry["background"]),
                "findings": tuple(entry["findings"]),
                "aliases": tuple(entry.get("aliases", ())),
                "differentials": tuple(Differential(**each) for each in entry["differentials"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{where}: {error}.") from error
    if problems := list(_problems(condition)):
        raise DatasetError(f"{where}: {'; '.join(problems)}.")
    return condition


def _problems(condition: Condition) -> Iterator[str]:
    if condition.sex not in SEXES:
        yield f"sex is {condition.sex!r}, expected one of {sorted(SEXES)}"
    if condition.age_unit not in AGE_UNITS:
        yield f"age_unit is {condition.age_unit!r}, expected one of {sorted(AGE_UNITS)}"
    if len(condition.ages) != 2 or condition.ages[0] >= condition.ages[1]:
        yield "ages must be [youngest, oldest]"
    if not condition.source:
        yield "needs a source"
    yield from _wrong_counts(condition)
    yield from _wrong_phrases(condition)


def _wrong_counts(condition: Condition) -> Iterator[str]:
    if len(condition.background) < 2:
        yield "needs at least 2 background phrases"
    if len(condition.findings) != 6 or len(set(condition.findings)) != 6:
        yield "needs exactly 6 different findings"
    if len(condition.differentials) != 3:
        yield "needs exactly 3 differentials"
    for asked in ASKED[1:]:
        if condition.key.get(asked, "") not in getattr(condition, asked) or not condition.key.get(asked):
            yield f"key.{asked} must be words that occur in {asked}"


def _wrong_phrases(condition: Condition) -> Iterator[str]:
    phrases = [*condition.background, *condition.findings, condition.test, condition.result]
    phrases += [condition.mechanism, condition.treatment, *(each.reason for each in condition.differentials)]
    for phrase in phrases:
        if not phrase.strip() or phrase != phrase.strip() or phrase[-1] in ".;,:":
            yield f"phrase {phrase!r} must be trimmed and end without punctuation"
        if len(phrase) > 130:
            yield f"phrase {phrase[:40]!r}… is longer than 130 characters"
