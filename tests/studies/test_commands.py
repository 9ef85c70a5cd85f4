"""Studies by the command line: made, listed, prepared, opened, closed, bundled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.cli import main
from deepdoctor.errors import ConfigError
from deepdoctor.runs import Run
from deepdoctor.studies import commands as study_commands
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.questions import bundled_bank
from deepdoctor.studies.study import Studies
from tests.studies.prepared import answer_row, created, prepared, verdict
from tests.ui.fakes import fake_run

Told = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fake_run(tmp_path)


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """What a `study` command prints as JSON, after it ended with the expected code."""

    def asked(*arguments: str, code: int = 0) -> Any:
        assert main(["study", *arguments, "--data-dir", str(tmp_path), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return asked


def test_a_study_is_made_with_its_settings(told: Told, run: Run, tmp_path: Path) -> None:
    settings = ["--name", "Cold", "--temperature", "0", "--seed", "5", "--assignment-seed", "9", "--raters-expected", "4", "--native-arm"]
    made = told("create", run.id, "--step", "20", "--kind", "emergency", "--kind", "general", "--most", "7", *settings)
    study = Studies(tmp_path).get(made["id"])
    config = study.config
    assert (config.name, config.run, config.step, config.seed, config.raters_expected) == ("Cold", run.id, 20, 9, 4)
    assert (config.sampling.temperature, config.sampling.seed, config.native_arm, config.prompt_style) == (0, 5, True, "article")
    assert {question.kind for question in study.questions()} == {"emergency", "general"}
    assert (made["questions"], made["pairs"], made["repeated"], made["state"]) == (7, 7, 1, "interrupted")
    assert made["seen"] == {"seen": 0, "near-seen": 0, "unseen": 15}
    assert (made["plan"]["votes"], made["plan"]["native_arm"]) == (90, True)


def test_questions_come_from_a_file_or_from_rows(told: Told, run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("question\nWhat is first?\nWhat is next?\n")
    assert told("create", run.id, "--file", str(own))["questions"] == 2
    both = told("create", run.id, "--file", str(own), "--source", "file", "--source", "held_out")
    assert both["questions"] == 202
    rows = told("create", run.id, "--source", "rows", "--dataset-first-rows", "3")
    assert rows["questions"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--most", "0"], "at least one"),
        (["--effect", "0.4"], "Effect"),
        (["--step", "5"], "no adapter at step 5"),
        (["--difficulty", "impossible"], "none was chosen"),
        (["--source", "file"], "Choose the file"),
        (["--temperature", "0", "--seeds-per-question", "2"], "every seed would give the same pair again"),
        (["--source", "elsewhere"], "invalid choice"),
    ],
)
def test_what_cannot_be_made_is_told(told: Told, run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in told("create", run.id, *arguments, code=2)["error"]
    assert Studies(tmp_path).list() == []


def test_single_questions_are_picked_by_their_ids(told: Told, run: Run, tmp_path: Path) -> None:
    first, *_, last = [question.id for question in bundled_bank()]
    made = told("create", run.id, "--questions", f"{last}, {first}")
    assert [question.id for question in Studies(tmp_path).get(made["id"]).questions()] == [first, last]
    assert "'nope' is not among" in told("create", run.id, "--questions", "nope", code=2)["error"]


def test_a_run_that_does_not_record_its_rows_gets_no_study(told: Told, run: Run, tmp_path: Path) -> None:
    (run.path / "questions.json").unlink()
    assert "does not record the rows" in told("create", run.id, code=2)["error"]
    assert Studies(tmp_path).list() == []


def test_studies_are_listed_opened_and_closed(told: Told, tmp_path: Path) -> None:
    study = prepared(tmp_path, 3)
    rater = study.join("Ada", "Urology", 3)
    Judgments(tmp_path).add(verdict(study, rater.token, rater.trials[0].id))
    (listed,) = told("list")
    assert (listed["id"], listed["state"], listed["raters"], listed["verdicts"]) == (study.id, "open", 1, 1)
    assert rater.token not in json.dumps(listed)
    assert told("close", study.id)["state"] == "closed"
    assert told("open", study.id)["state"] == "open"
    unfinished = created(tmp_path, 2)
    assert "2 answers are still missing" in told("open", unfinished.id, code=2)["error"]
    assert "no such study" in told("close", "../../etc", code=2)["error"]


def test_damage_is_listed_with_the_studies(told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, lost = prepared(tmp_path, 3), prepared(tmp_path, 3)
    rater, ben = study.join("Ada", "Urology", 3), study.join("Ben", "Urology", 3)
    Judgments(tmp_path).add(verdict(study, ben.token, ben.trials[0].id))
    assert "cannot be read" not in study_commands.list_studies(tmp_path).text
    (study.path / "raters" / f"{rater.token}.json").write_text("{")
    (lost.path / "study.json").write_text("{")
    (store,) = (tmp_path / "judgments").glob("*.jsonl")
    store.write_bytes(b"torn\n" + store.read_bytes() + b"torn")
    (listed,) = told("list")
    assert (listed["raters"], listed["damaged_raters"], listed["verdicts"]) == (1, 1, 1)
    lines = study_commands.list_studies(tmp_path).text.splitlines()
    assert lines[0].startswith(study.id)
    assert lines[1:] == [
        f"{study.id}: The file of 1 rater cannot be read; what they said is kept, but counts nowhere until the file is put back.",
        f"The study {lost.id} cannot be read and is left out.",
        "2 lines of the judgments cannot be read and are left out; a line that a crash tore was never called saved.",
    ]
    file = tmp_path / "bundle.zip"
    assert told("bundle", study.id, str(file))["damaged"] == {"raters": 1, "lines": 2}
    assert main(["study", "bundle", study.id, str(file), "--data-dir", str(tmp_path)]) == 0
    assert "The file of 1 rater cannot be read" in capsys.readouterr().out


def test_an_empty_list_says_so(tmp_path: Path) -> None:
    assert "No studies yet" in study_commands.list_studies(tmp_path).text


def test_a_study_that_is_being_prepared_is_left_alone(tmp_path: Path) -> None:
    study = created(tmp_path, 2)
    study.claim()
    with pytest.raises(ConfigError, match="being prepared already"):
        study_commands.prepare(tmp_path, study.id)


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_study_whose_answers_are_written_is_not_prepared(told: Told, tmp_path: Path, state: str) -> None:
    """Its run may be gone: failing over that would lock its raters out."""
    study = prepared(tmp_path, 2)
    study.set_status(state=state)
    before = study.status
    said = told("prepare", study.id, code=2)["error"]
    assert f"is {state}; its answers are all written" in said
    assert study.status == before


def test_prepare_writes_the_answers_and_opens_the_study(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The session is the engine's own, tested there; here it is a stand-in that answers by hand."""
    study = created(tmp_path, 2)

    class Answering:
        def __init__(self, data_dir: Path) -> None:
            self.studies = Studies(data_dir)

        def prepare(self, study_id: str, should_stop: Callable[[], bool]) -> None:
            assert not should_stop()
            found = self.studies.get(study_id)
            for question, seed in found.pending():
                found.append_answer(answer_row(found, question, seed))
            found.open()

    monkeypatch.setattr("deepdoctor.engine.session.Session", Answering)
    assert told("prepare", study.id)["state"] == "open"
    assert main(["study", "open", study.id, "--data-dir", str(tmp_path)]) == 0
    assert f"/judge/{study.id}" in capsys.readouterr().out


def test_a_bundle_is_written_and_equals_itself(told: Told, tmp_path: Path) -> None:
    study = prepared(tmp_path, 3)
    file = tmp_path / "bundle.zip"
    assert told("bundle", study.id, str(file))["bundle"] == str(file)
    assert told("report", str(file))["equal"] is True
