"""Training: what the model is shown, what is written down, and that stopping and resuming change nothing."""

import gc
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError

from deepdoctor.checkpoints import adapter_step
from deepdoctor.checks import check, token_lengths
from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import Example
from deepdoctor.engine.adapters import fresh_adapter, select_adapter
from deepdoctor.engine.ahead import Ahead
from deepdoctor.engine.finetune import collator, finetune, trainer_arguments
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.rows import prepare_rows
from deepdoctor.engine.session import Session, never
from deepdoctor.errors import DatasetError, ModelError, RunError
from deepdoctor.estimates import SAVED_BESIDE_BYTES, How, checkpoint_bytes
from deepdoctor.plan import plan
from deepdoctor.prompts import ARTICLE
from deepdoctor.runs import Run
from deepdoctor.tokens import IGNORED
from tests.engine import tiny
from tests.engine.full_disk import largest_file

RESUME_TOLERANCE = 1e-6


def seen_batches(session: Session, run: Run) -> list[dict[str, Any]]:
    """Train a run and return every batch that reached the model for training."""
    loaded = tiny.model_of(session)
    batches: list[dict[str, Any]] = []

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        if given.get("labels") is not None:
            batches.append({name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)})

    fresh_adapter(loaded, run.finetune)
    assert loaded.peft is not None
    hook = loaded.peft.register_forward_pre_hook(look, with_kwargs=True)
    session.finetune(run.id)
    hook.remove()
    return batches


def test_a_run_writes_its_metrics_checkpoints_probes_and_state(trained: tuple[Session, Run]) -> None:
    _session, run = trained
    rows = run.curve()
    assert list(tiny.losses(run)) == [1, 2, 3, 4, 5, 6]
    assert list(tiny.losses(run, "held_out_loss")) == [0, 3, 6]
    for row in rows:
        if "loss" in row:
            assert {"learning_rate", "grad_norm", "epoch", "tokens_per_second", "memory_gib"} <= set(row)
            assert row["tokens_per_second"] > 0
        else:
            assert {"held_out_reasoning_loss", "held_out_response_loss"} <= set(row)
    assert [row["step"] for row in run.probes()] == [0, 3, 6]
    assert len({row["question"] for row in run.probes()}) == 1
    assert all({"reasoning", "response", "closed", "tokens"} <= set(row) for row in run.probes())
    assert run.checkpoints() == [2, 4, 6]
    status = run.status
    assert (status["state"], status["step"], status["steps"], status["rows"]) == ("finished", 6, 6, 9)
    assert status["trainable_parameters"] == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert status["wall_seconds"] > 0
    assert (status["precision"], status["backend"], status["device"]) == ("float32", "transformers", "CPU")
    lengths = [len(row.ids) for row in prepare_rows(tiny.model_of(_session), run).train]
    assert status["planned_bytes"] == plan(run.finetune, tiny.model_of(_session).info, lengths).memory_bytes
    assert psutil.Process().memory_info().rss / 4 < status["peak_bytes"] < psutil.virtual_memory().total
    assert len(run.training_questions()) == 9
    assert "step 6: loss" in run.log_tail()
    assert (run.path / "adapter" / "complete.json").exists()
    for step in run.checkpoints():
        times = {file.name: file.stat().st_mtime_ns for file in run.checkpoint_dir(step).iterdir()}
        assert times.pop("complete.json") >= max(times.values()), "what says that a checkpoint is whole is written last"


def test_the_held_out_loss_goes_down_on_something_learnable(trained: tuple[Session, Run]) -> None:
    held_out = tiny.losses(trained[1], "held_out_loss")
    assert held_out[6] < 0.95 * held_out[0]
    assert tiny.losses(trained[1])[6] < tiny.losses(trained[1])[1]


