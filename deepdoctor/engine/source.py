"""Where a base model comes from and in which numbers it is held, decided before any memory is taken for it."""

from deepdoctor.engine.accelerator import GIB, Card

import math
import os
from pathlib import Path

import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import safe_open

from deepdoctor.catalogue import Known, known
from deepdoctor.config import EMBEDDED_MODEL, ModelConfig
from deepdoctor.download import Report, fetch_model, is_cached
from deepdoctor.errors import ModelError
from deepdoctor.estimates import fits_in_16_bits, needed_in_4_bits

EMBEDDED_FOLDER = Path(__file__).parent.parent / "nano" / "model"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# in bitsandbytes' files, what follows a packed weight's name where it is told how to unpack it; and bytes of what it is packed into
NOTE = ".quant_state."
BYTES_OF = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}


def folder_of(config: ModelConfig, card: Card, report: Report) -> Path:
    """Where the model's files are on this machine; a Hub model is downloaded first. Raises ModelError if they cannot be had."""
    if config.name == EMBEDDED_MODEL:
        return EMBEDDED_FOLDER
    if (folder := Path(os.path.expanduser(config.name))).is_dir():
        return folder
    if config.name.startswith(("/", ".", "~")):
        raise ModelError(f"The model {config.name} could not be loaded: there is no such folder. Check its name, and that it is there.")
    repo = repository_for(config, card, known(config.name), is_cached(config.name, config.revision))
    try:
        return fetch_model(repo, config.revision, report)
    except ModelError as error:
        if repo == config.name or not isinstance(error.__cause__, RepositoryNotFoundError):
            raise
    report(f"{repo} is not on the Hub any more, so {config.name} itself is fetched", None)
    return fetch_model(config.name, None, report)


def repository_for(config: ModelConfig, card: Card, entry: Known | None, cached: bool) -> str:
    """Which repository a Hub model's files are taken from: its own, or where it will be held in 4 bits the smaller mirror.

    entry: the catalogue's, if there is one. Its own repository it is also if that is `cached`, or if a revision is pinned: the mirror has
    other commits. Raises ModelError, before anything is downloaded, if a model with a mirror can never be held on the card.
    """
    if entry is None or not entry.four_bit or config.revision or cached:
        return config.name
    _dtype, four_bit = numbers_for(config, round(entry.billions * 1e9), card, quantized=False)
    return entry.four_bit if four_bit else config.name


def numbers_for(config: ModelConfig, parameters: int, card: Card, quantized: bool) -> tuple[torch.dtype, bool]:
    """In which numbers to compute, and whether the weights are held in 4 bits. Raises ModelError if the GPU is too small for either.

    auto: 32 bit on a CPU and for the embedded model; on a GPU 16 bit where weights and training fit, else 4 bit.
    """
    if card.kind != "cuda" or config.name == EMBEDDED_MODEL:
        if config.precision == "4bit" or quantized:
            raise ModelError("4-bit weights need an NVIDIA GPU with bitsandbytes; choose another precision.")
        return DTYPES.get(config.precision, torch.float32), False
    if config.precision in DTYPES and not quantized:
        return DTYPES[config.precision], False
    if config.precision == "auto" and not quantized and fits_in_16_bits(parameters, card.memory):
        return card.half, False
    needed = needed_in_4_bits(parameters)
    if not quantized and needed > card.memory:
        raise ModelError(
            f"{config.name} needs about {needed / GIB:.0f} GiB of GPU memory even in 4 bits; this GPU has "
            f"{card.memory / GIB:.0f}. Choose a smaller model."
        )
    return card.half, True


def parameters_in(folder: Path) -> int:
    """How many numbers a model's safetensors files hold, those packed in 4 bits unpacked. Raises SafetensorError for a file not whole."""
    sizes: dict[str, tuple[int, str]] = {}
    for file in sorted(folder.glob("model*.safetensors")) or folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                stored = opened.get_slice(name)
                sizes[name] = math.prod(stored.get_shape()), stored.get_dtype()
    # beside a packed weight stand its scales and a note, all called after it; they may lie in another file
    packed = {name.partition(NOTE)[0] for name in sizes if NOTE in name}
    return sum(
        2 * BYTES_OF.get(kind, 1) * count if name in packed else count
        for name, (count, kind) in sizes.items()
        if NOTE not in name and name.rpartition(".")[0] not in packed
    )
