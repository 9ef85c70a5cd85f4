"""Export: adapter, tokenizer and merged model written to a folder that plain transformers and peft load again."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from deepdoctor.engine.adapters import write_base_name
from deepdoctor.engine.model import LoadedModel
from deepdoctor.errors import RunError
from deepdoctor.files import write_json
from deepdoctor.prompts import style_named
from deepdoctor.runs import Run

Say = Callable[[str], None]


def export(loaded: LoadedModel, run: Run, step: int | None, target: Path, merged: bool, say: Say) -> Path:
    """Write `adapter/`, `tokenizer/`, with `merged` also `merged/` (a whole model), and how they were made; return `target`.

    The folder is made aside and renamed when complete. Raises RunError if the run has no such adapter, or the disk is full.
    """
    source = run.adapter_dir(step)
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        say("Writing the adapter")
        (aside / "adapter").mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy2(source / name, aside / "adapter" / name)
        write_base_name(aside / "adapter", loaded.config.name)
        say("Writing the tokenizer")
        loaded.tokenizer.save_pretrained(aside / "tokenizer")
        if merged:
            say("Merging the adapter into a copy of the base weights")
            _merge(loaded, source, aside / "merged")
        style = style_named(run.finetune.prompt_style)
        write_json(aside / "prompt_style.json", {"name": style.name, "prompt": style.prompt, "after_thought": style.joint})
        write_json(aside / "config.json", {**run.details, "run": run.id, "step": step, "base_hash": loaded.info.base_hash})
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise RunError(f"The export could not be written to {target}: {why}. Free some space, or check the folder.") from error
    return target


def _merge(loaded: LoadedModel, adapter: Path, folder: Path) -> None:
    """Merge into weights read afresh, so that the loaded model is never touched."""
    base = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=loaded.dtype)
    config = copy.deepcopy(base.generation_config)
    whole = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    whole.generation_config = config
    whole.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
