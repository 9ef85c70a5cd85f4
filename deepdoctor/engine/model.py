"""Loading the base model: its files found, its memory asked for, its weights fingerprinted; and what is told when it cannot be."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from deepdoctor.config import ModelConfig
from deepdoctor.download import Report
from deepdoctor.engine import accelerator
from deepdoctor.engine.backends import Backend, Transformers, backend_for
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.forward import why_unpaired
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.engine.source import folder_of, numbers_for, parameters_in
from deepdoctor.errors import ModelError, is_disk_full, is_out_of_memory

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# for the fingerprint, the tokenizer and a first answer, beside the weights
ROOM_TO_WORK = accelerator.GIB // 4
# seconds; a CPU without 16-bit arithmetic of its own takes that long for a small matrix product
SLOW_PRODUCT = 0.02

Free = Callable[[float | None], int]


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


@dataclass(frozen=True)
class Found:
    """A model whose files are on this machine and whose numbers are decided, before any memory is taken for it."""

    config: ModelConfig
    folder: Path
    device: torch.device
    parameters: int
    dtype: torch.dtype
    four_bit: bool
    decoding: str = ""

    @property
    def precision(self) -> str:
        """In which numbers the weights are held, by the name of the setting."""
        return "4bit" if self.four_bit else str(self.dtype).removeprefix("torch.")

    @property
    def bytes_to_load(self) -> int:
        """Memory that loading takes: 16 bit a weight on a GPU, though they become 4 bit; elsewhere what they stay, and room to work."""
        return self.parameters * 2 if self.device.type == "cuda" else self.parameters * self.dtype.itemsize + ROOM_TO_WORK


def find(config: ModelConfig, report: Report = unheard) -> Found:
    """Get a model's files, from the Hub if need be, and decide its numbers, while whatever is loaded stays.

    Raises ModelError if it cannot be had, is damaged, or can never fit the GPU.
    """
    with told_as_model_error(config.name):
        card = accelerator.card(config.gpu_memory_gib)
        folder = folder_of(config, card, report)
        report("Reading the model's configuration", 0.2)
        architecture = AutoConfig.from_pretrained(folder)
        parameters = parameters_in(folder)
        dtype, four_bit = numbers_for(config, parameters, card, hasattr(architecture, "quantization_config"))
        return Found(config, folder, torch.device(card.kind), parameters, dtype, four_bit, why_unpaired(architecture))


def load(config: ModelConfig, data_dir: Path, report: Report = unheard) -> LoadedModel:
    """`find` a base model and `load_found` it. Raises ModelError."""
    return load_found(find(config, report), data_dir, report)


def load_found(found: Found, data_dir: Path, report: Report = unheard, free: Free = accelerator.free_bytes) -> LoadedModel:
    """Load a base model that was found, and fingerprint it before any adapter is near.

    Raises ModelError if it is damaged, without linear layers that LoRA could be attached to, or too large for the memory. `free` says how
    many bytes there are.
    """
    config = found.config
    require_memory(found, free(config.gpu_memory_gib))
    accelerator.prepare(config.gpu_memory_gib)
    with told_as_model_error(config.name):
        report(f"Loading tokenizer and weights in {'4 bits' if found.four_bit else found.precision}", 0.4)
        tokenizer = _tokenizer(found)
        # one text after the other is written by transformers' own forward, which Unsloth would replace
        backend = Transformers() if found.decoding else backend_for(found.device, found.dtype)
        base, missing = backend.load(str(found.folder), found.dtype, found.four_bit)
        if missing:
            raise ModelError(
                f"The model {config.name} is damaged: it lacks {missing[0]} in the shape its configuration asks for"
                f"{f', and {len(missing) - 1} more' if missing[1:] else ''}. Fetch it again."
            )
        base = (base if found.four_bit else base.to(found.device)).eval().requires_grad_(False)
        report("Fingerprinting the base weights", 0.8)
        info = replace(_info(config, base, tokenizer, Path(data_dir), (backend.name, found.precision)), decoding=found.decoding)
    return LoadedModel(config, base, tokenizer, info, backend, found.folder)


def _tokenizer(found: Found) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Where it has no token for padding, which is masked anyway, the one that ends a text stands in."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(found.folder)
    if tokenizer.eos_token is None:
        raise ModelError(f"The tokenizer of {found.config.name} has no token that ends a text (eos_token); choose another model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def told_as_model_error(name: str) -> Iterator[None]:
    """Whatever libraries raise while they load a model, as a ModelError in the user's words."""
    try:
        yield
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        if is_disk_full(error):
            raise
        raise ModelError(f"The model {name} could not be loaded: {first_line(error)}. Check its name, and that it is there.") from error
    except (TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(
            f"The model {name} is damaged: its configuration makes no sense ({type(error).__name__}: {first_line(error)}). Fetch it again."
        ) from error
    except ImportError as error:
        raise ModelError(f"The model {name} could not be loaded: it needs a package that is not there ({first_line(error)}).") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"The model {name} does not fit into this machine's memory; choose a smaller one, or 4 bits.") from error


