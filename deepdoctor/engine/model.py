"""Loading the base model, and attaching, selecting and fingerprinting LoRA adapters on it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from deepdoctor.config import EMBEDDED_MODEL, FinetuneConfig, ModelConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ModelError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ARCHITECTURES = ("llama", "qwen2", "qwen3")
EMBEDDED_FOLDER = Path(__file__).parent.parent / "nano" / "model"
TRAINED = "default"
SELECTED_AT_MOST = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Report = Callable[[str, float | None], None]


def unheard(_message: str, _fraction: float | None) -> None:
    """A Report for callers who do not listen."""


@dataclass
class LoadedModel:
    """One base model in memory with the adapters attached to it. `peft` is None until the first adapter comes."""

    config: ModelConfig
    base: Any
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    peft: PeftModel | None = None
    selected: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.base.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The numbers the base model computes in."""
        return next(self.base.parameters()).dtype

    @property
    def eos_id(self) -> int:
        """Token id that ends an answer."""
        return int(self.tokenizer.eos_token_id)


def load(config: ModelConfig, data_dir: Path, report: Report = unheard) -> LoadedModel:
    """Load a base model and fingerprint it before any adapter is near.

    Raises ModelError if it is missing, damaged, of an architecture the paired decoder does not know, or too large for the memory.
    """
    source = str(EMBEDDED_FOLDER) if config.name == EMBEDDED_MODEL else config.name
    device = _device()
    try:
        report("Reading the model's configuration", 0.2)
        architecture = AutoConfig.from_pretrained(source, revision=config.revision)
        if architecture.model_type not in ARCHITECTURES:
            raise ModelError(f"{config.name} is a {architecture.model_type} model; DeepDoctor compares {', '.join(ARCHITECTURES)} models.")
        if "sliding_attention" in (getattr(architecture, "layer_types", None) or ()):
            raise ModelError(f"{config.name} attends through a sliding window, which paired decoding does not know; choose another model.")
        report("Loading tokenizer and weights", 0.4)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
        dtype = _dtype(config, device)
        answer: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision,
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
        base, found = answer
        _require_all_weights(config, found)
        base = base.to(device).eval().requires_grad_(False)
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"The model {config.name} could not be loaded: {_first_line(error)}. Check its name, and that it is there."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"The model {config.name} does not fit into this machine's memory; choose a smaller one.") from error
    report("Fingerprinting the base weights", 0.8)
    return LoadedModel(config, base, tokenizer, _info(config, base, tokenizer, Path(data_dir)))


