"""Room for models: what one holds, how memory is given back, and how a model that made room is found again."""

import gc

import torch

from deepdoctor.engine.model import Found, LoadedModel


def weight_bytes(loaded: LoadedModel) -> int:
    """Memory that a model's weights hold."""
    return sum(weight.numel() * weight.element_size() for weight in loaded.base.parameters())


def found_again(loaded: LoadedModel) -> Found:
    """What loads that model once more, as it is."""
    info = loaded.info
    return Found(loaded.config, loaded.folder, loaded.device, info.parameters, loaded.dtype, info.precision == "4bit", info.decoding)


def free() -> None:
    """Give back memory that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
