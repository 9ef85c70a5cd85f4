"""A run is a folder: configuration, metrics, status, log, probe answers, checkpoints and adapter. The files are the interface."""

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from deepdoctor.config import DatasetConfig, FinetuneConfig, ModelConfig
from deepdoctor.errors import ConfigError, DeepDoctorError, RunError
from deepdoctor.files import append_row, read_rows, write_json
from deepdoctor.processes import is_alive, this_process

State = Literal["queued", "running", "finished", "stopped", "interrupted", "failed"]
RESUMABLE: tuple[State, ...] = ("stopped", "interrupted", "failed")
REMOVED = ".removed-"
LIVE_FILES = ("metrics.jsonl", "status.json", "probes.jsonl", "train.log", "config.json")


@dataclass(frozen=True)
class Run:
    """One fine-tuning run on disk. Everything is read afresh on each call: another process may be writing it."""

    path: Path
    # whether what is written to it is kept: of several processes that train it, one writes
    writes: ClassVar[bool] = True

    @property
    def id(self) -> str:
        """The folder's name: when it was started, and four random characters."""
        return self.path.name

    @property
    def details(self) -> dict[str, Any]:
        """config.json: {"name", "created", "model", "dataset", "finetune", "rows"}."""
        return _read_json(self.path / "config.json")

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.details.get("name") or self.id)

    @property
    def model(self) -> ModelConfig:
        """The base model it was trained on."""
        return ModelConfig.of(self.details["model"])

    @property
    def dataset(self) -> DatasetConfig:
        """The rows it was trained on."""
        return DatasetConfig.of(self.details["dataset"])

    @property
    def finetune(self) -> FinetuneConfig:
        """Its recipe."""
        return FinetuneConfig.of(self.details["finetune"])

    @property
    def status(self) -> dict[str, Any]:
        """status.json: {"state", "step", "steps", "message", "started", "updated", "seconds", …}."""
        return _read_json(self.path / "status.json")

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.status["state"]

    def set_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json and stamp the time."""
        status = self.status if (self.path / "status.json").exists() else {}
        write_json(self.path / "status.json", {**status, **changes, "updated": time.time()})

    def claim(self) -> None:
        """Note that this process trains the run now."""
        self.set_status(state="running", message="Preparing the rows", process=this_process())

    def is_claimed(self) -> bool:
        """Whether the process that trains the run is still alive."""
        return is_alive(self.status.get("process"))

    def append_metric(self, row: dict[str, Any]) -> None:
        """Append one row of metrics; it has "step" and any of loss, held_out_loss, learning_rate, tokens_per_second, memory_gib…"""
        append_row(self.path / "metrics.jsonl", {"time": round(time.time(), 3), **row})

    def metrics(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        """New rows of metrics from byte `since`, and the byte to ask from next time. Rows are as written; see `curve`."""
        return read_rows(self.path / "metrics.jsonl", since)

    def curve(self) -> list[dict[str, Any]]:
        """All metrics as one curve: where a resume rewound to an earlier step, what it overwrote is left out."""
        return grown([], self.metrics()[0])

    def fingerprint(self) -> tuple[int, ...]:
        """Changes whenever the page has something new to draw: sizes and times of the run's live files."""
        found = []
        for name in LIVE_FILES:
            file = self.path / name
            stat = file.stat() if file.exists() else None
            found += [stat.st_size, stat.st_mtime_ns] if stat else [0, 0]
        return tuple(found)

    def log(self, line: str) -> None:
        """Append a line to train.log."""
        with (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line.rstrip()}\n")

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of train.log."""
        file = self.path / "train.log"
        return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if file.exists() else ""

    def keep(self, name: str, value: Any) -> None:
        """Write a JSON file of its folder, such as questions.json."""
        write_json(self.path / name, value)

    def append_probe(self, row: dict[str, Any]) -> None:
        """Append a probe answer: {"step", "question", "reasoning", "response", "closed", "tokens"}."""
        append_row(self.path / "probes.jsonl", row)

    def probes(self) -> list[dict[str, Any]]:
        """Probe answers in order of step; of answers repeated after a resume the last counts."""
        rows = {(row["step"], row["question"]): row for row in read_rows(self.path / "probes.jsonl")[0]}
        return sorted(rows.values(), key=lambda row: row["step"])

    def checkpoints(self) -> list[int]:
        """Steps at which a complete checkpoint lies on disk, ascending."""
        found = (re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in (self.path / "checkpoints").glob("checkpoint-*"))
        return sorted(int(match[1]) for match in found if match and self._is_complete(int(match[1])))

    def _is_complete(self, step: int) -> bool:
        folder = self.checkpoint_dir(step)
        state = folder / "trainer_state.json"
        if not state.exists() or not (folder / "adapter_model.safetensors").exists():
            return False
        # written last by the trainer: what an earlier version saved is whole if this is
        return (folder / "complete.json").exists() or _is_json(state)

    def checkpoint_dir(self, step: int) -> Path:
        """Folder of the checkpoint at `step`."""
        return self.path / "checkpoints" / f"checkpoint-{step}"

    def adapter_dir(self, step: int | None = None) -> Path:
        """Folder of the adapter: of a checkpoint, or without `step` the final one (else the newest checkpoint's).

        Raises RunError if there is none.
        """
        if step is not None:
            folder = self.checkpoint_dir(step)
        elif (self.path / "adapter" / "complete.json").exists():
            folder = self.path / "adapter"
        else:
            steps = self.checkpoints()
            folder = self.checkpoint_dir(steps[-1]) if steps else self.path / "adapter"
        if not (folder / "adapter_model.safetensors").exists():
            raise RunError(self._lacking(step))
        return folder

    def _lacking(self, step: int | None) -> str:
        """Why there is no adapter, in words."""
        there = self.checkpoints()
        said = f"Run {self.name} has no adapter{f' at step {step}' if step is not None else ' yet'}; checkpoints: {there}."
        if step is None or step > max(there, default=0):
            return said
        return f"{said} Newer ones take the place of older ones; the newest, and that of the best held-out loss, are kept."

    def training_questions(self) -> list[str]:
        """The questions it was trained on, in row order; [] while the run has not begun, or where that is not recorded."""
        file = self.path / "questions.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def rows_fingerprint(self) -> str | None:
        """The fingerprint of the rows it was read from; None while the run has not begun, or where that is not recorded."""
        file = self.path / "rows.json"
        return _read_json(file).get("fingerprint") if file.exists() else None

    def rename(self, name: str) -> None:
        """Give it another name (1 to 80 characters)."""
        name = name.strip()
        if not 1 <= len(name) <= 80:
            raise ConfigError("A run's name has 1 to 80 characters.", field="name")
        write_json(self.path / "config.json", {**self.details, "name": name})


class Runs:
    """All runs under one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(data_dir) / "runs"

    def create(self, model: ModelConfig, dataset: DatasetConfig, finetune: FinetuneConfig, name: str = "") -> Run:
        """Make a new run's folder, in state "queued"."""
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        run = Run(self.root / run_id)
        run.path.mkdir(parents=True)
        write_json(
            run.path / "config.json",
            {
                "name": name.strip() or f"{finetune.preset} {time.strftime('%d %b %H:%M')}",
                "created": time.time(),
                "model": model.model_dump(),
                "dataset": dataset.model_dump(),
                "finetune": finetune.model_dump(),
            },
        )
        run.set_status(state="queued", step=0, steps=finetune.max_steps, message="Waiting for the engine", started=time.time())
        return run

    def list(self) -> list[Run]:
        """All readable runs, newest first."""
        files = sorted(self.root.glob("[!.]*/config.json"), reverse=True) if self.root.exists() else []
        return [run for run in (Run(file.parent) for file in files) if _is_readable(run)]

    def get(self, run_id: str) -> Run:
        """The run with that id. Raises RunError if there is none (an id is a folder's name, never a path)."""
        run = Run(self.root / run_id)
        if not re.fullmatch(r"\w[\w.-]{0,99}", run_id) or not (run.path / "status.json").exists():
            raise RunError(f"There is no run {run_id[:40]!r}. Known runs: {', '.join(run.id for run in self.list()) or 'none yet'}.")
        return run

    def free_bytes(self) -> int:
        """Free bytes on the disk where runs are kept."""
        return shutil.disk_usage(next(folder for folder in (self.root, *self.root.resolve().parents) if folder.exists())).free

    def active(self) -> Run | None:
        """The run that is training or waiting to, if any."""
        return next((run for run in self.list() if run.state in ("queued", "running")), None)

    def delete(self, run_id: str) -> None:
        """Remove a run with all its files. Raises RunError while it is training, or if they cannot be removed."""
        run = self.get(run_id)
        if run.state in ("queued", "running"):
            raise RunError(f"Run {run.name} is training; stop it before deleting it.")
        place = run.path
        try:  # out of the list at once and as a whole, whatever stops the removal
            place = run.path.rename(run.path.with_name(f"{REMOVED}{run.id}"))
            shutil.rmtree(place)
        except OSError as error:
            why = f"{error.strerror or error}. Close what uses its files, and remove {place} by hand."
            raise RunError(f"Run {run.id} could not be removed: {why}") from error

    def lost(self) -> Sequence[Run]:
        """Every run that says it is training while no living process trains it; such runs can be resumed."""
        return [run for run in self.list() if run.state in ("queued", "running") and not run.is_claimed()]


def grown(curve: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A curve with new rows of metrics behind it; where one tells of a resume, what was beyond the step it began at is left out."""
    rows = list(curve)
    for row in new:
        if "resumed_from" in row:
            rows = [kept for kept in rows if kept.get("step", 0) <= row["resumed_from"]]
        else:
            rows.append(row)
    return rows


def logged(run: Run) -> Callable[[str, float | None], None]:
    """What writes each thing that is done, as it is reported, into the run's log once, without its numbers."""
    said = ""

    def report(words: str, _fraction: float | None) -> None:
        nonlocal said
        before, said = said, words.partition(":")[0]
        if said != before:
            run.log(f"{said}.")

    return report


def changed_files(before: Sequence[Any], now: Sequence[Any]) -> set[str]:
    """Which live files two fingerprints of a run differ in; "" stands for whatever else was put behind the fingerprints."""
    found = {name for place, name in enumerate(LIVE_FILES) if before[2 * place : 2 * place + 2] != now[2 * place : 2 * place + 2]}
    return found | ({""} if before[2 * len(LIVE_FILES) :] != now[2 * len(LIVE_FILES) :] else set())


def _is_readable(run: Run) -> bool:
    """Whether what every list asks of a run is there, with settings that this version knows."""
    try:
        status = run.status
        whole = {"step", "steps"} <= status.keys() and status.get("state") in get_args(State)
        return whole and bool(run.model and run.finetune)
    except (DeepDoctorError, KeyError):
        return False


def _is_json(file: Path) -> bool:
    try:
        _read_json(file)
    except RunError:
        return False
    return True


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file.parent.name}/{file.name} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{file.parent.name}/{file.name} cannot be read: expected names and values.")
    return values
