"""What is decided of a run before it trains, and that a run which goes on does so with the same rows in the same precision."""

import deepdoctor.engine.accelerator  # noqa: F401

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine.ahead import Ahead, ahead_of
from deepdoctor.engine.finetune import finetune
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.session import Session, never
from deepdoctor.errors import DatasetError, ModelError
from deepdoctor.planner import Decision
from deepdoctor.runs import Run
from tests.engine import tiny


def stopped_run(session: Session, dataset: DatasetConfig, **changes: object) -> Run:
    """A run that was stopped after two of its four steps."""
    run = tiny.new_run(session, dataset, **changes)
    session.finetune(run.id, should_stop=tiny.StopAfter(2))
    assert (run.state, run.checkpoints()) == ("stopped", [2])
    return run


def test_off_unsloth_one_process_prepares_and_decides_for_itself(session: Session, dataset: DatasetConfig) -> None:
    loaded = tiny.model_of(session)
    assert ahead_of(loaded, tiny.new_run(session, dataset)) == Ahead(loaded.config)


def test_weights_that_changed_under_their_name_are_noticed(session: Session, dataset: DatasetConfig, llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    session.load(ModelConfig(name=str(model)))
    run = stopped_run(session, dataset)
    asked = Compare("A patient aged 50 has thirst. What is it?", run.id, sampling=tiny.GREEDY)
    assert list(session.compare(asked))[-1].proof
    shutil.rmtree(model)
    other = tiny.open_session(session.data_dir, tiny.save_model(model, seed=7))
    for work in (lambda: list(other.compare(asked)), lambda: other.export(Export(run.id)), lambda: other.finetune(run.id, resume=True)):
        with pytest.raises(ModelError, match="was trained on other weights than those of"):
            work()
    other.load(ModelConfig(name=str(model), precision="bfloat16"))
    with pytest.raises(ModelError, match="was trained on other weights"):
        other.finetune(run.id, resume=True)
    assert run.checkpoints() == [2]


def test_what_was_decided_is_taken(session: Session, dataset: DatasetConfig) -> None:
    loaded, run = tiny.model_of(session), tiny.new_run(session, dataset, batching="auto", accumulation=2)
    ahead = ahead_of(loaded, tiny.new_run(session, dataset, batching="auto", accumulation=2, devices=2))
    assert ahead.decision
    assert (ahead.model, ahead.decision.how.devices, ahead.decision.how.batch) == (loaded.config, 2, 3)
    slower = ahead.decision._replace(how=replace(ahead.decision.how, devices=1, batch=2, accumulation=3))
    assert Decision.of(json.loads(json.dumps(slower.to_dict()))) == slower
    finetune(loaded, run, never, ahead=replace(ahead, decision=slower))
    assert (run.status["plan"]["how"]["batch"], run.status["plan"]["how"]["accumulation"]) == (2, 3)


def test_a_run_goes_on_with_its_own_rows_only(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    run = stopped_run(session, tiny.write_rows(file, tiny.rows()))
    asked = run.training_questions()
    kept = (run.path / "rows.json").read_bytes()
    tiny.write_rows(file, [*tiny.rows((30,)), *tiny.rows()])
    with pytest.raises(DatasetError, match=r"rows\.jsonl.* are no longer those that run .* has trained on.*start a new run"):
        session.finetune(run.id, resume=True)
    assert (run.state, run.checkpoints(), run.training_questions()) == ("failed", [2], asked)
    assert (run.path / "rows.json").read_bytes() == kept
    assert list(tiny.losses(run)) == [1, 2]
    tiny.write_rows(file, tiny.rows())
    assert session.finetune(run.id, resume=True).state == "finished"


def test_a_run_goes_on_in_the_precision_it_began_in(session: Session, dataset: DatasetConfig, llama: Path) -> None:
    run = stopped_run(session, dataset)
    session.load(ModelConfig(name=str(llama), precision="bfloat16"))
    assert tiny.model_of(session).dtype == torch.bfloat16
    session.finetune(run.id, resume=True)
    assert (run.state, run.status["precision"]) == ("finished", "float32")
    assert tiny.model_of(session).dtype == torch.float32


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_run_goes_on_from_the_newest_checkpoint_that_can_be_read(trained: tuple[Session, Run], tmp_path: Path, name: str) -> None:
    session, whole = trained
    run = Run(tmp_path / "runs" / "torn")
    shutil.copytree(whole.path, run.path)
    written = {step: (run.checkpoint_dir(step) / name).read_bytes() for step in (4, 6)}
    (run.checkpoint_dir(6) / name).write_bytes(written[6][: len(written[6]) // 2])
    # as long as it was, but its beginning had not reached the disk when the power was lost
    (run.checkpoint_dir(4) / name).write_bytes(bytes(100) + written[4][100:])
    assert run.checkpoints() == [2, 4, 6]
    ahead_of(tiny.model_of(session), run)
    assert run.checkpoints() == [2]
    assert [line.split(" ", 1)[1] for line in run.log_tail(2).splitlines()] == [
        f"Checkpoint {step} was removed, because its {name} is damaged; what was trained since the one before it is trained again."
        for step in (6, 4)
    ]


def test_what_cannot_be_read_now_may_be_later(trained: tuple[Session, Run], tmp_path: Path) -> None:
    session, whole = trained
    run = Run(tmp_path / "runs" / "torn")
    shutil.copytree(whole.path, run.path)
    (run.checkpoint_dir(6) / "optimizer.pt").unlink()
    (run.checkpoint_dir(6) / "optimizer.pt").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        ahead_of(tiny.model_of(session), run)
    assert run.checkpoints() == [2, 4, 6]


@pytest.mark.parametrize(
    ("began", "held", "fits"), [("bfloat16", "bfloat16", False), ("4bit", "bfloat16", True), ("bfloat16", "4bit", True)]
)
def test_on_a_gpu_too_whatever_a_plan_would_choose_now(session: Session, dataset: DatasetConfig, began: str, held: str, fits: bool) -> None:
    run = stopped_run(session, dataset, base_precision="auto")
    run.set_status(precision=began)
    loaded = tiny.model_of(session)
    memory = 80 * 2**30 if fits else 1
    loaded.info = replace(loaded.info, backend="unsloth", precision=held, device="NVIDIA L4", memory_bytes=memory)
    ahead = ahead_of(loaded, run)
    assert ahead.decision
    assert ("4bit" if began == "4bit" else "16bit", ahead.model.precision) == (
        "4bit" if ahead.decision.how.precision == "4bit" else "16bit",
        loaded.config.precision if began == held else began,
    )
    assert ahead.decision.choices[0].why == "As the run began."