def test_the_held_out_loss_at_step_zero_is_that_of_the_base(trained: tuple[Session, Run], llama: Path) -> None:
    from deepdoctor.engine.evaluate import held_out_loss

    session, run = trained
    rows = prepare_rows(tiny.model_of(session), run)
    assert tiny.losses(run, "held_out_loss")[0] == held_out_loss(tiny.plain(llama), rows.held_out)["held_out_loss"]
    tuned = PeftModel.from_pretrained(tiny.plain(llama), run.adapter_dir(), adapter_name="tuned").get_base_model()
    assert tiny.losses(run, "held_out_loss")[6] == pytest.approx(held_out_loss(tuned, rows.held_out, "tuned")["held_out_loss"], abs=2e-5)


def test_evaluating_between_steps_changes_nothing_of_the_training(session: Session, dataset: DatasetConfig) -> None:
    recipe = {"max_steps": 5, "lora_dropout": 0.2}
    quiet = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    watched = session.finetune(tiny.new_run(session, dataset, **recipe, eval_steps=1).id)
    assert list(tiny.losses(watched, "held_out_loss")) == [0, 1, 2, 3, 4, 5]
    assert tiny.losses(watched) == tiny.losses(quiet)
    for name, weight in weights(quiet).items():
        assert torch.equal(weights(watched)[name], weight)


@pytest.mark.parametrize(("supervision", "padded_to"), [("whole_text", 0), ("response_only", 0), ("whole_text", 32)])
def test_what_reaches_the_model(session: Session, dataset: DatasetConfig, supervision: str, padded_to: int) -> None:
    run = tiny.new_run(session, dataset, supervision=supervision, max_steps=3, padded_to=padded_to)
    batches = seen_batches(session, run)
    tokenizer = tiny.model_of(session).tokenizer
    seen = []
    for batch in batches:
        assert padded_to == 0 or batch["input_ids"].shape[1] % padded_to == 0
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            text, targets = ids[mask.bool()].tolist(), labels[mask.bool()].tolist()
            assert text.count(0) == 1
            assert text[0] == 0
            assert text.count(1) == 1
            assert text[-1] == 1
            assert set(labels[~mask.bool()].tolist()) <= {IGNORED}
            prompt = tokenizer.decode([token for token, target in zip(text, targets, strict=True) if target == IGNORED])
            if supervision == "whole_text":
                assert targets == text
            else:
                assert prompt.endswith("### Response:\n<think>")
                assert tokenizer.decode([target for target in targets if target != IGNORED]).startswith("\nThe sign is")
                assert targets[-1] == 1
            seen.append(tokenizer.decode(text, skip_special_tokens=True))
    assert len(seen) == 9
    assert len(set(seen)) == 9, "one epoch shows every row once"


def test_rows_behind_each_other_are_those_of_the_padded_batch(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, supervision="response_only")
    loaded = session.load(run.model)
    columns = prepare_rows(loaded, run).columns()
    rows = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)][:3]
    padded, in_line = (collator(loaded, How("float32", 3, 1, False, padded_to=multiple))(rows) for multiple in (1, 0))
    lengths = in_line["packed_seq_lengths"]
    assert lengths.tolist() == padded["attention_mask"].sum(1).tolist()
    for name in ("input_ids", "labels"):
        side_by_side = in_line[name][0].split(lengths.tolist())
        assert all(torch.equal(found, row[: len(found)]) for found, row in zip(side_by_side, padded[name], strict=True))
    assert in_line["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]


def test_no_row_is_predicted_from_the_one_before_it(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, supervision="whole_text")
    loaded = session.load(run.model)
    columns = prepare_rows(loaded, run).columns()
    rows = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)][:3]
    found = collator(loaded, How("float32", 3, 1, False, padded_to=0))(rows)
    assert [place for place, label in enumerate(found["labels"][0].tolist()) if label == IGNORED] == [
        place for place, at in enumerate(found["position_ids"][0].tolist()) if at == 0
    ]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("supervision", ["whole_text", "response_only"])
