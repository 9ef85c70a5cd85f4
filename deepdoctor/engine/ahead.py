"""What is decided of a run before it trains: the precision that its base is held in, its rows, and how it is computed."""

from deepdoctor.engine.accelerator import half

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from deepdoctor.checkpoints import remove
from deepdoctor.config import ModelConfig
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.rows import TrainingRows, prepare_rows
from deepdoctor.errors import ModelError
from deepdoctor.hub_adapters import WEIGHTS
from deepdoctor.plan import plan
from deepdoctor.planner import Decision
from deepdoctor.runs import Run


@dataclass(frozen=True)
class Ahead:
    """What a run is trained with. rows, decision: None where the training itself is to prepare and to decide them.

    began: when that was begun, by a clock that all processes of a machine share.
    """

    model: ModelConfig
    rows: TrainingRows | None = None
    decision: Decision | None = None
    began: float = field(default_factory=time.monotonic, compare=False)


def require_base(loaded: LoadedModel, run: Run) -> None:
    """Raise ModelError if the run was trained on other weights than those that are loaded, though of the same name.

    Told of the same precision only; and not of 4 bits, in which two kinds of GPU need not come to the same scales.
    """
    status, held = run.status, loaded.info.precision
    if held != "4bit" and status.get("precision") == held and status.get("base_hash") not in (None, loaded.info.base_hash):
        raise ModelError(
            f"Run {run.name} was trained on other weights than those of {loaded.config.name} as it is loaded: the model was changed since, "
            "or another revision of it is meant. Load the one it was trained on, or train again."
        )


def drop_torn(run: Run) -> None:
    """Remove the newest checkpoints as long as they cannot be read: a full disk or a loss of power has left them so."""
    for step in reversed(run.checkpoints()):
        if not (torn := _torn_file(run.checkpoint_dir(step))):
            return
        remove(run, run.checkpoint_dir(step))
        again = "what was trained since the one before it is trained again"
        run.log(f"Checkpoint {step} was removed, because its {torn} is damaged; {again}.")


def _torn_file(folder: Path) -> str:
    """The name of a file in a checkpoint that the trainer could not take up, or ""."""
    for file in sorted(folder.iterdir()):
        try:
            if file.name == WEIGHTS:
                with safe_open(file, framework="pt"):
                    whole = True
            elif file.suffix in (".pt", ".pth"):
                with ZipFile(file) as archive:
                    whole = archive.testzip() is None
            else:
                whole = file.name != "trainer_state.json" or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        except (SafetensorError, BadZipFile, ValueError):
            whole = False
        if not whole:
            return file.name
    return ""


def ahead_of(loaded: LoadedModel, run: Run) -> Ahead:
    """What the run is trained with, where `loaded` is its base model in whatever precision. Raises what is wrong with its rows or recipe.

    A run that goes on keeps the precision that it began in. Several processes are told what was decided here: each by itself might
    decide otherwise, because its GPU is another one or was measured a little slower, and they would not share the same steps.
    """
    began = time.monotonic()
    drop_torn(run)
    held, unsloth = loaded.info.precision, loaded.info.backend == "unsloth"
    before = str(run.status.get("precision") or held) if run.checkpoints() else ""
    if not unsloth and run.finetune.devices == 1:
        return Ahead(_in(before or held, loaded), began=began)
    rows = prepare_rows(loaded, run)
    recipe = run.finetune.changed(base_precision="4bit" if before == "4bit" else "16bit") if before else run.finetune
    planned = plan(recipe, loaded.info, [len(row.ids) for row in rows.train])
    wanted, choices = planned.how.precision if unsloth else held, planned.choices
    if before:
        choices = (replace(choices[0], why="As the run began."), *choices[1:])
    return Ahead(_in(before or wanted, loaded), rows, Decision(planned.how, choices), began)


def _in(precision: str, loaded: LoadedModel) -> ModelConfig:
    """The loaded model's configuration, changed if it is held in another precision; "16bit" is the kind that the card computes in."""
    named = str(half()).removeprefix("torch.") if precision == "16bit" else precision
    return loaded.config if named == loaded.info.precision else loaded.config.changed(precision=named)
