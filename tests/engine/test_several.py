"""Training by several processes: here two on one CPU, which exchange their gradients by gloo. The run is that of one process."""

import deepdoctor.engine.accelerator  # noqa: F401

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.finetune import Filled
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.session import Session
from deepdoctor.engine.several import end, launch_command, why_failed, workers_folder
from deepdoctor.engine.worker import ENGINE_GONE, ReadRun, of_machine, take_place
from deepdoctor.errors import ConfigError, EngineError
from deepdoctor.files import write_json
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.across import begin, log_of, training
from tests.planned import LLAMA_8B, NANO

STEPS = 40
# 9 rows in steps of 4, 4 and 1: on each of two devices 1 × 2 rows, again, and then one row on the first and a blank one on the second
RECIPE = {"max_steps": STEPS, "batching": "as_set", "batch_size": 1, "accumulation": 4, "learning_rate": 0.002}
# 7 steps are two epochs and a third
OFTEN = {"logging_steps": 5, "eval_steps": 20, "checkpoint_steps": 7, "checkpoints_kept": 100, "probe_steps": 20}
CUT_OFF = 7
TOLERANCE = 1e-4
pytestmark = pytest.mark.timeout(180)


def children_of(run: Run) -> list[psutil.Process]:
    """Processes that train the run, by what they were started with."""
    return [each for each in psutil.process_iter(["cmdline"]) if str(run.path) in " ".join(each.info["cmdline"] or [])]


def train(session: Session, run: Run, resume: bool = False, stop_at: int = STEPS) -> Run:
    """Train a run, and ask it to stop as soon as its status tells of that step."""
    return session.finetune(run.id, resume, lambda: int(run.status["step"]) >= stop_at)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Session:
    """A session with the tiny Llama for all tests of this file."""
    return tiny.open_session(tmp_path_factory.mktemp("several"), llama)


@pytest.fixture(scope="module")
def stopped(opened: Session, dataset: DatasetConfig) -> tuple[Run, int]:
    """A run by two processes that was stopped in the middle, and at which step."""
    run = train(opened, tiny.new_run(opened, dataset, **RECIPE, **OFTEN, devices=2), stop_at=CUT_OFF)
    assert run.state == "stopped", run.log_tail()
    return run, run.status["step"]


def test_stopped_and_resumed_it_has_the_curves_of_one_process(opened: Session, dataset: DatasetConfig, stopped: tuple[Run, int]) -> None:
    run, step = stopped
    one = opened.finetune(tiny.new_run(opened, dataset, **RECIPE, **OFTEN).id)
    damaged = opened.runs.root / "damaged"
    shutil.copytree(run.path, damaged)
    assert CUT_OFF <= step < STEPS
    assert run.checkpoints()[-1] == step
    for later in run.checkpoints():
        if later != CUT_OFF:
            shutil.rmtree(run.checkpoint_dir(later))
    train(opened, run, resume=True)
    assert (run.state, run.status["step"], run.status["resumed"]) == ("finished", STEPS, True)
    for name in ("loss", "learning_rate", "grad_norm", "held_out_loss"):
        assert tiny.losses(run, name) == pytest.approx(tiny.losses(one, name), rel=TOLERANCE), name
    assert len(run.curve()) == len(one.curve()), "one process writes"
    assert [row["response"] for row in run.probes()] == [row["response"] for row in one.probes()]
    assert run.training_questions() == one.training_questions()
    assert (run.status["rows"], run.status["device"], one.status["device"]) == (9, "CPU × 2", "CPU")
    assert run.status["plan"]["choices"][-1]["name"] == "GPUs"
    assert not children_of(run)
    *_, made = opened.compare(Compare("A patient aged 50 has thirst. What is it?", run.id, sampling=tiny.GREEDY))
    assert made.proof is not None

    torch.save({}, damaged / f"checkpoints/checkpoint-{step}/optimizer.pt")
    other = opened.runs.get("damaged")
    with pytest.raises(EngineError) as failed:
        train(opened, other, resume=True)
    assert (other.state, other.status["message"]) == ("failed", str(failed.value))
    assert str(failed.value).endswith("Details are in workers/output.log in the run's folder.")
    assert "Traceback" in (workers_folder(other) / "output.log").read_text()
    assert f"Failed: {failed.value}" in other.log_tail()
    assert not children_of(other)
    *_, made = opened.compare(Compare("A patient aged 20 has fever. What is it?", run.id, sampling=tiny.GREEDY))
    assert made.proof is not None


