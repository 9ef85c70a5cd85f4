"""Runs and checkpoints as choices: what of a run can be the tuned side, and how it is called."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from deepdoctor.checkpoints import told_best
from deepdoctor.errors import ModelError
from deepdoctor.hub_adapters import HubAdapter
from deepdoctor.runs import Run

FINAL = "final"
BEST = " · best held-out loss"


def short_name(model: str) -> str:
    """A model's name without its owner or folder."""
    return model.rstrip("/").rpartition("/")[2] or model


def run_label(run: Run) -> str:
    """How a run is called where one is chosen."""
    status = run.status
    return f"{run.name} · {status['state']} at step {status.get('step', 0)}"


def step_choices(run: Run | HubAdapter) -> list[tuple[str, Any]]:
    """What of a run can be the tuned side: its final adapter and its checkpoints, newest first; [] if it has none yet."""
    if isinstance(run, HubAdapter):
        return [("As it is on the Hub", FINAL)]
    final = [("Final adapter", FINAL)] if (run.path / "adapter" / "complete.json").exists() else []
    best = told_best(run)
    return [*final, *((f"Step {step}{BEST if step == best else ''}", step) for step in reversed(run.checkpoints()))]


def also_update(run: Run | HubAdapter | None, step: Any, chosen: Sequence[Any] | None) -> Any:
    """An update of the further checkpoints that can be shown beside `step`, which keeps what is chosen; hidden where there are none."""
    others = [choice for choice in step_choices(run) if choice[1] not in _same(run, step)] if run else []
    values = [value for _label, value in others]
    return gr.update(choices=others, value=[each for each in chosen or () if each in values], visible=bool(others))


def _same(run: Run | HubAdapter, step: Any) -> tuple[Any, ...]:
    """`step` and what is the same adapter: the final one was saved at the last checkpoint too."""
    last = None
    if isinstance(run, Run):
        with suppress(OSError, ValueError, KeyError):
            last = json.loads((run.path / "adapter" / "complete.json").read_text(encoding="utf-8"))["step"]
    return (FINAL, last) if step in (FINAL, last) else (step,)


def run_updates(runs: list[Run]) -> list[Any]:
    """Run and checkpoint to choose from, the newest run chosen."""
    steps = step_choices(runs[0]) if runs else []
    choices = [(run_label(run), run.id) for run in runs]
    return [
        gr.update(choices=choices, value=runs[0].id if runs else None),
        gr.update(choices=steps, value=steps[0][1] if steps else None),
    ]


def other_base(run: Run, name: str) -> str:
    """Which base model a run needs, in words, where that of `name` is in use; "" if it is the same."""
    return "" if run.model.name == name else f"Run {run.name} was made with {run.model.name}, but {name} is in use."


def require_base(run: Run, name: str) -> None:
    """Raise ModelError, saying what to load, if a run needs another base model than that of `name`."""
    if needed := other_base(run, name):
        raise ModelError(f"{needed} Load {run.model.name} first, under Model at the top of the page.")
