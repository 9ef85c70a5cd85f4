"""The base weights as the fused kernels take them: where they lie, which belong together, and how they are cut into tiles."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ADAPTERS = 16
WIDTH_BLOCKS = (256, 128, 64)
NF4_BLOCKS = (1024, 512, 256, 128, 64)


@dataclass(frozen=True)
class Weight:
    """One linear layer's base weight where it lies: 16-bit [outputs, inputs], or packed NF4 with its nested scales."""

    weight: Tensor
    bias: Tensor | None
    scale8: Tensor
    scale32: Tensor
    offset: float
    outputs: int
    inputs: int

    @classmethod
    def of(cls, module: Any) -> "Weight":
        """The weight of a linear layer, with or without adapters around it."""
        base = getattr(module, "base_layer", module)
        weight, quantized = base.weight.data, getattr(base.weight, "quant_state", None)
        if quantized is None:
            return cls(weight, base.bias, weight, weight, 0.0, base.out_features, base.in_features)
        scales = quantized.absmax, quantized.state2.absmax
        return cls(weight, base.bias, *scales, float(quantized.offset), base.out_features, base.in_features)


@dataclass(frozen=True)
class Joint:
    """Linear layers of one input, run by one kernel, with the address tables of their adapters' factors [modules, ADAPTERS] int64.

    They are known by `owner`, the module that holds them, and `names`: the first adapter of a layer puts another module in its place.
    """

    owner: Any
    names: tuple[str, ...]
    parts: list[Weight]
    firsts: Tensor
    seconds: Tensor

    @classmethod
    def of(cls, owner: Any, *names: str) -> "Joint":
        """Tables still empty."""
        parts = [Weight.of(getattr(owner, name)) for name in names]
        tables = [torch.zeros(len(parts), ADAPTERS, dtype=torch.int64, device=parts[0].weight.device) for _ in range(2)]
        return cls(owner, names, parts, *tables)

    @property
    def modules(self) -> list[Any]:
        """The layers as they are now, with or without adapters around them."""
        return [getattr(self.owner, name) for name in self.names]

    def point_to(self, adapters: list[str]) -> None:
        """Write the addresses of those adapters' factors into the tables: one after the other, 0 where an adapter leaves a layer alone."""
        for table, factor in ((self.firsts, "lora_A"), (self.seconds, "lora_B")):
            if adapters:
                rows = [[_address(module, factor, name) for name in adapters] for module in self.modules]
                table[:, : len(adapters)] = torch.tensor(rows, dtype=torch.int64)

    @property
    def inputs(self) -> int:
        """Width of the input."""
        return self.parts[0].inputs

    @property
    def outputs(self) -> list[int]:
        """Widths of up to three outputs, 0 where there is none."""
        return [part.outputs for part in self.parts] + [0] * (3 - len(self.parts))

    def fields(self, name: str) -> list[Any]:
        """One field of three parts, the first one's repeated where there are fewer."""
        return three([getattr(part, name) for part in self.parts])


@dataclass(frozen=True)
class Block:
    """How a program of a linear kernel works: outputs and inputs of one tile, warps, stages of loads in flight."""

    outputs: int
    inputs: int
    warps: int
    stages: int


def shape_of(joint: Joint, nf4: int) -> Block:
    """The tile for a layer's shape, measured on an H200; `nf4`: for how many rows the kernel unpacks NF4, or 0."""
    outputs = sum(joint.outputs)
    if nf4:
        block = next(block for block in NF4_BLOCKS if joint.inputs % block == 0)
        return Block(16, min(512, block), 4, 3) if outputs > joint.inputs else Block(8, block, 4, 3)
    block = next(block for block in WIDTH_BLOCKS if joint.inputs % block == 0)
    if len(joint.parts) == 1 and outputs <= 10_000 and nf4 == 0:
        return Block(16, block, 2, 5)
    if outputs > 10_000 and all(part % 64 == 0 for part in joint.outputs):
        return Block(64, min(128, block), 4, 4)
    return Block(32, block, 4, 4)


def three(values: list[Any]) -> list[Any]:
    """Three values, the first one repeated where there are fewer."""
    return (values + values[:1] * 3)[:3]


def scale_levels(joint: Joint) -> Tensor:
    """The 256 values that NF4's own scales take, float32; anything where the weights are not quantized."""
    module = joint.modules[0]
    state = getattr(getattr(module, "base_layer", module).weight, "quant_state", None)
    return joint.parts[0].scale32 if state is None else state.state2.code


def rank_and_scale(joints: Iterable[Joint], adapter: str) -> tuple[int, float]:
    """Rank of an attached adapter, and what its product is multiplied by."""
    held = next(module for joint in joints for module in joint.modules if adapter in getattr(module, "lora_A", ()))
    return held.lora_A[adapter].weight.shape[0], float(held.scaling[adapter])


def _address(module: Any, factor: str, name: str) -> int:
    factors = getattr(module, factor, {})
    if name not in factors:
        return 0
    weight = factors[name].weight
    if weight.dtype != torch.float32 or not weight.is_contiguous():
        raise TypeError(f"adapter {name} is not contiguous float32")
    return weight.data_ptr()
