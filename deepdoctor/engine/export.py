"""Export: adapter, tokenizer and merged model written to a folder that plain transformers and peft load again."""

from deepdoctor.engine.accelerator import GIB

import copy
import filecmp
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from deepdoctor.checkpoints import adapter_step
from deepdoctor.engine.adapters import WEIGHTS, saved_hash, write_base_name
from deepdoctor.engine.gguf import Converter, convert, require_parts, unsloth_converter
from deepdoctor.engine.model import ROOM_TO_WORK, LoadedModel, first_line
from deepdoctor.engine.protocol import Export
from deepdoctor.errors import RunError
from deepdoctor.files import write_json
from deepdoctor.origins import real_id, said_by
from deepdoctor.prompts import style_named
from deepdoctor.runs import Run

Say = Callable[[str], None]
# what can be made of an adapter, by the folder it lies in
FORMS = {"merged": "the merged model", "gguf": "the GGUF files"}
CANNOT_UNPACK = (
    "The base model's files hold weights in fewer bits that cannot be unpacked, so nothing can be merged into them. Export without the "
    "merged model, or train on the model in 16 bits."
)


def export(loaded: LoadedModel, run: Run, wanted: Export, target: Path, say: Say, converter: Converter | None = None) -> Path:
    """Write `adapter/`, `tokenizer/`, if wanted `merged/` (a whole model) and a GGUF file in `gguf/`, and how they were made.

    A merged model and GGUF files that lie there already are kept if they were made of the same adapter, else removed. The folder is made
    aside, renamed when complete, and returned. `converter` writes the GGUF; None: Unsloth's.
    Raises RunError if the run has no such adapter, a part for GGUF is missing, the conversion fails, or the disk is full.
    """
    source = run.adapter_dir(wanted.step)
    if wanted.gguf:
        converter = converter or unsloth_converter()
        require_parts(converter, wanted.gguf)
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        say("Writing the adapter")
        (aside / "adapter").mkdir(parents=True)
        for name in (WEIGHTS, "adapter_config.json"):
            shutil.copy2(source / name, aside / "adapter" / name)
        write_base_name(aside / "adapter", loaded.config.name)
        say("Writing the tokenizer")
        loaded.tokenizer.save_pretrained(aside / "tokenizer")
        style = style_named(run.finetune.prompt_style)
        write_json(aside / "prompt_style.json", {"name": style.name, "prompt": style.prompt, "after_thought": style.joint})
        made = {**run.details, **_made_with(loaded, run, wanted.step), **_write_forms(loaded, run, wanted, (target, aside), say)}
        if wanted.gguf and converter and not (file := aside / "gguf" / gguf_name(run, wanted)).exists():
            say(f"Converting the merged model to GGUF ({wanted.gguf})")
            convert(converter, aside / "merged", file, wanted.gguf)
        if not wanted.merged and "merged" not in forms_of(target, source):
            shutil.rmtree(aside / "merged", ignore_errors=True)
        write_json(aside / "config.json", made)
        gone = [words for form, words in FORMS.items() if (target / form).is_dir() and not (aside / form).is_dir()]
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        if gone:
            told = f"Removed {' and '.join(gone)} of an earlier export: the run's adapter is another one now"
            say(told)
            run.log(f"{told}.")
    except RunError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise RunError(f"The export could not be written to {target}: {why}. Free some space, or check the folder.") from error
    return target


def forms_of(folder: Path, adapter: Path) -> set[str]:
    """Which other forms of the adapter lie in the export in `folder`: "merged", "gguf"; none if it is one of other weights."""
    weights = folder / "adapter" / WEIGHTS
    if not weights.is_file() or not filecmp.cmp(weights, adapter / WEIGHTS, shallow=False) or not _how_made(folder):
        return set()
    return {form for form in FORMS if (folder / form).is_dir()}


