"""The question bank: what ships, what can be uploaded, what is said of a damaged one; and the leak guard."""

import json
from collections import Counter
from pathlib import Path

import pytest

from deepdoctor.dataset import TEACHING_CASES, Example, held_out_examples
from deepdoctor.errors import DatasetError
from deepdoctor.readers import read_file
from deepdoctor.studies.questions import BankQuestion, bundled_bank, from_examples, grade, read_bank
from tests.studies.prepared import bank_question

ROW = {"question": "What is first?", "reference": "This.", "key_points": ["one thing", "another"], "terms": ["One|uno", "two"]}
TOML = """
[[question]]
id = "cardiology-one"
specialty = "Cardiology"
difficulty = "Hard"
kind = "emergency"
question = "What is first?"
reference = "This."
key_points = ["one thing"]
terms = ["One"]
red_flags = ["waiting"]
source = "A guideline"
"""


def written(folder: Path, rows: list[dict]) -> Path:
    file = folder / "bank.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_the_bundled_bank_is_as_large_and_mixed_as_promised() -> None:
    bank = bundled_bank()
    kinds = Counter(question.kind for question in bank)
    assert len(bank) >= 60
    assert len({question.specialty for question in bank} - {"not medical"}) >= 15
    assert kinds["emergency"] >= 6
    assert kinds["general"] >= 6
    assert {question.difficulty for question in bank} == {"easy", "medium", "hard"}
    for question in bank:
        assert all((question.reference, question.source, question.red_flags)), question.id
        assert 3 <= len(question.key_points) <= 6, question.id
        assert len(question.terms) == len(question.key_points), question.id


def test_the_bundled_bank_is_in_no_teaching_row() -> None:
    rows = [row["Question"] for row in read_file(TEACHING_CASES)]
    assert {seen.grade for seen in grade(bundled_bank(), rows).values()} == {"unseen"}


def test_every_bundled_question_was_compared_with_a_page() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "references" / "question_bank.jsonl").read_text(encoding="utf-8").splitlines()
    compared = {each["question"]: each for each in map(json.loads, lines)}
    assert set(compared) == {question.id for question in bundled_bank()}
    for question in bundled_bank():
        assert compared[question.id]["url"].startswith("http") or question.kind == "general", question.id


def test_toml_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text(TOML, encoding="utf-8")
    expected = ("cardiology-one", "cardiology", "hard", "emergency", "What is first?", "This.")
    assert read_bank(file) == [BankQuestion(*expected, ("one thing",), ("one",), ("waiting",), "A guideline")]


def test_rows_of_other_files_are_read_alike(tmp_path: Path) -> None:
    expected = BankQuestion("row-1", "", "", "clinical", "What is first?", "This.", ("one thing", "another"), ("one|uno", "two"), (), "")
    lines, table = tmp_path / "bank.jsonl", tmp_path / "bank.csv"
    lines.write_text(json.dumps(ROW), encoding="utf-8")
    table.write_text("Question,Reference,Key points,Terms\nWhat is first?,This.,one thing | another,One|uno | two\n", encoding="utf-8")
    for file in (written(tmp_path, [ROW]), lines, table):
        assert read_bank(file) == [expected], file.name


def test_a_datasets_columns_are_understood(tmp_path: Path) -> None:
    found = read_bank(written(tmp_path, [{"Question": "Why?", "Complex_CoT": "Hm.", "Response": "Because."}]))
    assert [(each.question, each.reference) for each in found] == [("Why?", "Because.")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": ""}, "row 2: the question is empty"),
        ({"question": "Why</think>?"}, "row 2: the question contains </think>"),
        ({"question": ["Why?"]}, "row 2, column 'question' is not text but list"),
        ({"kind": "riddle"}, "row 2: kind is 'riddle'; it is one of: clinical, emergency, general"),
        ({"difficulty": "impossible"}, "row 2: difficulty is 'impossible'"),
        ({"id": "../escape"}, "row 2: the id '../escape' may hold only"),
        ({"terms": ["one"]}, "row 2: 1 terms for 2 key points"),
        ({"red_flags": [1]}, "row 2, column 'red_flags' is not a list of texts"),
        ({"id": "row-1"}, "several questions have the id 'row-1'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, row: dict, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_bank(written(tmp_path, [ROW, {**ROW, **row}]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bank.toml", "[[question]\n", "is not TOML"),
        ("bank.toml", "title = 'none'", "has no questions"),
        ("bank.toml", "question = 'one'", "has no [[question]] blocks"),
        ("bank.json", '[{"text": 1}]', "which column is the question"),
        ("bank.xlsx", "", "cannot read .xlsx"),
    ],
)
def test_a_file_that_is_no_bank_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        read_bank(tmp_path / name)
    assert words in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_bank(tmp_path / "none.toml")


def test_rows_of_a_dataset_become_questions() -> None:
    found = from_examples([Example("One?", "Hm.", "Yes."), Example("", "", ""), Example("Three?", "Hm.", "No.")])
    assert [(each.id, each.question, each.reference, each.kind) for each in found] == [
        ("row-1", "One?", "Yes.", "clinical"),
        ("row-3", "Three?", "No.", "clinical"),
    ]


def test_a_question_survives_its_json() -> None:
    question = bank_question(1)
    assert BankQuestion.from_dict(json.loads(json.dumps({**question.to_dict(), "seen": "unseen"}))) == question


def test_the_leak_guard_knows_copies_and_paraphrases() -> None:
    known = (
        "A 61-year-old woman with a long history of involuntary urine loss during activities like coughing or sneezing but no leakage at "
        "night undergoes a gynecological exam and Q-tip test. What would cystometry most likely reveal?"
    )
    asked = {
        "same": known.upper().replace("-", " "),
        "older": known.replace("61", "64"),
        "cut": known.split(". ")[0] + ".",
        "framed": "Please help me with this one. " + known + " Explain briefly.",
        "other words": "In a woman of sixty-one who leaks urine when she coughs, which findings does filling the bladder give?",
        "elsewhere": "A man of 70 has crushing chest pain and ST elevation. Which treatment comes first?",
    }
    bank = [BankQuestion(name.replace(" ", "-"), "", "", "clinical", text, "", (), (), (), "") for name, text in asked.items()]
    training = [known, *(case.example.question for case in held_out_examples()[:100])]
    grades = {name: seen.grade for name, seen in grade(bank, training).items()}
    # wholly other words are beyond what n-grams can see: the guard says what it can, and no more
    assert grades == {
        "same": "seen",
        "older": "near-seen",
        "cut": "near-seen",
        "framed": "near-seen",
        "other-words": "unseen",
        "elsewhere": "unseen",
    }
