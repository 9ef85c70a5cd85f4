"""The command line: every setting is a flag, JSON is alone on stdout, errors have a message and exit code 2, Ctrl-C stops and saves."""

import json
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from deepdoctor import commands
from deepdoctor.cli import main, parser
from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, preset
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.errors import ConfigError
from deepdoctor.flags import settings_given
from deepdoctor.proof import Proof
from deepdoctor.runs import Run, Runs

QUESTION, REASONING, RESPONSE = "What is asked?", "Let me think.", "This is the answer."


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """(exit code, JSON on stdout, stderr) of a command with --json."""
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    """Three rows, the second of them repeated as the third."""
    rows = [{"Question": f"{QUESTION} {n}", "Complex_CoT": REASONING, "Response": RESPONSE} for n in (1, 2, 2)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A stopped run with two points of its curve and no adapter."""
    made = Runs(tmp_path).create(ModelConfig(), DatasetConfig(), preset("quick"), "first")
    made.append_metric({"step": 2, "loss": 2.0})
    made.append_metric({"step": 4, "loss": 1.5, "held_out_loss": 1.75})
    made.set_status(state="stopped", step=4, seconds=12.0)
    return made


@pytest.mark.parametrize("name", sorted(set(FinetuneConfig.model_fields) - {"preset"}))
def test_every_training_setting_is_a_flag(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    annotation = FinetuneConfig.model_fields[name].annotation
    options = parser().parse_args(["finetune", flag] if annotation is bool else ["finetune", flag, "7"])
    expected = True if annotation is bool else ["7"] if name == "probe_questions" else "7"
    assert settings_given(options, FinetuneConfig, "finetune") == {name: expected}


def test_flags_become_checked_settings() -> None:
    given = ["finetune", "--learning-rate", "1e-3", "--gradient-checkpointing", "off", "--probe-questions", "A?", "--probe-questions", "B?"]
    given += ["--dataset-source", "hub", "--dataset-first-rows", "all"]
    options = parser().parse_args(given)
    recipe = FinetuneConfig().changed(**settings_given(options, FinetuneConfig, "finetune"))
    assert (recipe.learning_rate, recipe.gradient_checkpointing, recipe.probe_questions) == (1e-3, "off", ("A?", "B?"))
    rows = DatasetConfig.of(settings_given(options, DatasetConfig, "dataset"))
    assert (rows.source, rows.first_rows) == ("hub", None)


def test_the_preset_follows_the_model_unless_one_is_named() -> None:
    assert commands.starting_point(None, ModelConfig()).preset == "quick"
    assert commands.starting_point(None, ModelConfig(name="owner/large")).preset == "article"
    assert commands.starting_point("full_epoch", ModelConfig()).preset == "full_epoch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--learning-rate", "7"], "Learning rate"),
        (["finetune", "--learning-rat", "x", "--no-such-flag"], "--no-such-flag"),
        (["finetune", "--preset", "quick", "--config", "file"], "not allowed with"),
        (["finetune", "--config", "/nowhere/recipe.json"], "recipe.json is not a configuration file"),
        (["compare", "--question", "x"], "Which run?"),
        (["compare", "--run", "nope", "--question", "x"], "no run 'nope'"),
        (["compare", "--run", "x", "--adapter", "owner/lora", "--question", "x"], "not both"),
        (["compare", "--run", "x", "--model", "owner/base", "--question", "x"], "A run brings its own base model"),
        (["compare", "--adapter", "/nowhere/lora", "--question", "x"], "There is no adapter in /nowhere/lora"),
        (["compare", "--adapter", "no name", "--question", "x"], "Expected owner/name"),
        (["resume", "nope"], "no run 'nope'"),
        (["export", "--run", "../x"], "no run"),
        (["push", "--run", "nope", "--repo", "owner/name"], "no run 'nope'"),
        (["push", "--run", "nope"], "--repo"),
        (["dataset", "--dataset-source", "file", "--dataset-path", "/nowhere.json"], "nowhere.json"),
        (["dataset", "--row", "100000"], "100000 is not one of them"),
        (["compare", "--run", "x", "--held-out", "0"], "0 is not one of them"),
        (["compare", "--run", "x", "--question", "x", "--also", "last"], "--also"),
        ([], "COMMAND"),
    ],
)
def test_errors_are_told_twice_and_exit_with_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    code, value, err = told(capsys, *arguments)
    assert code == 2
    assert message in value["error"]
    assert value["error"] in err


def test_without_json_an_error_leaves_stdout_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "nope", "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no run 'nope'" in err


def test_dataset_counts_and_says_what_is_done(rows_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, value, err = told(capsys, "dataset", "--dataset-source", "file", "--dataset-path", rows_file, "--list", "1")
    assert code == 0
    assert (value["rows"], value["kept"], value["duplicate"]) == (3, 2, 1)
    assert value["mapped"] == {"question": "Question", "reasoning": "Complex_CoT", "response": "Response"}
    assert value["questions"] == [f"{QUESTION} 1"]
    assert value["findings"]["duplicate"]["rows"] == [3]
    assert "3 rows read" in err


def test_dataset_keeps_apart_what_training_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"Question": f"{QUESTION} {n}", "Complex_CoT": REASONING, "Response": RESPONSE} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    given = ["dataset", "--dataset-source", "file", "--dataset-path", str(tmp_path / "rows.json")]
    code, value, _err = told(capsys, *given)
    apart = preset("article").held_out_rows
    assert (code, value["rows"], value["kept"], value["held_out_rows"]) == (0, 40, 40 - apart, apart)
    (tmp_path / "rows.json").write_text(json.dumps(rows[:12]), encoding="utf-8")
    code, value, _err = told(capsys, *given)
    assert (code, value["kept"], value["held_out_rows"]) == (0, 12, 0)
    assert "24 held out leave none to train on" in value["too_few"]


def test_dataset_shows_a_row_with_what_is_trained_on(rows_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["dataset", "--dataset-source", "file", "--dataset-path", rows_file, "--row", "2", "--supervision", "response_only"]
    _, value, _ = told(capsys, *given)
    assert (value["question"], value["reasoning"], value["response"]) == (f"{QUESTION} 2", REASONING, RESPONSE)
    trained = "".join(token["text"] for token in value["tokens"] if token["supervised"])
    assert trained == f"\n{REASONING}\n</think>\n{RESPONSE}<｜end▁of▁sentence｜>"
    assert value["text"].endswith(f"<think>{trained}")
    assert main(given) == 0
    assert f"<think>⟧{trained}" in capsys.readouterr().out


def test_runs_are_listed_shown_and_renamed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, listed, _ = told(capsys, "runs", "--data-dir", str(tmp_path))
    assert [(each["id"], each["state"], each["loss"]) for each in listed] == [(run.id, "stopped", {"first": 2.0, "last": 1.5})]
    _, renamed, _ = told(capsys, "runs", "rename", run.id, "second", "--data-dir", str(tmp_path))
    assert renamed["name"] == run.name == "second"
    _, shown, _ = told(capsys, "runs", "show", run.id, "--data-dir", str(tmp_path))
    assert [point["step"] for point in shown["curve"]] == [2, 4]
    assert shown["config"]["finetune"]["preset"] == "quick"
    assert main(["runs", "--data-dir", str(tmp_path)]) == 0
    assert "loss 2.000 → 1.500  held-out 1.750 → 1.750  12 s  second" in capsys.readouterr().out


def test_a_run_is_deleted_only_when_sure(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, value, _ = told(capsys, "runs", "delete", run.id, "--data-dir", str(tmp_path))
    assert (code, run.path.exists()) == (2, True)
    assert "--yes" in value["error"]
    code, value, _ = told(capsys, "runs", "delete", run.id, "--yes", "--data-dir", str(tmp_path))
    assert (code, value, run.path.exists()) == (0, {"id": run.id, "deleted": True}, False)


@pytest.mark.parametrize(("state", "message"), [("finished", "is finished"), ("running", "--force"), ("queued", "--force")])
def test_only_a_run_that_ended_early_is_resumed(state: str, message: str, run: Run, tmp_path: Path) -> None:
    run.claim()
    run.set_status(state=state)
    with pytest.raises(commands.RunError, match=message):
        commands.resume(tmp_path, run.id)


def test_while_a_run_trains_another_is_neither_started_nor_resumed(run: Run, tmp_path: Path) -> None:
    busy = Runs(tmp_path).create(ModelConfig(), DatasetConfig(), preset("quick"), "the page's")
    busy.claim()
    with pytest.raises(commands.RunError, match="Run the page's is training already, in the app or by another command"):
        commands.finetune(tmp_path, ModelConfig(), DatasetConfig(), preset("quick"))
    with pytest.raises(commands.RunError, match="the page's is training already"):
        commands.resume(tmp_path, run.id)
    assert {each.name for each in Runs(tmp_path).list()} == {"first", "the page's"}


def test_a_run_without_adapter_is_told_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(commands.RunError, match="has no adapter"):
        commands.compare(tmp_path, Compare(QUESTION, run.id))
    run.checkpoint_dir(2).mkdir(parents=True)
    for name in ("trainer_state.json", "adapter_model.safetensors"):
        (run.checkpoint_dir(2) / name).write_text("{}")
    with pytest.raises(commands.RunError, match="has no adapter at step 3"):
        commands.compare(tmp_path, Compare(QUESTION, run.id, 2, also=(3,)))
    with pytest.raises(commands.RunError, match="has no adapter at step 3"):
        commands.export(tmp_path, Export(run.id, 3))


def test_an_unknown_held_out_case_is_refused() -> None:
    assert commands.held_out_question(1).endswith("?")
    with pytest.raises(ConfigError, match="not one of them"):
        commands.held_out_question(10**6)


def test_the_first_interrupt_asks_and_the_second_insists(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with commands.stopping("Stopping …") as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "Stopping …\n"


def test_the_log_is_followed_from_where_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.log("before")
    with commands.followed(run):
        run.log("during, ä")
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["during, ä"]
    assert "train-log" not in {thread.name for thread in threading.enumerate()}


def test_a_comparison_reads_well_and_a_cut_off_thought_is_no_answer() -> None:
    proof = Proof(1e-6, 2e-6, 3.5, 0.6, 0.6, 1e-3, "a", "a", "b", "c")
    base = Transcript("A long thought", tokens=60, reasoning_tokens=60, seconds=1.0, finish_reason="length")
    tuned = Transcript("Short.\n</think>\nOne paragraph.", tokens=9, reasoning_tokens=3, seconds=0.5, finish_reason="stop")
    made = Comparison(QUESTION, base, tuned, SamplingConfig(), "article", "nano", "r", proof=proof, id="i", seen={"grade": "unseen"})
    text = commands.comparison_text(made)
    assert (
        text.index("BASE: 60 tokens")
        < text.index("(no answer: the thought was cut off by the length limit)")
        < text.index("TUNED: 9 tokens")
    )
    assert "--- answer\nOne paragraph." in text
    assert "unseen in training" in text
    assert {"reasoning", "response", "tokens", "finish_reason"} <= made.to_dict()["base"].keys()
    assert made.to_dict()["proof"] == {**asdict(proof), "problems": []}
