"""Fingerprints of weights: what tells that base weights or an adapter are the same, bit for bit."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# of the names of a wrapped model's modules and weights
PREFIX = "base_model.model."


def plain_name(name: str) -> str:
    """The name that a module or weight has in the base, told by one that it has with or without adapters around it."""
    return name.removeprefix(PREFIX).replace(".base_layer", "")


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the base model's own parameters, whether or not adapters are attached, and of NF4 the scales too."""
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            plain = plain_name(name)
            yield plain, parameter.data
            scales = getattr(parameter, "quant_state", None)
            for part, value in (scales.as_dict(packed=True) if scales is not None else {}).items():
                yield f"{plain}.{part}", value


def base_hash(model: nn.Module) -> str:
    """Hash of all base weights: sha256 over every tensor's name, shape and position-weighted checksum (64-bit, on the device)."""
    digest = hashlib.sha256()
    for name, weight in sorted(base_weights(model), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(weight.shape)}{checksum(weight)}".encode())
    return digest.hexdigest()


def checksum(weight: Tensor, chunk: int = 2**23) -> int:
    """Checksum of a tensor's bits: any changed, moved or swapped word changes it (with probability 1 - 2^-64 for a random change)."""
    words = _words(weight)
    places = torch.arange(min(chunk, len(words)), device=words.device, dtype=torch.int64) * 0x5851F42D4C957F2D
    total = torch.zeros((), device=words.device, dtype=torch.int64)
    for start in range(0, len(words), chunk):
        part = words[start : start + chunk]
        mixed = (part + 0x9E3779B9) * (places[: len(part)] + _wrapped((start + 1) * 0x5851F42D4C957F2D + 0x14057B7EF767814F))
        total += (mixed ^ (mixed >> 29)).sum()
    return int(total.item()) % 2**64


def _words(weight: Tensor) -> Tensor:
    """The tensor's bytes as 64-bit words, filled up with zeros."""
    octets = weight.detach().contiguous().view(torch.uint8).flatten()
    if len(octets) % 8 or octets.storage_offset() % 8:
        octets = torch.cat((octets, octets.new_zeros(-len(octets) % 8)))
    return octets.view(torch.int64)


def _wrapped(number: int) -> int:
    """The number as a signed 64-bit word holds it."""
    return (number + 2**63) % 2**64 - 2**63
