"""What a run will take, told before it starts: how it is computed, steps, tokens, adapter size, memory and time. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import DatasetError, RunError
from deepdoctor.estimates import How, disk_of, memory_of, rows_trained, seconds_of, trainable_parameters
from deepdoctor.planner import Choice, Decision, decide


@dataclass(frozen=True)
class Plan:
    """What one run will take. `rows` are trained on, `left_out` are longer than the limit, `held_out` are kept for evaluation.

    tokens: read in all steps together, padding not counted. seconds, memory_bytes, the peak, and disk_bytes, of
    checkpoints and adapter, are estimates. how: what the engine does;
    choices: the same in words, each with its reason.
    """

    rows: int
    left_out: int
    held_out: int
    steps: int
    epochs: float
    tokens: int
    trainable_parameters: int
    memory_bytes: int
    device_bytes: int
    disk_bytes: int
    seconds: float
    how: How
    choices: tuple[Choice, ...]

    @property
    def fits(self) -> bool:
        """Whether the estimated memory is there."""
        return self.memory_bytes <= self.device_bytes

    def prediction(self) -> dict[str, Any]:
        """What a run keeps of it, JSON-ready: {"seconds", "memory_bytes", "how", "choices"}."""
        return {"seconds": round(self.seconds, 1), "memory_bytes": self.memory_bytes, **Decision(self.how, self.choices).to_dict()}


def plan(config: FinetuneConfig, model: ModelInfo, lengths: Sequence[int], decision: Decision | None = None) -> Plan:
    """Plan a run over rows of these `lengths` (tokens a row, held-out rows not among them), computed as was decided, or as is best.

    Raises DatasetError if no row is short enough.
    """
    longest = model.longest_row(config.max_seq_length)
    kept = [length for length in lengths if 0 < length <= longest]
    if not kept:
        advice = (
            "Raise the longest row" if longest == config.max_seq_length else "This model is not trained on longer ones here: shorten them"
        )
        raise DatasetError(
            f"No row to train on is left: all {len(lengths):,} are longer than {longest:,} tokens. {advice}."
            if lengths
            else "There is no row to train on. Choose rows on the Dataset tab."
        )
    steps = config.steps_for(len(kept))
    how, choices = decision or decide(config, model, kept)
    return Plan(
        rows=len(kept),
        left_out=len(lengths) - len(kept),
        held_out=config.held_out_rows,
        steps=steps,
        epochs=rows_trained(config, len(kept), steps) / len(kept),
        tokens=round(rows_trained(config, len(kept), steps) * sum(kept) / len(kept)),
        trainable_parameters=trainable_parameters(config, model),
        memory_bytes=memory_of(config, model, how, kept),
        device_bytes=model.memory_bytes,
        disk_bytes=disk_of(config, model, steps),
        seconds=seconds_of(config, model, how, kept),
        how=how,
        choices=choices,
    )


def require_disk(needed: int, free: float) -> None:
    """Raise RunError, naming both numbers, if what a run writes does not fit on the disk."""
    if needed > free:
        raise RunError(
            f"The run's checkpoints and adapter need about {in_bytes(needed)} of disk, but only {in_bytes(free)} are free where runs are "
            "kept. Free some space, or lower Checkpoints kept or LoRA rank."
        )


def in_bytes(count: float) -> str:
    """Bytes in words: "5.2 MiB", "310 MiB", "1.8 GiB"."""
    unit, name = (2**30, "GiB") if count >= 0.95 * 2**30 else (2**20, "MiB")
    return f"{count / unit:,.0f} {name}" if count >= 100 * unit else f"{max(count, 0) / unit:,.1f} {name}"


def roughly(seconds: float) -> str:
    """An estimated duration, no finer than it deserves: "45 s", "1.5 min", "22 min", "3 h 10 min"."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 165:
        return f"{round(seconds / 30) / 2:g} min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(10 * round(seconds / 600), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