def test_the_first_loss_is_the_mean_over_supervised_tokens(
    session: Session, dataset: DatasetConfig, llama: Path, supervision: str, accumulation: int
) -> None:
    changes = {"supervision": supervision, "batch_size": 9 // accumulation, "accumulation": accumulation, "batching": "as_set"}
    run = tiny.new_run(session, dataset, max_steps=1, **changes)
    session.finetune(run.id)
    model, total, count = tiny.plain(llama).requires_grad_(False), 0.0, 0
    columns = prepare_rows(tiny.model_of(session), run).columns()
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        tokens = sum(label != IGNORED for label in labels[1:])
        total += float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss) * tokens
        count += tokens
    assert tiny.losses(run)[1] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(("stop_at", "logging_steps"), [(3, 2), (4, 5)])
def test_a_resumed_run_has_the_curve_of_an_uninterrupted_one(
    session: Session, dataset: DatasetConfig, stop_at: int, logging_steps: int
) -> None:
    recipe = {"max_steps": 6, "logging_steps": logging_steps, "eval_steps": 3, "checkpoint_steps": 100, "lora_dropout": 0.1}
    whole = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    run = tiny.new_run(session, dataset, **recipe)
    session.finetune(run.id, should_stop=tiny.StopAfter(stop_at))
    assert (run.state, run.status["step"], run.checkpoints()) == ("stopped", stop_at, [stop_at])
    assert max(tiny.losses(run), default=0) <= stop_at
    session.finetune(run.id, resume=True)
    assert (run.state, run.status["step"]) == ("finished", 6)
    for name in ("loss", "learning_rate", "grad_norm", "held_out_loss"):
        assert tiny.losses(run, name) == pytest.approx(tiny.losses(whole, name), rel=RESUME_TOLERANCE), name
    for name, weight in weights(whole).items():
        assert torch.allclose(weights(run)[name], weight, rtol=1e-5, atol=1e-7)


def test_a_run_stopped_within_a_probe_trains_no_step_more(session: Session, dataset: DatasetConfig) -> None:
    recipe = {"max_steps": 5, "probe_steps": 2, "probe_tokens": 3, "eval_steps": 2, "checkpoint_steps": 100}
    whole = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    run, asked_twice, at_once = tiny.new_run(session, dataset, **recipe), tiny.StopAfter(2), tiny.StopAfter(0)
    session.finetune(run.id, should_stop=at_once)
    assert (run.state, run.status["message"], run.checkpoints()) == ("stopped", "Stopped at step 0", [])
    with pytest.raises(RunError, match="no adapter yet"):
        run.adapter_dir()

    # first asked when the step has ended, then within its probe
    session.finetune(run.id, resume=True, should_stop=lambda: run.status["step"] == 2 and asked_twice())
    assert (run.state, run.status["step"], run.checkpoints()) == ("stopped", 2, [2])
    assert [row["step"] for row in run.probes()] == [0]
    before = run.adapter_dir()
    session.finetune(run.id, resume=True, should_stop=at_once)
    assert (run.state, run.status["message"], run.adapter_dir()) == ("stopped", "Stopped at step 2", before)
    session.finetune(run.id, resume=True)
    assert [(row["step"], row["text"]) for row in run.probes()] == [(row["step"], row["text"]) for row in whole.probes()]
    assert tiny.losses(run) == pytest.approx(tiny.losses(whole), rel=RESUME_TOLERANCE)


def weights(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.adapter_dir() / "adapter_model.safetensors")


def test_a_run_resumes_the_same_while_other_adapters_are_attached(session: Session, dataset: DatasetConfig, adapter: Path) -> None:
    recipe = {"max_steps": 5, "checkpoint_steps": 100}
    whole = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    select_adapter(tiny.model_of(session), adapter)
    run = tiny.new_run(session, dataset, **recipe)
    session.finetune(run.id, should_stop=tiny.StopAfter(2))
    saved = run.checkpoint_dir(2)
    assert not [folder for folder in saved.iterdir() if folder.is_dir()], "a checkpoint holds the trained adapter only"
    *_, made = session.compare(Compare("A patient aged 50 has thirst. What is it?", run.id, sampling=tiny.GREEDY))
    assert made.proof is not None
    session.finetune(run.id, resume=True)
    assert tiny.losses(run) == pytest.approx(tiny.losses(whole), rel=RESUME_TOLERANCE)


