"""Runs on disk: another process may be writing, may have died writing, and somebody may have edited a file by hand."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.config import DatasetConfig, FinetuneConfig, ModelConfig, preset
from deepdoctor.errors import ConfigError, RunError
from deepdoctor.files import write_complete, write_json
from deepdoctor.runs import RESUMABLE, Run, Runs, State

MODEL = ModelConfig(name="some/model", precision="4bit")
DATASET = DatasetConfig(source="hub", first_rows=10)
QUICK = preset("quick")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def run(runs: Runs) -> Run:
    return runs.create(MODEL, DATASET, QUICK, "My run")


def add_checkpoint(run: Run, step: int) -> Path:
    """A checkpoint as the trainer leaves it."""
    folder = run.checkpoint_dir(step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(folder / "trainer_state.json", {"global_step": step})
    return folder


def test_a_new_run_is_queued_and_remembers_all_it_was_given(runs: Runs, run: Run) -> None:
    again = runs.get(run.id)
    assert (again.name, again.state) == ("My run", "queued")
    assert (again.model, again.dataset, again.finetune) == (MODEL, DATASET, QUICK)
    assert again.status["step"] == 0
    assert again.status["steps"] == QUICK.max_steps


def test_a_run_without_a_name_is_called_after_its_preset(runs: Runs) -> None:
    assert runs.create(MODEL, DATASET, QUICK, "  ").name.startswith("quick ")


def test_status_changes_are_merged_and_stamped(run: Run) -> None:
    before = run.status["updated"]
    run.set_status(state="running", step=3)
    run.set_status(message="Training")
    assert {name: run.status[name] for name in ("state", "step", "message")} == {"state": "running", "step": 3, "message": "Training"}
    assert run.status["updated"] >= before


def test_metrics_are_told_once(run: Run) -> None:
    assert run.metrics() == ([], 0)
    run.append_metric({"step": 1, "loss": 2.0})
    rows, place = run.metrics()
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.0)]
    assert run.metrics(place) == ([], place)
    run.append_metric({"step": 2, "loss": 1.5})
    assert [row["step"] for row in run.metrics(place)[0]] == [2]


def test_a_torn_metric_line_is_healed_by_the_next(run: Run) -> None:
    run.append_metric({"step": 1, "loss": 2.0})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [row["step"] for row in run.curve()] == [1]
    run.append_metric({"step": 3, "loss": 1.0})
    assert [row["step"] for row in run.curve()] == [1, 3]


def test_a_resume_replaces_what_it_repeats(run: Run) -> None:
    for step in (2, 4, 6):
        run.append_metric({"step": step, "loss": float(step)})
    run.append_metric({"resumed_from": 4})
    for step in (6, 8):
        run.append_metric({"step": step, "loss": step + 0.5})
    assert [(row["step"], row["loss"]) for row in run.curve()] == [(2, 2.0), (4, 4.0), (6, 6.5), (8, 8.5)]


def test_two_resumes_leave_one_curve(run: Run) -> None:
    for rows in ([1, 2, 3], [2, 3], [1]):
        for step in rows:
            run.append_metric({"step": step})
        run.append_metric({"resumed_from": rows[0] - 1})
    run.append_metric({"step": 1})
    assert [row["step"] for row in run.curve()] == [1]


def test_the_fingerprint_changes_with_whatever_the_page_draws(run: Run) -> None:
    changes = [
        lambda: run.append_metric({"step": 1}),
        lambda: run.set_status(step=1),
        lambda: run.log("line"),
        lambda: run.append_probe({"step": 0, "question": "q"}),
        lambda: run.rename("Another"),
    ]
    seen = {run.fingerprint()}
    for count, change in enumerate(changes, start=2):
        assert run.fingerprint() in seen
        change()
        seen.add(run.fingerprint())
        assert len(seen) == count


def test_the_log_tail_is_the_end_of_the_log(run: Run) -> None:
    assert run.log_tail() == ""
    for number in range(20):
        run.log(f"line {number}\n")
    tail = run.log_tail(3).splitlines()
    assert [line.split(" ", 1)[1] for line in tail] == ["line 17", "line 18", "line 19"]
    with (run.path / "train.log").open("ab") as log:
        log.write("3 × 4".encode()[:3])  # cut off by a full disk
    assert run.log_tail(2).endswith("line 19\n3 �")


def test_probes_come_in_order_of_step_and_the_last_answer_counts(run: Run) -> None:
    for step, question, response in [(20, "a", "old"), (0, "a", "first"), (0, "b", "other"), (20, "a", "new")]:
        run.append_probe({"step": step, "question": question, "response": response})
    assert [(row["step"], row["response"]) for row in run.probes()] == [(0, "first"), (0, "other"), (20, "new")]


def test_only_complete_checkpoints_count(run: Run) -> None:
    assert run.checkpoints() == []
    for step in (40, 100, 20):
        add_checkpoint(run, step)
    (run.checkpoint_dir(100) / "trainer_state.json").unlink()
    (run.path / "checkpoints" / "checkpoint-tmp").mkdir()
    assert run.checkpoints() == [20, 40]


@pytest.mark.parametrize("left", ["", '{"global_step": 4', "[]"])
def test_a_checkpoint_that_a_full_disk_cut_off_does_not_count(run: Run, left: str) -> None:
    for step in (20, 40):
        (add_checkpoint(run, step) / "trainer_state.json").write_text(left if step == 40 else "{}")
    assert run.checkpoints() == [20]
    assert run.adapter_dir() == run.checkpoint_dir(20)


def test_what_is_noted_as_complete_is_not_read_to_list_it(run: Run) -> None:
    folder = add_checkpoint(run, 20)
    write_complete(folder, {"step": 20})
    (folder / "trainer_state.json").write_text("")
    assert run.checkpoints() == [20]
    (folder / "adapter_model.safetensors").unlink()
    assert run.checkpoints() == []


def test_the_adapter_is_the_final_one_or_the_newest_checkpoint(run: Run) -> None:
    with pytest.raises(RunError, match="My run has no adapter yet"):
        run.adapter_dir()
    add_checkpoint(run, 20)
    newest = add_checkpoint(run, 100)
    assert run.adapter_dir() == newest
    half_written = run.path / "adapter"
    half_written.mkdir()
    (half_written / "adapter_model.safetensors").write_bytes(b"weights")
    assert run.adapter_dir() == newest
    write_json(half_written / "complete.json", {"step": 120})
    assert run.adapter_dir() == half_written
    assert run.adapter_dir(20) == run.checkpoint_dir(20)
    with pytest.raises(RunError, match=r"no adapter at step 30; checkpoints: \[20, 100\]"):
        run.adapter_dir(30)


def test_training_questions_are_there_once_training_has_begun(run: Run) -> None:
    assert run.training_questions() == []
    write_json(run.path / "questions.json", ["one", "two"])
    assert run.training_questions() == ["one", "two"]


def test_a_run_is_renamed_and_keeps_the_rest(run: Run) -> None:
    run.rename("  Better name ")
    assert (run.name, run.finetune) == ("Better name", QUICK)


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_names_that_cannot_be_shown_are_refused(run: Run, name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 80 characters"):
        run.rename(name)
    assert run.name == "My run"


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    assert runs.list() == []
    names = ["20260101-000000-aaaa", "20260102-000000-bbbb", "20251231-235959-cccc"]
    for name in names:
        created = runs.create(MODEL, DATASET, QUICK)
        created.path.rename(runs.root / name)
    assert [run.id for run in runs.list()] == sorted(names, reverse=True)


BROKEN = ["", "{", "[]", "null", "{}"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("status.json", '{"state": "dancing"}'), *((file, content) for file in ("status.json", "config.json") for content in BROKEN)],
)
def test_a_damaged_run_hides_itself_and_harms_no_other(runs: Runs, run: Run, file: str, content: str) -> None:
    damaged = runs.create(MODEL, DATASET, QUICK, "Damaged")
    (damaged.path / file).write_text(content)
    assert runs.list() == [run]
    assert runs.active() == run
    assert runs.lost() == [run]


@pytest.mark.parametrize(
    ("file", "without", "changes"),
    [
        ("config.json", "", {"finetune": {**QUICK.model_dump(), "new_setting": 1}}),
        ("config.json", "", {"model": None}),
        ("config.json", "finetune", {}),
        ("config.json", "model", {}),
        ("status.json", "step", {}),
        ("status.json", "steps", {}),
        ("status.json", "", {"state": ["queued"]}),
    ],
)
def test_a_run_that_this_version_cannot_read_hides_itself(runs: Runs, run: Run, file: str, without: str, changes: dict[str, Any]) -> None:
    other = runs.create(MODEL, DATASET, QUICK, "Other")
    given = json.loads((other.path / file).read_text())
    given.pop(without, None)
    write_json(other.path / file, given | changes)
    assert runs.list() == [run]


@pytest.mark.parametrize("process", ["abc", [1], ["a", "b"], [1, 2, 3, 4], {"pid": 1}, 7, [None, None]])
def test_what_names_no_process_trains_no_run(runs: Runs, run: Run, process: Any) -> None:
    run.set_status(state="running", process=process)
    assert runs.lost() == [run]


def test_free_disk_is_told_before_there_is_a_folder(tmp_path: Path) -> None:
    assert 0 < Runs(tmp_path / "not" / "there").free_bytes() <= shutil.disk_usage(tmp_path).total


def test_a_damaged_file_is_named(run: Run) -> None:
    (run.path / "config.json").write_text("{")
    with pytest.raises(RunError, match=rf"{run.id}/config\.json cannot be read"):
        _ = run.finetune


@pytest.mark.parametrize("run_id", ["", ".", "..", "../runs", "/etc", "a/b", "a\\b", "a\0b", "missing", "x" * 300, ".hidden", "a\n"])
def test_ids_that_name_no_run_are_refused(runs: Runs, run: Run, run_id: str) -> None:
    with pytest.raises(RunError, match=f"no run .*Known runs: {run.id}"):
        runs.get(run_id)


def test_a_folder_outside_is_never_a_run(runs: Runs, tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"state": "finished"})
    runs.root.mkdir()
    with pytest.raises(RunError, match="none yet"):
        runs.get("..")


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_run_that_trains_is_active_and_cannot_be_deleted(runs: Runs, run: Run, state: State) -> None:
    run.set_status(state=state)
    assert runs.active() == run
    with pytest.raises(RunError, match="My run is training; stop it"):
        runs.delete(run.id)
    assert run.path.exists()


def test_a_run_that_cannot_be_removed_whole_is_told(runs: Runs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.set_status(state="finished")

    def written_meanwhile(folder: str, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", folder)

    monkeypatch.setattr(shutil, "rmtree", written_meanwhile)
    with pytest.raises(
        RunError, match=r"^Run 2.* could not be removed: Directory not empty\. Close .*, and remove .*/\.removed-.* by hand\.$"
    ):
        runs.delete(run.id)
    assert not run.path.exists(), "a folder with half a run"
    assert runs.list() == []


@pytest.mark.parametrize("state", ["finished", *RESUMABLE])
def test_a_run_that_ended_is_not_active_and_can_be_deleted(runs: Runs, run: Run, state: State) -> None:
    run.set_status(state=state)
    assert runs.active() is None
    (run.path / "config.json").write_text("damaged")
    runs.delete(run.id)
    assert list(runs.root.iterdir()) == []


def test_only_runs_that_claim_to_train_are_lost(runs: Runs) -> None:
    made = {state: runs.create(MODEL, DATASET, QUICK) for state in ("queued", "running", "finished", "stopped", "failed")}
    for state, run in made.items():
        run.set_status(state=state, step=7)
    assert set(runs.lost()) == {made["queued"], made["running"]}


def test_a_recipe_of_a_later_version_is_refused_by_name(run: Run) -> None:
    write_json(run.path / "config.json", {**run.details, "finetune": {**QUICK.model_dump(), "new_setting": 1}})
    with pytest.raises(ConfigError, match="new_setting"):
        _ = run.finetune
    assert isinstance(QUICK, FinetuneConfig)


def test_a_run_that_a_living_process_trains_is_not_lost(runs: Runs) -> None:
    run = runs.create(ModelConfig(), DatasetConfig(), FinetuneConfig())
    run.claim()
    assert run.is_claimed()
    assert runs.lost() == []
    pid, started, *boot = run.status["process"]
    run.set_status(process=[pid, started - 1, *boot])
    assert not run.is_claimed(), "another process now has that number"
    assert runs.lost() == [run]
