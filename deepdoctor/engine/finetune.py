"""finetune(loaded, run): LoRA fine-tuning of the loaded model by TRL, written into the run's folder. Alone imports the trainer."""

from deepdoctor.engine.accelerator import GIB, attention_by

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer

from deepdoctor.engine.adapters import fresh_adapter, restore, write_base_name
from deepdoctor.engine.ahead import Ahead, require_base
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.follow import Follow, peak_bytes, reset_peak
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.room import settled
from deepdoctor.engine.rows import prepare_rows
from deepdoctor.engine.tracking import Tracker
from deepdoctor.errors import Stopped
from deepdoctor.estimates import How, rounded_up
from deepdoctor.files import write_complete
from deepdoctor.plan import Plan, plan, require_disk, roughly
from deepdoctor.runs import Run

# tokens of a row without any that is trained on: some, because a row of one token is a special case for losses
BLANK_TOKENS = 8
# seconds that processes wait for each other while the first evaluates, asks the probe questions and saves
LONGEST_WAIT = 7200
# where a curve begins again that has nothing to keep
BEFORE_ALL = -1

logging.getLogger("transformers.trainer").setLevel(logging.ERROR)


@settled()
def finetune(
    loaded: LoadedModel,
    run: Run,
    should_stop: Callable[[], bool],
    resume: bool = False,
    disk: float = math.inf,
    ahead: Ahead | None = None,
) -> None:
    """Train a fresh adapter as the run's configuration says, or continue from the run's newest checkpoint.

    `should_stop` is asked after every optimizer step and within probes; on yes a checkpoint is saved and the run ends as "stopped".
    Metrics, status, log and probe answers are appended to the run's folder. ahead: what of the run was prepared and decided already. Raises
    DatasetError if no row is usable, RunError if a new run's checkpoints need more than `disk` bytes or its losses are numbers no more.
    """
    ahead = ahead or Ahead(loaded.config)
    config, done = run.finetune, max(run.checkpoints(), default=0) if resume else 0
    if resume and not done:
        run.log("No checkpoint was saved before the run ended: starting from the beginning.")
    if done:
        require_base(loaded, run)
    run.claim()
    rows = ahead.rows or prepare_rows(loaded, run)
    rows = rows if run.writes else replace(rows, held_out=[], held_out_questions=[])
    planned = plan(config, loaded.info, [len(row.ids) for row in rows.train], ahead.decision)
    if not done:
        require_disk(planned.disk_bytes, disk)
    model, steps = fresh_adapter(loaded, config, planned.how.checkpointing), planned.steps
    run.set_status(steps=steps, message="Training", rows=len(rows.train), trainable_parameters=_trainable(model), resumed=done > 0)
    _note_how(loaded, run, planned)
    run.log(f"{f'Resuming from step {done}' if done else 'Training'}: {len(rows.train)} rows, {steps} steps.")
    follow = Follow(loaded, run, rows, Tracker(run), should_stop)
    try:
        with _rested(loaded, run, model):
            if resume:  # what the curve has beyond that step counts no more
                run.append_metric({"resumed_from": done or BEFORE_ALL})
            if done < steps:
                _train(loaded, run, planned, follow, done)
            else:  # only the adapter was not saved; the trainer would go on to the end of the epoch
                restore(loaded, run.checkpoint_dir(done))
                follow.step = done
        if run.writes:
            _save_adapter(loaded, run, follow)
    except Stopped:  # nothing was trained that could be saved
        follow.stopped = True
    finally:  # only now: it may have to wait for the network
        follow.tracker.finish(run.probes())
    if run.writes:
        _tell_end(run, follow, time.monotonic() - ahead.began, whole=not resume)


@contextmanager
def _rested(loaded: LoadedModel, run: Run, model: Any) -> Iterator[None]:
    """However training ends, the model is put right again, and the memory noted that it took."""
    try:
        yield
    finally:
        loaded.base.__dict__.pop("forward", None)  # TRL has wrapped it; the next run would wrap the wrapper
        loaded.backend.rest(model)
        _let_go_of_embeddings()
        with suppress(OSError):  # a full disk must not hide why training ended
            run.set_status(peak_bytes=peak_bytes(loaded.device))


def _let_go_of_embeddings() -> None:
    """Undo what the trainer tells bitsandbytes of embeddings for good: it would hold 1 GiB of an 8B that was given up for another model."""
    if found := sys.modules.get("bitsandbytes.optim"):
        found.GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def _train(loaded: LoadedModel, run: Run, planned: Plan, follow: Follow, done: int) -> None:
    """Train the attached adapter by TRL from step `done` to the last, or until `follow` is asked to stop."""
    how, rows = planned.how, follow.rows
    assert loaded.peft is not None
    trainer: Any = (SFTTrainer if loaded.device.type == "cuda" else PlainLossTrainer)(
        model=loaded.peft,
        args=trainer_arguments(run, how, planned.steps, loaded),
        train_dataset=Dataset.from_dict(rows.columns(blank=[loaded.eos_id] * BLANK_TOKENS if how.devices > 1 else [])),
        data_collator=collator(loaded, how),
        processing_class=loaded.tokenizer,
        callbacks=[follow],
    )
    if how.devices > 1:
        order = _shared_order(run, how, len(rows.train), done)
        trainer._get_train_sampler = lambda *_dataset: order
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    with attention_by(how.attention), loaded.backend.training():
        trainer.train(resume_from_checkpoint=str(run.checkpoint_dir(done)) if done else None)