def test_a_run_resumes_in_another_process_after_being_cut_off(session: Session, dataset: DatasetConfig, llama: Path) -> None:
    recipe = {"max_steps": 6, "checkpoint_steps": 2, "logging_steps": 2}
    whole = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    run = tiny.new_run(session, dataset, **recipe)
    left = tiny.StopAfter(5)

    def cut_off() -> bool:
        if left():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        session.finetune(run.id, should_stop=cut_off)
    assert run.checkpoints() == [2, 4]
    run.append_metric({"step": 5, "loss": 99.0})
    tiny.open_session(session.data_dir, llama).finetune(run.id, resume=True)
    assert tiny.losses(run) == pytest.approx(tiny.losses(whole), rel=RESUME_TOLERANCE)
    assert run.status["resumed"] is True


def test_resuming_without_a_checkpoint_begins_again(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=2)
    session.finetune(run.id, resume=True)
    assert run.state == "finished"
    assert list(tiny.losses(run)) == [1, 2]
    assert "No checkpoint was saved" in run.log_tail(99)


def test_what_an_attempt_without_a_checkpoint_wrote_counts_no_more(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=4, checkpoint_steps=100, eval_steps=1)
    for step in range(4):
        run.append_metric({"step": step, "loss": 99.0, "held_out_loss": 0.001})
    session.finetune(run.id, resume=True)
    assert [row["step"] for row in run.curve() if "held_out_loss" in row] == [0, 1, 2, 3, 4]
    assert max(tiny.losses(run).values()) < 99
    assert min(tiny.losses(run, "held_out_loss").values()) > 0.001


def test_a_run_cut_off_between_its_last_checkpoint_and_its_adapter_trains_no_further(session: Session, dataset: DatasetConfig) -> None:
    # 9 rows, 4 steps of 2: the epoch has one step more
    run = session.finetune(tiny.new_run(session, dataset, max_steps=4, batch_size=2, scheduler="constant_with_warmup").id)
    before, curve = weights(run), run.curve()
    shutil.rmtree(run.path / "adapter")
    run.set_status(state="interrupted")
    session.finetune(run.id, resume=True)
    assert (run.state, run.status["step"], run.status["message"], run.checkpoints()) == ("finished", 4, "Finished at step 4", [2, 4])
    assert run.curve() == curve
    assert weights(run).keys() == before.keys()
    assert all(torch.equal(weights(run)[name], weight) for name, weight in before.items())
    (run.path / "adapter" / "complete.json").unlink()
    (run.checkpoint_dir(4) / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="checkpoint-4 is damaged: it cannot be read"):
        finetune(tiny.model_of(session), run, never, resume=True)
    session.finetune(run.id, resume=True)
    assert "Resuming from step 2" in run.log_tail(99)
    assert (run.state, run.checkpoints(), tiny.losses(run)) == (
        "finished",
        [2, 4],
        {row["step"]: row["loss"] for row in curve if "loss" in row},
    )
    assert all(torch.equal(weights(run)[name], weight) for name, weight in before.items())


def test_the_adapter_of_a_run_that_went_on_is_not_that_of_the_stop_before(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=9, checkpoint_steps=5)
    session.finetune(run.id, should_stop=tiny.StopAfter(3))
    adapters = []

    def cut_off() -> bool:
        adapters.append(adapter_step(run))
        if run.status["step"] == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        session.finetune(run.id, resume=True, should_stop=cut_off)
    assert adapters == [3, 3, 5]
    assert run.adapter_dir() == run.checkpoint_dir(5)


