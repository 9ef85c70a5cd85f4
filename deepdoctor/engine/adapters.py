"""LoRA adapters on the loaded model: a fresh one for training, saved ones for comparing, and whether they fit."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.fingerprint import PREFIX, checksum, plain_name
from deepdoctor.engine.model import LoadedModel, first_line
from deepdoctor.engine.protocol import ALSO_AT_MOST
from deepdoctor.errors import ModelError
from deepdoctor.files import write_json
from deepdoctor.hub_adapters import CONFIG, WEIGHTS, modules_of, plain_lora, rank_and_weight, read_config

SELECTED_AT_MOST = 1 + ALSO_AT_MOST
PATTERNS = ("alpha_pattern", "rank_pattern")


def fresh_adapter(loaded: LoadedModel, config: FinetuneConfig, checkpointing: bool = False) -> PeftModel:
    """Attach a new LoRA adapter for training (its second factor is zero: no change yet); all others are dropped.

    Were others attached, the trainer would write them into each checkpoint and, resuming, look for the trained one in the wrong place.
    """
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules=list(loaded.info.projections),
        bias="none",
    )
    if loaded.peft is not None:
        for name in list(loaded.peft.peft_config):
            loaded.peft.delete_adapter(name)
        loaded.selected.clear()
    loaded.peft = loaded.backend.attach(loaded.peft or loaded.base, lora, config.seed, checkpointing)
    loaded.peft.set_adapter(TRAINED)
    return loaded.peft


def select_adapter(loaded: LoadedModel, folder: Path, busy: Collection[str] = ()) -> str:
    """Attach the adapter saved in `folder`, if it is not there yet, and return its name. Raises ModelError if it does not fit the base.

    At most SELECTED_AT_MOST stay attached, and those that are `busy`; the one unused for longest goes.
    """
    key = _stamp(Path(folder))
    name = loaded.selected.pop(key, None) or _attach(loaded, Path(folder), f"adapter_{key[:12]}")
    idle = [old for old, attached in loaded.selected.items() if attached not in busy]
    for old in idle[: max(0, len(loaded.selected) + 1 - SELECTED_AT_MOST)]:
        assert loaded.peft is not None
        loaded.peft.delete_adapter(loaded.selected.pop(old))
    loaded.selected[key] = name
    return name


def _stamp(folder: Path) -> str:
    """Changes with the adapter's files. Hashing what they hold would take an 8B's 160 MiB 0.4 s at each switch."""
    try:
        found = [(folder / name).stat() for name in (WEIGHTS, CONFIG)]
    except OSError as error:
        raise ModelError(f"There is no adapter in {folder.name}: {first_line(error)}.") from error
    told = [(file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns) for file in found]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _attach(loaded: LoadedModel, folder: Path, name: str) -> str:
    config = LoraConfig(**_fitting(loaded, folder))
    try:
        if loaded.peft is None:
            loaded.peft = PeftModelForCausalLM(loaded.base, config, name, low_cpu_mem_usage=True)
        else:
            loaded.peft.add_adapter(name, config, low_cpu_mem_usage=True)
        if lacking := _fill(loaded.peft, folder, name, loaded.device):
            raise ModelError(f"The adapter in {folder.name} is damaged: it lacks {lacking}. Train again, or choose another checkpoint.")
    except BaseException:
        _detach(loaded, name)
        raise
    loaded.peft.eval()
    loaded.peft.set_adapter(name)
    loaded.peft.requires_grad_(False)
    return name


def _detach(loaded: LoadedModel, name: str) -> None:
    """Take away what there is of an adapter that was to be attached, and the layers around the base's own if it is the first."""
    others = [other for other in loaded.peft.peft_config if other != name] if loaded.peft else []
    for path, module in list(loaded.base.named_modules()):
        if isinstance(module, BaseTunerLayer) and others:
            module.delete_adapter(name)
        elif isinstance(module, BaseTunerLayer):
            holder, _, place = path.rpartition(".")
            setattr(loaded.base.get_submodule(holder), place, module.get_base_layer())
    if loaded.peft and others:
        loaded.peft.peft_config.pop(name, None)
    else:
        loaded.peft = None
        vars(loaded.base).pop("peft_config", None)


def restore(loaded: LoadedModel, folder: Path) -> None:
    """Give the adapter in training the values saved in `folder`. Raises ModelError if they are not its own."""
    assert loaded.peft is not None
    try:
        lacking = _fill(loaded.peft, folder, TRAINED, loaded.device)
        wrong = f"lacks {lacking}" if lacking else ""
    except SafetensorError as error:
        wrong = f"cannot be read: {first_line(error)}"
    if wrong:
        raise ModelError(f"The adapter in {folder.name} is damaged: it {wrong}. Train again, or compare with another checkpoint.")