def collator(loaded: LoadedModel, how: How) -> Callable[[list[dict[str, Any]]], Any]:
    """What makes a batch of rows: [batch, longest] padded, with labels of -100 there, or [1, tokens] one behind the other."""
    if how.padded_to:
        return DataCollatorForSeq2Seq(loaded.tokenizer, pad_to_multiple_of=how.padded_to)
    return InLine()


class InLine(DataCollatorWithFlattening):
    """Rows one behind the other, with `packed_seq_lengths`, by which Unsloth's attention keeps them apart: [rows] int32."""

    def __call__(self, features: list[dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """{"input_ids", "labels", "position_ids"} of [1, tokens] each, and the lengths; no first token is predicted from another row."""
        lengths = torch.tensor([len(row["input_ids"]) for row in features], dtype=torch.int32)
        return {**super().__call__(features, *args, **kwargs), "packed_seq_lengths": lengths}


class Filled(Sampler[int]):
    """The rows of an epoch in the order of a single device, then the blank row, the one after the last, until all batches of all are full.

    The library would fill the last batches with rows from the beginning, and the last step of an epoch would learn from those twice.
    """

    def __init__(self, rows: int, multiple: int, seed: int) -> None:
        self.rows, self.multiple = rows, multiple
        self.order = SeedableRandomSampler(range(rows), data_seed=seed)

    def __len__(self) -> int:
        return rounded_up(self.rows, self.multiple)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.rows] * (len(self) - self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next: each has an order of its own."""
        self.order.set_epoch(epoch)


def _shared_order(run: Run, how: How, rows: int, done: int) -> Filled:
    """The order of several devices' rows from step `done` on."""
    order = Filled(rows, how.batch * how.devices, run.finetune.seed)
    # the library tells the order its epoch, but not through what skips the first batches of a resumed one
    order.set_epoch(done // -(-rows // run.finetune.rows_per_step))
    return order


class PlainLossTrainer(SFTTrainer):
    """TRL's trainer with transformers' own loss: the fused loss of TRL 1.15 needs Triton, which there is only for GPUs."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Mean cross-entropy over the supervised tokens of the whole step."""
        return Trainer.compute_loss(self, *args, **kwargs)


def trainer_arguments(run: Run, how: How, steps: int, loaded: LoadedModel) -> SFTConfig:
    """The run's recipe, computed as `how` says, as TRL's arguments."""
    config, on_gpu = run.finetune, loaded.device.type == "cuda"
    return SFTConfig(
        output_dir=str(run.path / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=how.batch,
        gradient_accumulation_steps=how.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        optim=config.optimizer if on_gpu else "adamw_torch",
        gradient_checkpointing=how.checkpointing and loaded.backend.name == "transformers",  # Unsloth has its own
        max_length=None,
        seed=config.seed,
        data_seed=config.seed,
        bf16=on_gpu and loaded.dtype == torch.bfloat16,
        fp16=on_gpu and loaded.dtype == torch.float16,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would tell the mean of earlier losses instead
        save_steps=config.checkpoint_steps,
        save_total_limit=None,  # the library knows nothing of our held-out losses: see checkpoints.py
        report_to="none",
        disable_tqdm=True,
        use_cpu=loaded.device.type == "cpu",
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=how.workers,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=LONGEST_WAIT,
    )


def _note_how(loaded: LoadedModel, run: Run, planned: Plan) -> None:
    """Write down by what and how it trains, why, and what it is expected to take; the peak of memory counts from here."""
    device = loaded.info.device + (f" × {planned.how.devices}" if planned.how.devices > 1 else "")
    run.set_status(precision=loaded.info.precision, backend=loaded.info.backend, device=device, base_hash=loaded.info.base_hash)
    run.set_status(plan=planned.prediction(), planned_bytes=planned.memory_bytes)
    for choice in planned.choices:
        run.log(f"{choice.name}: {choice.value}. {choice.why}")
    run.log(f"Planned: about {roughly(planned.seconds)}, peak memory about {planned.memory_bytes / GIB:.1f} GiB.")
    reset_peak(loaded.device)


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _save_adapter(loaded: LoadedModel, run: Run, follow: Follow) -> None:
    """Write the final adapter, "complete" last."""
    folder = run.path / "adapter"
    assert loaded.peft is not None
    (folder / "complete.json").unlink(missing_ok=True)
    loaded.peft.save_pretrained(str(folder), selected_adapters=[TRAINED])
    write_base_name(folder, loaded.config.name)
    write_complete(folder, {"step": follow.step, "base_hash": loaded.info.base_hash})


def _tell_end(run: Run, follow: Follow, seconds: float, whole: bool) -> None:
    """Write how the run ended, its state last of all: whoever reads it may delete the run.

    What a whole run took is kept beside what was planned; a part of one tells nothing about the plan.
    """
    done, took, status = "stopped" if follow.stopped else "finished", round(seconds, 1), run.status
    told = f"{done.capitalize()} at step {follow.step}"
    plan = {**status["plan"], "took_seconds": took, "peak_bytes": status["peak_bytes"]} if whole and done == "finished" else status["plan"]
    run.log(f"{told}.")
    run.set_status(state=done, step=follow.step, message=told, eta_seconds=0, wall_seconds=took, plan=plan)