def _require_all_weights(config: ModelConfig, found: dict[str, Any]) -> None:
    """Refuse what transformers only warns of: weights that are missing or of another shape, and would be random."""
    missing = sorted(found["missing_keys"]) + sorted(str(each[0]) for each in found["mismatched_keys"])
    if missing:
        raise ModelError(
            f"The model {config.name} is damaged: it lacks {missing[0]} in the shape its configuration asks for"
            f"{f', and {len(missing) - 1} more' if missing[1:] else ''}. Fetch it again."
        )


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.precision == "4bit":
        raise ModelError("4-bit weights need an NVIDIA GPU with bitsandbytes; choose another precision.")
    if config.precision != "auto":
        return DTYPES[config.precision]
    if device.type != "cuda" or config.name == EMBEDDED_MODEL:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _info(config: ModelConfig, base: Any, tokenizer: PreTrainedTokenizerBase, data_dir: Path) -> ModelInfo:
    device = next(base.parameters()).device
    weights_hash = base_hash(base)
    tokenizer_file = data_dir / "tokenizers" / f"{weights_hash[:16]}.json"
    tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(tokenizer_file))
    layer = base.model.layers[0]
    parts = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
    return ModelInfo(
        name=config.name,
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type.upper(),
        precision=str(next(base.parameters()).dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        layers=len(base.model.layers),
        hidden_size=base.config.hidden_size,
        vocabulary=base.config.vocab_size,
        max_length=base.config.max_position_embeddings,
        projections={name: (parts[name].in_features, parts[name].out_features) for name in PROJECTIONS},
        tokenizer_file=str(tokenizer_file),
        eos=str(tokenizer.eos_token),
        base_hash=weights_hash,
        flops=_matmul_rate(device, next(base.parameters()).dtype),
        memory_bytes=torch.cuda.mem_get_info()[1] if device.type == "cuda" else psutil.virtual_memory().total,
    )


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product of 1024 by 1024, measured for about a tenth of a second."""
    import time

    left = torch.randn(1024, 1024, device=device, dtype=dtype)
    for rounds in (2, 8):
        began = time.perf_counter()
        for _ in range(rounds):
            product = left @ left
        product[0, 0].item()
    return rounds * 2 * 1024**3 / (time.perf_counter() - began)


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the base model's own parameters, whether or not adapters are attached."""
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            yield name.removeprefix("base_model.model.").replace(".base_layer", ""), parameter.data


def base_hash(model: nn.Module) -> str:
    """Hash of all base weights: sha256 over every tensor's name, shape and position-weighted checksum (64-bit, on the device)."""
    digest = hashlib.sha256()
    for name, weight in sorted(base_weights(model), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(weight.shape)}{checksum(weight)}".encode())
    return digest.hexdigest()


def checksum(weight: Tensor, chunk: int = 2**24) -> int:
    """Checksum of a tensor's bits: any changed, moved or swapped element changes it (with probability 1 - 2^-64 for a random change)."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.detach().contiguous().view(width).flatten()
    total = 0
    for start in range(0, len(bits), chunk):
        part = bits[start : start + chunk].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(part), device=part.device, dtype=torch.int64)
        mixed = (part + 0x9E3779B9) * (places * 0x5851F42D4C957F2D + 0x14057B7EF767814F)
        total = (total + int((mixed ^ (mixed >> 29)).sum().item())) % 2**64
    return total


def fresh_adapter(loaded: LoadedModel, config: FinetuneConfig) -> PeftModel:
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
        target_modules=list(PROJECTIONS),
        bias="none",
    )
    if loaded.peft is None:
        loaded.peft = get_peft_model(loaded.base, lora, adapter_name=TRAINED)
    else:
        for name in list(loaded.peft.peft_config):
            loaded.peft.delete_adapter(name)
        loaded.selected.clear()
        loaded.peft.add_adapter(TRAINED, lora)
    loaded.peft.set_adapter(TRAINED)
    return loaded.peft


def select_adapter(loaded: LoadedModel, folder: Path) -> str:
    """Attach the adapter saved in `folder`, if it is not there yet, and return its name. Raises ModelError if it does not fit the base.

    At most SELECTED_AT_MOST stay attached; the one unused for longest goes.
    """
    file = Path(folder) / "adapter_model.safetensors"
    try:
        key = hashlib.sha256(file.read_bytes() + (Path(folder) / "adapter_config.json").read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"There is no adapter in {Path(folder).name}: {_first_line(error)}.") from error
    name = loaded.selected.pop(key, None) or _attach(loaded, Path(folder), f"adapter_{key[:12]}")
    loaded.selected[key] = name
    return name


def _attach(loaded: LoadedModel, folder: Path, name: str) -> str:
    _check_fit(loaded, folder)
    if loaded.peft is None:
        loaded.peft = PeftModel.from_pretrained(loaded.base, folder, adapter_name=name)
    else:
        loaded.peft.load_adapter(folder, adapter_name=name)
    loaded.peft.set_adapter(name)
    loaded.peft.requires_grad_(False)
    while len(loaded.selected) >= SELECTED_AT_MOST:
        loaded.peft.delete_adapter(loaded.selected.pop(next(iter(loaded.selected))))
    return name


def _check_fit(loaded: LoadedModel, folder: Path) -> None:
    modules = {name.removeprefix("base_model.model.").replace(".base_layer", ""): module for name, module in loaded.base.named_modules()}
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The adapter in {folder.name} is damaged: {error}. Train again, or choose another checkpoint.") from error
    for key, shape in shapes.items():
        name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
        module, is_first = modules.get(name), factor.startswith("A")
        width = module and (module.in_features if is_first else module.out_features)
        wanted = width and ([rank, width] if is_first else [width, rank])
        if shape != wanted:
            raise ModelError(f"This adapter was not trained on {loaded.config.name}: {key} has shape {shape}, the model expects {wanted}.")


def adapter_hash(loaded: LoadedModel, name: str) -> str:
    """Hash of an attached adapter's weights, as `base_hash` does it."""
    assert loaded.peft is not None
    digest = hashlib.sha256()
    for key, weight in loaded.peft.named_parameters():
        if f".{name}." in key:
            digest.update(f"{key.replace(name, '')}{tuple(weight.shape)}{checksum(weight)}".encode())
    return digest.hexdigest()


def write_base_name(folder: Path, base_name: str) -> None:
    """Write the base model's real name into a saved adapter's configuration: PEFT writes the path it was loaded from."""
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**values, "base_model_name_or_path": base_name}, indent=2), encoding="utf-8")
