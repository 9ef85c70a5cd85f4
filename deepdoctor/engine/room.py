"""Room for models: what one holds, how memory is given back, and how a model that made room is found again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def settled() -> Iterator[None]:
    """What is there by now is settled: within this the garbage collector passes it over, and looks only at what comes to be.

    Libraries call the collector some nine times before the first training step; looking through an 8B's modules and all that was imported
    took it 0.6 s each time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
