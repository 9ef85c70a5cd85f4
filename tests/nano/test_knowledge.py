"""Reading conditions: facts come back as written, and every malformed one is refused with condition and field named."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.errors import DatasetError
from deepdoctor.nano.knowledge import ASKED, Differential, load_conditions

PHRASES = ["a cough", "a fever", "a rash", "a wheeze", "a stiff neck", "a sore throat"]
GOOD: dict[str, Any] = {
    "name": "made-up fever",
    "specialty": "infectious disease",
    "sex": "person",
    "ages": [20, 40],
    "background": ["a recent journey", "no vaccinations"],
    "findings": PHRASES,
    "test": "a blood film",
    "result": "rings inside red cells",
    "mechanism": "parasites burst red cells",
    "treatment": "three days of tablets",
    "key": {"test": "blood film", "result": "rings", "mechanism": "red cells", "treatment": "tablets"},
    "differentials": [{"name": f"other {number}", "reason": f"it lacks sign {number}"} for number in range(3)],
    "source": "A textbook",
}


def toml_of(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml_of(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml_of(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def written(folder: Path, *conditions: dict[str, Any]) -> Path:
    """A conditions file with these entries."""
    file = folder / "conditions.toml"
    blocks = ["\n".join(["[[condition]]", *(f"{name} = {toml_of(value)}" for name, value in entry.items())]) for entry in conditions]
    file.write_text("\n\n".join(blocks), encoding="utf-8")
    return file


def test_facts_come_back_as_written(tmp_path: Path) -> None:
    (condition,) = load_conditions(written(tmp_path, {**GOOD, "aliases": ["pretend fever"], "age_unit": "month"}))
    assert condition.findings == tuple(PHRASES)
    assert condition.ages == (20, 40)
    assert (condition.aliases, condition.age_unit) == (("pretend fever",), "month")
    assert condition.differentials[1] == Differential("other 1", "it lacks sign 1")


def test_years_and_no_aliases_are_assumed(tmp_path: Path) -> None:
    (condition,) = load_conditions(written(tmp_path, GOOD))
    assert (condition.age_unit, condition.aliases) == ("year", ())


def test_the_key_term_is_what_an_answer_must_name(tmp_path: Path) -> None:
    (condition,) = load_conditions(written(tmp_path, GOOD))
    assert [condition.key_term(asked) for asked in ASKED] == ["made-up fever", "blood film", "rings", "red cells", "tablets"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sex": "patient"}, "sex is 'patient'"),
        ({"age_unit": "decade"}, "age_unit is 'decade'"),
        ({"ages": [40, 20]}, "ages must be"),
        ({"ages": [20, 30, 40]}, "ages must be"),
        ({"background": ["a journey"]}, "at least 2 background phrases"),
        ({"findings": PHRASES[:5]}, "exactly 6 different findings"),
        ({"findings": [*PHRASES[:5], PHRASES[0]]}, "exactly 6 different findings"),
        ({"differentials": GOOD["differentials"][:2]}, "exactly 3 differentials"),
        ({"key": {**GOOD["key"], "result": "squares"}}, r"key\.result"),
        ({"key": {"test": "blood film"}}, r"key\.result.*key\.mechanism.*key\.treatment"),
        ({"key": {**GOOD["key"], "test": ""}}, r"key\.test"),
        ({"test": "a blood film."}, "'a blood film.' must be trimmed"),
        ({"mechanism": " parasites burst red cells"}, "must be trimmed"),
        ({"result": "rings " + "inside red cells " * 10 + "here"}, "longer than 130 characters"),
        ({"source": ""}, "needs a source"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_malformed_fact_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DatasetError, match=rf"condition 2 \(second\): .*{complaint}"):
        load_conditions(written(tmp_path, GOOD, {**GOOD, "name": "second", **change}))


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_fact_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DatasetError, match=rf"condition 1 .*{missing}"):
        load_conditions(written(tmp_path, {name: value for name, value in GOOD.items() if name != missing}))


def test_a_condition_written_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="written twice: made-up fever"):
        load_conditions(written(tmp_path, GOOD, GOOD))


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"sex is 'x'.*; needs a source; needs at least 2 background phrases"):
        load_conditions(written(tmp_path, {**GOOD, "sex": "x", "background": [], "source": ""}))


def test_every_condition_was_compared_with_a_page_and_what_differed_says_what_became_of_it() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "references" / "conditions.jsonl").read_text(encoding="utf-8").splitlines()
    compared = [json.loads(line) for line in lines]
    assert [each["condition"] for each in compared] == [condition.name for condition in load_conditions()]
    for each in compared:
        assert each["url"].startswith("http"), each["condition"]
        assert each["grade"] in ("agrees", "minor", "wrong")
        assert each["grade"] == "agrees" or (each["remark"] and each["changed"]), each["condition"]