def test_a_final_adapter_that_could_not_be_written_does_not_count(trained: tuple[Session, Run]) -> None:
    session, whole = trained
    run = Run(whole.path.with_name("not-written"))
    shutil.copytree(whole.path, run.path)
    with largest_file((run.path / "adapter" / "adapter_model.safetensors").stat().st_size - 1), pytest.raises(SafetensorError):
        finetune(tiny.model_of(session), run, never, resume=True)
    assert run.adapter_dir() == run.checkpoint_dir(6)


def test_only_so_many_checkpoints_are_kept(session: Session, dataset: DatasetConfig) -> None:
    run = session.finetune(tiny.new_run(session, dataset, max_steps=4, checkpoint_steps=1, checkpoints_kept=2).id)
    assert run.checkpoints() == [3, 4]


def test_the_checkpoint_of_the_best_held_out_loss_outlives_newer_ones_and_a_resume(session: Session, dataset: DatasetConfig) -> None:
    # so fast that it soon learns the rows by heart, and the held-out loss rises
    recipe: dict[str, Any] = {"max_steps": 8, "checkpoint_steps": 1, "eval_steps": 1, "checkpoints_kept": 2, "learning_rate": 0.5}
    whole = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    losses = tiny.losses(whole, "held_out_loss")
    best = min(range(1, 9), key=lambda step: losses[step])
    assert best < 7, "or the rotation would keep it anyway"
    assert whole.checkpoints() == [best, 8]
    assert whole.status["best_checkpoint"] == {"step": best, "held_out_loss": losses[best]}
    assert "removed checkpoint" in whole.log_tail(99)
    cut = tiny.new_run(session, dataset, **recipe)
    session.finetune(cut.id, should_stop=tiny.StopAfter(6))
    assert cut.checkpoints()[-1] == 6
    session.finetune(cut.id, resume=True)
    assert (tiny.losses(cut, "held_out_loss"), cut.checkpoints()) == (losses, [best, 8])


def test_checkpoints_take_the_disk_that_was_planned_and_a_full_disk_is_refused_first(session: Session, dataset: DatasetConfig) -> None:
    loaded, run = tiny.model_of(session), tiny.new_run(session, dataset, max_steps=6, checkpoint_steps=2, checkpoints_kept=2)
    needed = plan(run.finetune, loaded.info, [50]).disk_bytes
    with pytest.raises(RunError, match="Checkpoints kept"):
        finetune(loaded, run, never, disk=needed - 1)
    assert not (run.path / "checkpoints").exists()
    session.finetune(run.id)
    checkpoint = sum(file.stat().st_size for file in run.checkpoint_dir(6).iterdir())
    assert checkpoint < checkpoint_bytes(run.finetune, loaded.info, 6) < checkpoint + SAVED_BESIDE_BYTES
    assert sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file()) < needed


def test_a_second_training_in_the_same_process(session: Session, dataset: DatasetConfig) -> None:
    base = tiny.model_of(session).base
    first = session.finetune(tiny.new_run(session, dataset).id)
    assert "forward" not in vars(base), "the trainer's wrapper is gone"
    second = session.finetune(tiny.new_run(session, dataset).id)
    assert tiny.losses(second) == tiny.losses(first)
    assert "forward" not in vars(base)
    other = session.finetune(tiny.new_run(session, dataset, lora_rank=2, seed=1).id)
    assert tiny.losses(other) != tiny.losses(first)


def test_over_length_rows_are_left_out_and_counted(session: Session, tmp_path: Path) -> None:
    long = {"Question": "Is it long?", "Complex_CoT": "fever " * 150, "Response": "Yes."}
    run = tiny.new_run(
        session, tiny.write_rows(tmp_path / "rows.jsonl", [long, *tiny.rows()]), max_seq_length=150, held_out_rows=0, max_steps=1
    )
    session.finetune(run.id)
    assert run.status["rows"] == 12
    assert "Is it long?" not in run.training_questions()
    assert '"over_length": 1' in (run.path / "rows.json").read_text()