def _how_made(folder: Path) -> dict[str, Any]:
    """config.json of an export; {} if it is not there or damaged."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def gguf_name(run: Run, wanted: Export) -> str:
    """What the wanted GGUF file is called."""
    return f"{run.id}-{wanted.gguf}.gguf"


def must_merge(target: Path, run: Run, wanted: Export) -> bool:
    """Whether an export to `target` has to merge the adapter into weights, because what is wanted does not lie there yet."""
    there = forms_of(target, run.adapter_dir(wanted.step))
    converted = "gguf" in there and (target / "gguf" / gguf_name(run, wanted)).exists()
    return "merged" not in there and (wanted.merged or bool(wanted.gguf and not converted))


def _write_forms(loaded: LoadedModel, run: Run, wanted: Export, folders: tuple[Path, Path], say: Say) -> dict[str, Any]:
    """Take over what lies in the first folder of the same adapter, merge into the second what is lacking, and tell how it was made."""
    target, aside = folders
    source = run.adapter_dir(wanted.step)
    there = forms_of(target, source)
    for form in there:
        shutil.copytree(target / form, aside / form, copy_function=_linked)
    kept = {name: value for name, value in _how_made(target).items() if there and name in ("unpacked", "base_hash")}
    if must_merge(target, run, wanted):
        say("Merging the adapter into a copy of the base weights")
        return {"unpacked": _merge(loaded, source, aside / "merged")}
    return {"unpacked": False, **kept}


def _linked(source: str, target: str) -> None:
    """The same file under another name: a merged model of 16 GB is not written twice. Where links are not known it is copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _made_with(loaded: LoadedModel, run: Run, step: int | None) -> dict[str, Any]:
    """What tells which adapter it is, for the card: as asked for, at which step it was saved, and the hash that proofs know it by."""
    source = run.adapter_dir(step)
    return {
        "run": run.id,
        "step": step,
        "adapter_step": adapter_step(run, step),
        "final": source == run.path / "adapter",
        "adapter_hash": saved_hash(loaded, source),
        "base_id": real_id(loaded.config.name, said_by(loaded.folder)),
        "base_hash": loaded.info.base_hash,
    }


def _merge(loaded: LoadedModel, adapter: Path, folder: Path) -> bool:
    """Merge into weights read afresh, so that the loaded model is never touched. Returns whether they had to be unpacked from 4 bits."""
    read = AutoModelForCausalLM.from_pretrained(loaded.folder, **how_to_read(loaded.folder, loaded.dtype))
    packed = is_quantized(read.config)
    base = in_plain_numbers(read, loaded.dtype)
    config = copy.deepcopy(base.generation_config)
    whole = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    whole.generation_config = config
    whole.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return packed


def how_to_read(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Options for `from_pretrained`: into the machine's memory; quantized weights would go to the GPU, beside the model that is loaded."""
    return {"dtype": dtype, **({"device_map": {"": "cpu"}} if is_quantized(AutoConfig.from_pretrained(folder)) else {})}


def is_quantized(config: Any) -> bool:
    """Whether a model's configuration says that its weights are stored in fewer bits."""
    return getattr(config, "quantization_config", None) is not None


def in_plain_numbers(model: Any, dtype: torch.dtype) -> Any:
    """The model with 4-bit weights unpacked into numbers of `dtype`; any other as it is. Raises RunError if its kind cannot be unpacked."""
    if not is_quantized(model.config):
        return model
    try:
        plain = model.dequantize(dtype=dtype)
    except NotImplementedError as error:
        raise RunError(f"{CANNOT_UNPACK} ({first_line(error)})") from error
    if is_quantized(plain.config):
        raise RunError(CANNOT_UNPACK)
    # how the packed files were read; saving would turn it round, and transformers cannot do that for bitsandbytes
    vars(plain).pop("_weight_conversions", None)
    return plain


def require_room(loaded: LoadedModel, free: int) -> None:
    """Raise RunError, naming both numbers, if a second copy of the base weights does not fit into the machine's `free` bytes."""
    needed = loaded.info.parameters * loaded.dtype.itemsize + ROOM_TO_WORK
    if needed > free:
        raise RunError(
            f"Merging needs about {needed / GIB:,.1f} GiB of the machine's memory for a copy of the base weights, but only "
            f"{max(free, 0) / GIB:,.1f} GiB are free. Export without the merged model, or close other programs."
        )