def require_memory(found: Found, free: int) -> None:
    """Raise ModelError, naming both numbers, for a model that the machine's `free` bytes cannot hold: the system would end the process.

    On a GPU nothing is asked: there a lack of memory is an error like others.
    """
    if found.device.type != "cuda" and found.bytes_to_load > free:
        raise ModelError(
            f"The model {found.config.name} needs about {found.bytes_to_load / accelerator.GIB:,.1f} GiB of memory in {found.precision}, "
            f"but only {max(free, 0) / accelerator.GIB:,.1f} GiB are free. Choose a smaller one"
            f"{', or bfloat16, which takes half' if found.dtype == torch.float32 else ''}, or close other programs."
        )


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
        heads=base.config.num_attention_heads,
        hidden_size=base.config.hidden_size,
        vocabulary=base.config.vocab_size,
        max_length=base.config.max_position_embeddings,
        projections=parts,
        tokenizer_file=str(tokenizer_file),
        eos=str(tokenizer.eos_token),
        base_hash=weights_hash,
        flops=_matmul_rate(device, base.get_input_embeddings().weight.dtype),
        launch_seconds=_launch_seconds(device),
        memory_bytes=accelerator.total_bytes(config.gpu_memory_gib),
        devices=accelerator.devices(),
    )


def linear_parts(layer: Any) -> dict[str, tuple[int, int]]:
    """Of each linear module of a layer, (inputs, outputs) by its name: the usual ones first, in the order of PROJECTIONS."""
    found = {name.rpartition(".")[2]: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    names = sorted(found, key=lambda name: PROJECTIONS.index(name) if name in PROJECTIONS else len(PROJECTIONS))
    return {name: (found[name].in_features, found[name].out_features) for name in names}


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, as large as keeps the device busy without keeping the user waiting.

    On a CPU it is that of one thread, by the time in which it computed, times the threads: what else runs on the cores while a model is
    loaded, such as the browser that opens the page, does not count. On two cores with four busy processes beside it that is 2.0e11 to
    2.1e11, as on a quiet machine, where products on both threads, by the clock, fell from 1.9e11 to 0.5e11.
    """
    if device.type != "cpu":
        return _rate(device, dtype, 8192 if device.type == "cuda" else 1024, time.perf_counter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * _rate(device, dtype, 512, time.thread_time)
    finally:
        torch.set_num_threads(threads)


def _launch_seconds(device: torch.device) -> float:
    """Seconds of the CPU for one small operation on a GPU: the median of short bursts, none of which fills the queue. 0.0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    number, found = torch.zeros(1, device=device), []
    for _ in range(1 + 9):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(200):
            number.add_(1)
        found.append((time.perf_counter() - began) / 200)
    return statistics.median(found[1:])


def _rate(device: torch.device, dtype: torch.dtype, largest: int, clock: Callable[[], float]) -> float:
    size = 256
    while (seconds := _product_seconds(size, device, dtype, 1, clock)) < SLOW_PRODUCT and size < largest:
        size *= 2
    return 2 * size**3 / (seconds if seconds >= SLOW_PRODUCT else _product_seconds(size, device, dtype, 8, clock))


def _product_seconds(size: int, device: torch.device, dtype: torch.dtype, times: int, clock: Callable[[], float]) -> float:
    """Seconds of one product, the shortest of so many after one that warms up."""
    left, found = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(1 + times):
        began = clock()
        (left @ left)[0, 0].item()
        found.append(clock() - began)
    return min(found[1:])