def test_no_row_longer_than_the_model_reads(session: Session, tmp_path: Path) -> None:
    long = {"Question": "Is it long?", "Complex_CoT": "fever " * tiny.CONTEXT, "Response": "Yes."}
    run = tiny.new_run(session, tiny.write_rows(tmp_path / "rows.jsonl", [long, *tiny.rows()]), held_out_rows=0, max_steps=1)
    session.finetune(run.id)
    assert run.status["rows"] == 12


def test_over_length_held_out_rows_are_left_out_too(session: Session, tmp_path: Path) -> None:
    long = [{"Question": f"Is it long {n}?", "Complex_CoT": "fever " * tiny.CONTEXT, "Response": "Yes."} for n in range(30)]
    dataset = tiny.write_rows(tmp_path / "rows.jsonl", [*long, *tiny.rows()])
    run = tiny.new_run(session, dataset, held_out_rows=25, max_steps=1)
    rows = prepare_rows(tiny.model_of(session), run)
    assert max(len(row.ids) for row in rows.held_out) <= tiny.CONTEXT


def test_nothing_left_to_train_on(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_seq_length=16)
    with pytest.raises(DatasetError, match="left to train on"):
        session.finetune(run.id)
    assert run.state == "failed"
    assert "left to train on" in run.status["message"]
    assert "Failed: " in run.log_tail()


def test_an_unexpected_error_is_written_down_and_the_next_run_trains(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset)

    def broken() -> bool:
        raise RuntimeError("the disk caught fire")

    with pytest.raises(RuntimeError, match="caught fire"):
        session.finetune(run.id, should_stop=broken)
    assert (run.state, run.status["message"]) == ("failed", "RuntimeError: the disk caught fire")
    assert session.finetune(tiny.new_run(session, dataset, max_steps=1).id).state == "finished"


def test_losses_that_are_no_numbers_are_not_told_as_if_they_were(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=6, held_out_rows=0, probe_steps=0, checkpoint_steps=1)
    norm = tiny.model_of(session).base.model.norm.weight
    sound = norm.detach().clone()
    norm.data.fill_(math.nan)
    try:
        with pytest.raises(RunError, match="diverged at step 1:"):
            session.finetune(run.id)
    finally:
        norm.data.copy_(sound)
    assert run.state == "failed"
    assert all(math.isnan(loss) for loss in tiny.losses(run).values())
    assert run.checkpoints() == []


def test_training_prints_nothing(session: Session, dataset: DatasetConfig, capfd: pytest.CaptureFixture[str]) -> None:
    """The command line's JSON shares the stream."""
    session.finetune(tiny.new_run(session, dataset, max_steps=2).id)
    assert capfd.readouterr().out == ""


def test_whole_epochs(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=0, epochs=2, warmup_steps=0, batch_size=4)
    session.finetune(run.id)
    assert run.status["steps"] == run.status["step"] == 6
    assert run.curve()[-1]["step"] == 6


def test_the_recipe_reaches_the_trainer(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, scheduler="cosine", weight_decay=0.05, accumulation=2, optimizer="adamw_8bit")
    given = trainer_arguments(run, How("float32", 3, 2, False, workers=1), 4, tiny.model_of(session))
    assert (given.lr_scheduler_type, given.weight_decay) == ("cosine", 0.05)
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps, given.dataloader_num_workers) == (3, 2, 1)
    assert given.optim == "adamw_torch", "8-bit needs a GPU"
    assert given.max_length is None, "nothing is cut off"
    assert not given.gradient_checkpointing


