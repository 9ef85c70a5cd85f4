"""Which checkpoints of a run stay on disk: the newest, the best by held-out loss, those a study asks, and others up to a number."""

import json
import math
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepdoctor.runs import REMOVED, Run


def best_checkpoint(run: Run, curve: Iterable[dict[str, Any]] | None = None) -> dict[str, Any] | None:
    """{"step", "held_out_loss"} of the checkpoint on disk with the lowest held-out loss, of equals the later.

    None where no checkpoint lies at a step whose held-out loss was measured. curve: the run's, if it has been read already; else all of it
    is read, which `told_best` does not.
    """
    steps = set(run.checkpoints())
    rows = run.curve() if curve is None else curve
    found = [(row["held_out_loss"], -row["step"]) for row in rows if row.get("step") in steps and _is_loss(row.get("held_out_loss"))]
    if not found:
        return None
    loss, step = min(found)
    return {"step": -step, "held_out_loss": loss}


def told_best(run: Run) -> int | None:
    """The step of the best checkpoint as the run's status keeps it; None for runs from before it did."""
    best = run.status.get("best_checkpoint")
    return best.get("step") if isinstance(best, dict) else None


def adapter_step(run: Run, step: int | None = None) -> int:
    """The optimizer step at which the adapter in `run.adapter_dir(step)` was saved: the run may have gone on since.

    Raises RunError if there is none.
    """
    folder = run.adapter_dir(step)
    if folder.parent.name == "checkpoints":
        return int(folder.name.removeprefix("checkpoint-"))
    return int(json.loads((folder / "complete.json").read_text(encoding="utf-8"))["step"])


def rotate(run: Run, kept: int, asked: Iterable[int] = ()) -> list[int]:
    """Remove what need not stay after a save, note the best in the status, and return the removed steps, ascending.

    Of the complete checkpoints `kept` stay: the newest, from which a run is resumed, the best, those at the steps in `asked`, and the
    newest of the others. These stay even where they are more than `kept`. Older folders that never were completed go too.
    """
    steps, best = run.checkpoints(), best_checkpoint(run)
    stay = {*steps[-1:], *({best["step"]} if best else ()), *set(asked).intersection(steps)}
    for step in reversed(steps):
        if len(stay) < kept:
            stay.add(step)
    removed = [step for step in steps if step not in stay and remove(run, run.checkpoint_dir(step))]
    _clear(run, steps)
    run.set_status(best_checkpoint=best)
    return removed


def _is_loss(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _clear(run: Run, complete: list[int]) -> None:
    """Remove what a crash left: checkpoints that were half written or half removed."""
    for folder in run.path.joinpath("checkpoints").glob(f"{REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in run.path.joinpath("checkpoints").glob("checkpoint-*"):
        with suppress(ValueError):
            step = int(folder.name.removeprefix("checkpoint-"))
            if step not in complete and step < max(complete, default=0):
                remove(run, folder)


def remove(run: Run, folder: Path) -> bool:
    """Whether a checkpoint is gone. It is renamed first, so that it is never seen half removed; a failure must not end the training."""
    aside = folder.with_name(f"{REMOVED}{folder.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        run.log(f"{folder.name} could not be removed: {error.strerror or error}.")
    return not folder.exists()
