"""Weights & Biases: the run's metrics logged with the real client, and never a reason for a run to stop."""

import os
import re
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepdoctor.runs import Run

Call = Callable[[], Any]
REFUSED = re.compile(r"\b40[13]\b|invalid api key|api key must|api_key", re.IGNORECASE)
# seconds that W&B may take to send what is left when a run ends; the adapter is saved by then
FINISH_WITHIN = 30.0


class Tracker:
    """Logs one run to Weights & Biases as its configuration asks: off, offline (files under the run's folder) or online.

    Whatever goes wrong is written into the run's log and status, and logging ends; training goes on. finish_within: seconds
    that `finish` takes at most.
    """

    def __init__(self, run: Run, finish_within: float = FINISH_WITHIN) -> None:
        self.run = run
        self.finish_within = finish_within
        self._wandb: Any = None
        mode = run.finetune.wandb
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            self._give_up("online logging needs WANDB_API_KEY in the environment; this run is not logged")
        elif mode != "off":
            self._try(lambda: self._begin(mode))

    def _begin(self, mode: str) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        self._wandb = wandb.init(
            project=self.run.finetune.wandb_project,
            name=self.run.name,
            id=self.run.id,
            dir=self.run.path,
            mode="offline" if mode == "offline" else "online",
            config=self.run.details,
            resume="allow",
            reinit="create_new",  # a run that was given up may still be open: this one is neither logged into it nor waits for its end
            settings=wandb.Settings(init_timeout=30, finish_timeout=self.finish_within, finish_timeout_raises=True, console="off"),
        )
        self.run.set_status(wandb_url=self._wandb.url or "", wandb_dir=str(Path(self._wandb.dir).parent))

    def log(self, row: dict[str, Any]) -> None:
        """Log one row of metrics at its step."""
        if self._wandb:
            self._try(lambda: self._wandb.log({name: value for name, value in row.items() if name != "step"}, step=row["step"]))

    def finish(self, probes: list[dict[str, Any]]) -> None:
        """Log the probe answers as a table and end the W&B run."""
        if self._wandb:
            self._try(lambda: self._end(probes))

    def _end(self, probes: list[dict[str, Any]]) -> None:
        import wandb

        columns: list[str | int] = ["step", "question", "reasoning", "response"]
        self._wandb.log({"probes": wandb.Table(columns=columns, data=[[row[str(name)] for name in columns] for row in probes])})
        try:
            self._wandb.finish()
        except TimeoutError:
            late = f"not everything could be sent within {self.finish_within:g} seconds. It is kept on disk; to send it later: "
            self._give_up(f"{late}wandb sync {shlex.quote(str(Path(self._wandb.dir).parent))}")

    def _try(self, call: Call) -> None:
        try:
            call()
        except Exception as error:  # whatever W&B or its network does must not end a training run
            self._give_up(in_words(error))

    def _give_up(self, why: str) -> None:
        left, self._wandb = self._wandb, None
        if left:  # until it is finished its id is taken, and the run, resumed, could not be logged
            threading.Thread(target=_finish, args=[left], name="wandb-finish", daemon=True).start()
        with suppress(OSError):  # of a full disk the training itself tells
            self.run.log(f"Weights & Biases: {why}")
            self.run.set_status(wandb_message=f"Weights & Biases: {why}")


def _finish(left: Any) -> None:
    with suppress(Exception):  # why it was given up has been told
        left.finish()


def in_words(error: Exception) -> str:
    """What stopped the logging, for the user: a key that is refused is named as such, all else by its first line."""
    said = str(error).strip()
    if REFUSED.search(said):
        return "WANDB_API_KEY was refused. Copy it again from wandb.ai/authorize and restart the app; this run goes on without being logged"
    return said.splitlines()[0] if said else type(error).__name__