def test_when_the_engine_is_killed_its_processes_save_and_end(tmp_path: Path, llama: Path, dataset: DatasetConfig) -> None:
    with EngineClient(tmp_path / "data", ModelConfig(name=str(llama))) as client:
        assert tiny.until(lambda: client.state.phase == "ready", 60), log_of(client)
        run = begin(client, dataset, **{**RECIPE, **OFTEN, "max_steps": 100_000}, devices=2)
        assert tiny.until(lambda: training(run, 3), 60), log_of(client)
        process = psutil.Process(int(run.status["process"][0]))
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        assert tiny.until(lambda: run.state == "interrupted", 30), run.log_tail()
        assert run.status["message"] == ENGINE_GONE
        assert run.checkpoints()[-1] == run.status["step"]
        assert tiny.until(lambda: not process.is_running() and not children_of(run), 30)


def test_more_devices_than_there_are_are_told_before_anything_starts(opened: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(opened, dataset, batch_size=64, devices=64)
    loaded = opened.loaded
    with pytest.raises(ConfigError, match=r"^GPUs: without one, at most \d+ processes share the CPU \(given: 64\)\.$"):
        opened.finetune(run.id)
    assert run.state == "failed"
    assert opened.loaded is loaded
    assert not workers_folder(run).exists()


@pytest.mark.parametrize(("rows", "batch", "devices"), [(9, 2, 2), (9, 4, 2), (16, 4, 2), (7, 2, 4), (1, 1, 3)])
def test_every_row_once_and_every_device_as_many_full_batches(rows: int, batch: int, devices: int) -> None:
    epochs = []
    for epoch in (0, 1):
        orders = [Filled(rows, batch * devices, seed=1) for _device in range(devices)]
        for order in orders:
            order.set_epoch(epoch)
        batches = [BatchSampler(order, batch, drop_last=False) for order in orders]
        shards = [list(BatchSamplerShard(each, devices, place)) for place, each in enumerate(batches)]
        assert len({len(shard) for shard in shards}) == 1
        seen = [row for together in zip(*shards, strict=True) for each in together for row in each]
        assert sorted(seen[:rows]) == list(range(rows))
        assert seen[rows:] == [rows] * (len(seen) - rows)
        epochs.append(seen[:rows])
    assert rows < 7 or epochs[0] != epochs[1]


def test_processes_after_the_first_write_nothing(opened: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(opened, dataset, wandb="offline", probe_steps=1)
    before = {file: file.read_bytes() for file in run.path.iterdir()}
    reader = ReadRun(run.path)
    reader.claim()
    reader.append_metric({"step": 1, "loss": 1.0})
    reader.append_probe({"step": 1, "question": "?"})
    reader.keep("questions.json", [])
    reader.log("What?")
    assert {file: file.read_bytes() for file in run.path.iterdir()} == before
    assert not reader.writes
    assert reader.finetune == run.finetune.changed(wandb="off", probe_steps=0)


def test_processes_plan_with_the_whole_machine() -> None:
    assert of_machine(LLAMA_8B, 2, cuda=True) == replace(LLAMA_8B, devices=2)
    assert of_machine(NANO, 2, cuda=False) == replace(NANO, devices=2, flops=2 * NANO.flops)


@pytest.mark.parametrize(("visible", "seen"), [(None, "1"), ("4,6", "6"), ("GPU-a, GPU-b", "GPU-b")])
def test_each_process_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str) -> None:
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "UNSLOTH_COMPILE_LOCATION": "compiled"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert take_place(cuda=True) == 1
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"]) == (seen, "0")
    assert os.environ["UNSLOTH_COMPILE_LOCATION"] == "compiled-1"


def test_on_a_cpu_a_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    assert take_place(cuda=False) == 1
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"]) == ("", "1")


def test_why_processes_failed_is_told_in_the_first_ones_words_or_their_last_lines(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_text("".join(f"line {number}\n\n" for number in range(9)))
    told = why_failed(tmp_path, -9)
    assert "killed by signal 9" in told
    assert told.endswith("line 4\nline 5\nline 6\nline 7\nline 8")
    write_json(tmp_path / "error.json", {"message": "Out of memory while training."})
    assert why_failed(tmp_path, 1) == "Out of memory while training."


def test_a_launcher_is_ended_with_what_it_started() -> None:
    # goes on when its child is gone: whichever of them is killed first
    launcher = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 100 & while :; do wait; done"], start_new_session=True)
    assert tiny.until(lambda: bool(psutil.Process(launcher.pid).children()))
    (child,) = psutil.Process(launcher.pid).children()
    end(launcher, wait=0.2)
    assert launcher.returncode == -signal.SIGKILL
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # dead: whoever inherits it may not ask for it


def test_the_launcher_is_the_librarys(opened: Session, dataset: DatasetConfig) -> None:
    from accelerate.commands.launch import launch_command_parser

    command = launch_command(tiny.new_run(opened, dataset, batch_size=4, devices=2))
    given = launch_command_parser().parse_args(command[3:])
    assert (given.num_processes, given.multi_gpu, given.module, given.main_process_port) == (2, True, True, 0)