def _fill(peft: PeftModel, folder: Path, name: str, device: torch.device) -> str:
    """Give an adapter without values those that are saved, and name a tensor that is not, or "".

    They become 32 bit whatever the base is in, as they are trained: PEFT's own loading without first values would round them to the base's
    numbers on the way. On a CPU they are copied, for what is read is the file itself, which may be written anew.
    """
    values = {}
    for key, weight in load_file(folder / WEIGHTS, device=str(device)).items():
        module, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        values[f"{PREFIX}{module}.lora_{factor[0]}.{name}.weight"] = weight.to(torch.float32, copy=device.type == "cpu")
    peft.load_state_dict(values, strict=False, assign=True)
    return next((key for key, weight in peft.named_parameters() if weight.is_meta and f".{name}." in key), "").replace(f".{name}", "")


def _fitting(loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter saved in `folder`, on the modules that its file has tensors for. Raises ModelError."""
    modules = {plain_name(name): module for name, module in loaded.base.named_modules()}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"The adapter in {folder.name} is damaged: {error}. Train again, or choose another checkpoint.") from error
    called = f"the adapter in {folder.name}"
    config = read_config(folder, called)
    rank, _weight = rank_and_weight(config, called)
    for pattern in PATTERNS:
        if told := config.get(pattern):
            raise ModelError(f"This adapter weighs {next(iter(told))} unlike others ({pattern}), which paired decoding does not know.")
    for key, shape in shapes.items():
        name, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        if factor not in ("A.weight", "B.weight") or name.rpartition(".")[2] not in loaded.info.projections:
            raise ModelError(
                f"This adapter holds {key}, which is no low-rank factor of {', '.join(loaded.info.projections)}: whole modules, DoRA and "
                "other kinds of adapter cannot be compared in pairs. Choose a plain LoRA adapter."
            )
        module, is_first = modules.get(name), factor.startswith("A")
        if module is None:
            raise ModelError(f"This adapter was not trained on {loaded.config.name}: it holds {key}, and the model has no {name}.")
        wanted = [rank, module.in_features] if is_first else [module.out_features, rank]
        if shape != wanted:
            raise ModelError(f"This adapter was not trained on {loaded.config.name}: {key} has shape {shape}, the model expects {wanted}.")
    return plain_lora(config, modules_of(folder / WEIGHTS, called), called)


@contextmanager
def as_side(loaded: LoadedModel, adapter: str | None) -> Iterator[Any]:
    """The model by transformers and PEFT with that adapter on, or for None with all of them off; afterwards it is as it was before."""
    model = loaded.peft
    if model is None:
        yield loaded.base
        return
    was_training, active = model.training, model.active_adapter
    model.eval()
    try:
        if adapter is None:
            with model.disable_adapter():
                yield model
        else:
            model.set_adapter(adapter, inference_mode=True)
            yield model
    finally:
        if adapter is not None:
            model.set_adapter(active)
        model.train(was_training)


def adapter_hash(loaded: LoadedModel, name: str) -> str:
    """Hash of an attached adapter's weights, as `base_hash` does it."""
    assert loaded.peft is not None
    digest = hashlib.sha256()
    for key, weight in loaded.peft.named_parameters():
        if f".{name}." in key:
            digest.update(f"{key.replace(name, '')}{tuple(weight.shape)}{checksum(weight)}".encode())
    return digest.hexdigest()


def saved_hash(loaded: LoadedModel, folder: Path) -> str:
    """What `adapter_hash` tells of the adapter saved in `folder` once it is attached, without attaching it."""
    values, digest = load_file(folder / WEIGHTS), hashlib.sha256()
    modules = dict.fromkeys(plain_name(name) for name, _module in loaded.base.named_modules())
    for module in modules:  # in the order in which the model names them
        for factor in "AB":
            weight = values.get(f"{PREFIX}{module}.lora_{factor}.weight")
            if weight is not None:
                digest.update(f"{PREFIX}{module}.lora_{factor}..weight{tuple(weight.shape)}{checksum(weight.float())}".encode())
    return digest.hexdigest()


def write_base_name(folder: Path, base_name: str) -> None:
    """Write the base model's real name into a saved adapter's configuration: PEFT writes the path it was loaded from."""
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    write_json(folder / CONFIG, {**values, "base_model_name_or_path": base_name})