@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "as_set", "batch_size": 2, "accumulation": 4},
        {"padded_to": 64},
        {"batching": "as_set", "batch_size": 1, "accumulation": 8, "padded_to": 64, "loader_workers": 1},
    ],
)
@pytest.mark.parametrize("supervision", ["whole_text", "response_only"])
def test_however_it_is_computed_the_losses_are_the_same(
    session: Session, dataset: DatasetConfig, supervision: str, changes: dict[str, Any]
) -> None:
    recipe = {"max_steps": 5, "supervision": supervision, "batch_size": 8, "held_out_rows": 0}
    plain = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    assert plain.status["plan"]["how"] | {"precision": ""} == vars(How("", 8, 1, False))
    other = session.finetune(tiny.new_run(session, dataset, **recipe | changes).id)
    assert plain.status["plan"]["how"] != other.status["plan"]["how"]
    assert tiny.losses(other) == pytest.approx(tiny.losses(plain), rel=0.001)


def test_a_run_keeps_its_plan_and_what_came_of_it(trained: tuple[Session, Run]) -> None:
    status = trained[1].status
    kept = status["plan"]
    assert kept["memory_bytes"] == status["planned_bytes"]
    assert (kept["took_seconds"], kept["peak_bytes"]) == (status["wall_seconds"], status["peak_bytes"])
    assert [choice["name"] for choice in kept["choices"]][:2] == ["Base weights", "Batch size × accumulation"]
    assert "Planned: about" in trained[1].log_tail(99)
    assert f"{kept['choices'][1]['value']}. {kept['choices'][1]['why']}" in trained[1].log_tail(99)


def test_part_of_a_run_says_nothing_about_its_plan(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset)
    session.finetune(run.id, should_stop=tiny.StopAfter(2))
    assert "took_seconds" not in run.status["plan"]
    session.finetune(run.id, resume=True)
    assert run.state == "finished"
    assert "took_seconds" not in run.status["plan"]


def test_the_model_is_left_ready_to_answer(session: Session, dataset: DatasetConfig) -> None:
    loaded = tiny.model_of(session)
    run = tiny.new_run(session, dataset, lora_dropout=0.5)
    finetune(loaded, run, never)
    assert not loaded.base.training
    assert logging.getLogger("transformers.trainer").level == logging.ERROR
    *_, made = session.compare(Compare("A patient aged 50 has thirst. What is it?", run.id, sampling=tiny.GREEDY))
    assert made.finished


def test_rows_that_are_prepared_are_not_read_again(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    run = tiny.new_run(session, tiny.write_rows(file, tiny.rows()), max_steps=2)
    loaded = tiny.model_of(session)
    rows = prepare_rows(loaded, run)
    file.unlink()
    finetune(loaded, run, never, ahead=Ahead(loaded.config, rows))
    assert run.state == "finished"
    assert run.status["rows"] == len(rows.train)


def test_lengths_that_are_written_down_are_those_that_the_page_shows(session: Session, tmp_path: Path) -> None:
    rows = tiny.rows()
    rows[1]["Question"], rows[2]["Question"], rows[3]["Response"] = "", "What is </think>?", ""
    run = tiny.new_run(session, tiny.write_rows(tmp_path / "rows.jsonl", rows), held_out_rows=0)
    loaded = tiny.model_of(session)
    prepared = prepare_rows(loaded, run)
    examples = [Example(row["Question"], row["Complex_CoT"], row["Response"]) for row in rows]
    lengths = token_lengths(examples, loaded.tokenizer.backend_tokenizer, loaded.info.eos, ARTICLE)
    kept = check(examples, lengths, loaded.info.eos, 2048, [])
    written = json.loads((run.path / "rows.json").read_text())
    assert {name: written[name] for name in kept.summary()} == kept.summary()
    assert [len(row.ids) for row in prepared.train] == [lengths["total"][index] for index in kept.kept]
    assert len(prepared.train) == len(rows) - 3


def test_while_it_trains_the_collector_passes_over_what_was_there(session: Session, dataset: DatasetConfig) -> None:
    frozen = []

    def look() -> bool:
        frozen.append(gc.get_freeze_count())
        return False

    session.finetune(tiny.new_run(session, dataset, max_steps=2).id, should_stop=look)
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
