"""Loading the base model: which folder, in which numbers, and what is told when it cannot be."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from deepdoctor.config import EMBEDDED_MODEL, ModelConfig
from deepdoctor.download import fetch_model
from deepdoctor.engine import accelerator
from deepdoctor.engine.backends import Backend, Transformers, backend_for
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.forward import why_unpaired
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ModelError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDED_FOLDER = Path(__file__).parent.parent / "nano" / "model"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# what training needs beside the weights: adapter, optimizer, activations of two long rows with checkpointing, logits
HEADROOM = 6 * accelerator.GIB
HEADROOM_4BIT = 4 * accelerator.GIB
FOUR_BIT_BYTES = 0.6  # a weight in NF4 with its scales, embeddings in 16 bit among them

Report = Callable[[str, float | None], None]


def unheard(_message: str, _fraction: float | None) -> None:
    """A Report for callers who do not listen."""


@dataclass
class LoadedModel:
    """One base model in memory with the adapters attached to it. `peft` is None until the first adapter comes.

    no_kernels: why the fused kernels could not be built for it, "" as long as nothing speaks against them.
    """

    config: ModelConfig
    base: Any
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    backend: Backend
    folder: Path
    peft: PeftModel | None = None
    selected: dict[str, str] = field(default_factory=dict)
    no_kernels: str = ""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.base.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The numbers the base model computes in."""
        return self.base.get_input_embeddings().weight.dtype

    @property
    def eos_id(self) -> int:
        """Token id that ends an answer."""
        return int(self.tokenizer.eos_token_id)


def load(config: ModelConfig, data_dir: Path, report: Report = unheard) -> LoadedModel:
    """Load a base model, from the Hub if need be, and fingerprint it before any adapter is near.

    Raises ModelError if it is missing, damaged, without linear layers that LoRA could be attached to, or too large for the memory.
    """
    accelerator.prepare(config.gpu_memory_gib)
    folder = folder_of(config, report)
    device = accelerator.device()
    try:
        report("Reading the model's configuration", 0.2)
        architecture = AutoConfig.from_pretrained(folder)
        decoding = why_unpaired(architecture)
        dtype, four_bit = numbers_for(config, folder, device, hasattr(architecture, "quantization_config"))
        report(f"Loading tokenizer and weights in {'4 bits' if four_bit else str(dtype).removeprefix('torch.')}", 0.4)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # one text after the other is written by transformers' own forward, which Unsloth would replace
        backend = Transformers() if decoding else backend_for(device, dtype)
        base, missing = backend.load(str(folder), dtype, four_bit)
        if missing:
            raise ModelError(
                f"The model {config.name} is damaged: it lacks {missing[0]} in the shape its configuration asks for"
                f"{f', and {len(missing) - 1} more' if missing[1:] else ''}. Fetch it again."
            )
        base = (base if four_bit else base.to(device)).eval().requires_grad_(False)
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"The model {config.name} could not be loaded: {first_line(error)}. Check its name, and that it is there."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"The model {config.name} does not fit into this machine's memory; choose a smaller one, or 4 bits.") from error
    report("Fingerprinting the base weights", 0.8)
    info = _info(config, base, tokenizer, Path(data_dir), (backend.name, "4bit" if four_bit else str(dtype).removeprefix("torch.")))
    info = replace(info, decoding=decoding)
    return LoadedModel(config, base, tokenizer, info, backend, folder)


def folder_of(config: ModelConfig, report: Report = unheard) -> Path:
    """Where the model's files are on this machine; a Hub model is downloaded first. Raises ModelError if they cannot be had."""
    if config.name == EMBEDDED_MODEL:
        return EMBEDDED_FOLDER
    if (folder := Path(config.name).expanduser()).is_dir():
        return folder
    if config.name.startswith(("/", ".", "~")):
        raise ModelError(f"The model {config.name} could not be loaded: there is no such folder. Check its name, and that it is there.")
    return fetch_model(config.name, config.revision, report)


def numbers_for(config: ModelConfig, folder: Path, device: torch.device, quantized: bool) -> tuple[torch.dtype, bool]:
    """In which numbers to compute, and whether the weights are held in 4 bits. Raises ModelError if the GPU is too small for either.

    auto: 32 bit on a CPU and for the embedded model; on a GPU 16 bit where weights and training fit, else 4 bit.
    """
    if device.type != "cuda" or config.name == EMBEDDED_MODEL:
        if config.precision == "4bit" or quantized:
            raise ModelError("4-bit weights need an NVIDIA GPU with bitsandbytes; choose another precision.")
        return DTYPES.get(config.precision, torch.float32), False
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if config.precision in DTYPES and not quantized:
        return DTYPES[config.precision], False
    total, weights = accelerator.total_bytes(config.gpu_memory_gib), parameters_in(folder)
    if config.precision == "auto" and not quantized and weights * 2 + HEADROOM <= total:
        return half, False
    needed = weights * FOUR_BIT_BYTES + HEADROOM_4BIT
    if not quantized and needed > total:
        raise ModelError(
            f"{config.name} needs about {needed / accelerator.GIB:.0f} GiB of GPU memory even in 4 bits; this GPU has "
            f"{total / accelerator.GIB:.0f}. Choose a smaller model."
        )
    return half, True


def parameters_in(folder: Path) -> int:
    """How many numbers a model's safetensors files hold."""
    found = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for length in entry["shape"]:
                    size *= length
                found += size
    return found


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _info(config: ModelConfig, base: Any, tokenizer: PreTrainedTokenizerBase, data_dir: Path, how: tuple[str, str]) -> ModelInfo:
    device = next(base.parameters()).device
    weights_hash = base_hash(base)
    tokenizer_file = data_dir / "tokenizers" / f"{weights_hash[:16]}.json"
    tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(tokenizer_file))
    layers = getattr(base.get_decoder(), "layers", [])
    parts = linear_parts(layers[0]) if len(layers) else {}
    if not parts:
        raise ModelError(
            f"{config.name} is a {base.config.model_type} model without linear layers for LoRA to adapt; choose another model."
        )
    return ModelInfo(
        name=config.name,
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type.upper(),
        precision=how[1],
        backend=how[0],
        parameters=base.num_parameters(),
        layers=len(layers),
        hidden_size=base.config.hidden_size,
        vocabulary=base.config.vocab_size,
        max_length=base.config.max_position_embeddings,
        projections=parts,
        tokenizer_file=str(tokenizer_file),
        eos=str(tokenizer.eos_token),
        base_hash=weights_hash,
        flops=_matmul_rate(device, base.get_input_embeddings().weight.dtype),
        memory_bytes=accelerator.total_bytes(config.gpu_memory_gib),
    )


def linear_parts(layer: Any) -> dict[str, tuple[int, int]]:
    """Of each linear module of a layer, (inputs, outputs) by its name: the usual ones first, in the order of PROJECTIONS."""
    found = {name.rpartition(".")[2]: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    names = sorted(found, key=lambda name: PROJECTIONS.index(name) if name in PROJECTIONS else len(PROJECTIONS))
    return {name: (found[name].in_features, found[name].out_features) for name in names}


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
