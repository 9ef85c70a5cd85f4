"""One decoding step on an NVIDIA GPU as a captured CUDA graph of fused kernels: each weight is read once for all rows."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from deepdoctor.engine import attention_kernels, kernels
from deepdoctor.engine.forward import State, TorchSteps
from deepdoctor.engine.guard import NARROWEST_RANK, rank_held
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.weights import ADAPTERS, WIDTH_BLOCKS, Joint, rank_and_scale, scale_levels, shape_of, three

SPLITS = 16
ATTENTION_SPLITS = 16
ATTENTION_BLOCK = 64
NF4_ROWS = 4


def why_not(loaded: LoadedModel) -> str:
    """Why the fused step cannot serve this model's layers, in words; "" if it can."""
    config = loaded.base.config
    layer = loaded.base.model.layers[0]
    if config.hidden_act != "silu" or layer.self_attn.head_dim not in (64, 128, 256):
        return "its layers have an unusual shape"
    for module in _projections(layer):
        base = getattr(module, "base_layer", module)
        state = getattr(base.weight, "quant_state", None)
        known = state.quant_type == "nf4" and state.nested and state.blocksize == 64 if state is not None else type(base) is nn.Linear
        if not known or base.in_features % WIDTH_BLOCKS[-1] or base.out_features % 32:
            return "its weights are stored in a way the kernels do not know"
    if any(getattr(module, "bias", None) is not None for module in (layer.self_attn.o_proj, *_projections(layer)[4:])):
        return "its layers have an unusual bias"
    head = Joint.of(loaded.base, "lm_head")
    if sum(head.outputs) % shape_of(head, 0).outputs:
        return f"its vocabulary of {sum(head.outputs):,} tokens is no multiple of the kernels' {shape_of(head, 0).outputs}"
    return ""


def _projections(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


class FusedSteps:
    """The steps by fused kernels, captured as one graph for each number of rows at its first use."""

    def __init__(self, model: Any, state: State) -> None:
        self.model, self.state = model, state
        self.eager = TorchSteps(model, state)
        self.layers = [_Layer(layer) for layer in model.model.layers]
        self.head = Joint.of(model, "lm_head")
        self.adapters: list[str] = []
        self.rank = NARROWEST_RANK
        self.nf4 = self.layers[0].down.parts[0].weight.dtype == torch.uint8
        self.scale_levels = scale_levels(self.layers[0].down)
        self._buffers()
        self.overlap = overlapping()
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def _buffers(self) -> None:
        slots, config = len(self.state.tokens), self.model.config
        device, dtype = self.state.keys.device, self.state.keys.dtype
        rows = padded(slots)
        attention = self.layers[0]
        width = attention.head_dim

        def buffer(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, device=device, dtype=kind)

        self.hidden, self.last = buffer(rows, config.hidden_size), buffer(rows, config.hidden_size)
        self.qkv = buffer(rows, (attention.heads + 2 * attention.kv_heads) * width)
        inputs = (config.hidden_size, attention.heads * width, config.intermediate_size)
        # inputs of linear layers: normed, attended and active; for few rows of NF4 in float32, parted into even and odd columns
        self.inputs = [buffer(rows, size) for size in inputs]
        self.parted = [buffer(NF4_ROWS, size, kind=torch.float32) for size in inputs] if self.nf4 else []
        largest = max(sum(joint.outputs) * joint.inputs for joint in attention.joints)
        self.unpacked = buffer(largest) if self.nf4 else self.hidden
        parts = rows * attention.heads * ATTENTION_SPLITS
        self.mixed, self.peaks, self.masses = (buffer(parts, size, kind=torch.float32) for size in (width, 1, 1))
        self.low = buffer(3 * SPLITS * rows * self.rank, kind=torch.float32)
        self.chosen = torch.full((rows,), -1, device=device, dtype=torch.int32)
        self.ranks, self.in_use = buffer(ADAPTERS, kind=torch.int32), buffer(1, kind=torch.int32)
        self.scales = buffer(ADAPTERS, kind=torch.float32)

    def bucket(self, rows: int) -> int:
        """1, 2, 4, 8, … slots: few graphs serve all numbers of rows."""
        return min(len(self.state.tokens), 1 << (rows - 1).bit_length())

    def prefill(self, slot: int, prompt: list[int], adapter: str | None) -> None:
        """Read a prompt into a slot by plain operations: it is long enough to keep the device busy."""
        self.eager.prefill(slot, prompt, adapter)

    def assign(self, adapters: list[str | None]) -> None:
        """Write the addresses of the adapters in use into the tables that the graphs read."""
        self.adapters = list(dict.fromkeys(name for name in adapters if name))
        places = [self.adapters.index(name) if name else -1 for name in adapters]
        chosen = torch.full((len(self.chosen),), -1, dtype=torch.int32)
        chosen[: len(places)] = torch.tensor(places, dtype=torch.int32)
        self.chosen.copy_(chosen)
        joints = [joint for layer in self.layers for joint in layer.joints]
        ranks, scales = [0] * ADAPTERS, [0.0] * ADAPTERS
        for place, name in enumerate(self.adapters):
            ranks[place], scales[place] = rank_and_scale(joints, name)
        self.ranks.copy_(torch.tensor(ranks, dtype=torch.int32))
        self.scales.copy_(torch.tensor(scales))
        self.in_use.fill_(len(self.adapters))
        self.rank = rank_held(ranks)
        self._make_room()
        for joint in joints:
            joint.point_to(self.adapters)

    def _make_room(self) -> None:
        """Have room for what the first factors of the widest adapter make; graphs that know the old place are dropped."""
        needed = 3 * SPLITS * len(self.chosen) * self.rank
        if needed > len(self.low):
            torch.cuda.synchronize()
            self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != "step"}
            self.low = torch.zeros(needed, device=self.low.device)

    def forward(self, lengths: list[int]) -> None:
        """Read one more token into each of the first rows."""
        rows = self.bucket(len(lengths))
        self.run(("step", rows, self.rank), lambda: self._step(rows))

    def run(self, key: Hashable, call: Callable[[], object]) -> None:
        """Replay the graph of `key`; the first time do `call`, and capture it for the next time."""
        if key in self._graphs:
            self._graphs[key].replay()
            return
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        self._graphs[key] = graph

    def _step(self, rows: int) -> None:
        """Every layer of the model, then the logits, for the first `rows` slots."""
        state, model = self.state, self.model.model
        normed, attended, active = self.parted if self._few(rows) else self.inputs
        self.hidden[:rows] = model.embed_tokens.weight[state.tokens[:rows]]
        for index, layer in enumerate(self.layers):
            self._norm(layer.norm_before, normed, rows)
            self._linear(layer.qkv, normed, self.qkv, rows)
            self._attend(index, layer, attended, rows)
            self._linear(layer.out, attended, self.hidden, rows)
            self._norm(layer.norm_after, normed, rows)
            self._gated(layer.gated, normed, active, rows)
            self._linear(layer.down, active, self.hidden, rows)
        self._norm(model.norm, self.last, rows)
        self._linear(self.head, self.last, state.logits, rows)
        state.advance(rows)

    def _few(self, rows: int) -> bool:
        """Whether NF4 weights are unpacked anew for each row, which is faster than unpacking them once into memory for few rows."""
        return self.nf4 and rows <= NF4_ROWS

    def _is_parted(self, x: Tensor) -> bool:
        return any(x is each for each in self.parted)

    def _norm(self, norm: Any, out: Tensor, rows: int) -> None:
        width = self.hidden.shape[1]
        kernels.rms_norm[(rows,)](
            self.hidden,
            norm.weight,
            out,
            norm.variance_epsilon,
            width,
            1 << (width - 1).bit_length(),
            self._is_parted(out),
            num_warps=8,
            **self.overlap,
        )

    def _low(self, joint: Joint, x: Tensor, rows: int) -> None:
        kernels.lora_down[(len(joint.parts), SPLITS, rows)](
            x, self.low, self.chosen, joint.firsts, self.ranks, joint.inputs, -(-joint.inputs // SPLITS), min(256, 16384 // self.rank),
            ADAPTERS, self.rank, padded(rows), SPLITS, self._is_parted(x), **self.overlap,
        )  # fmt: skip

    def _weights(self, joint: Joint, rows: int) -> tuple[list[Tensor], int]:
        """The parts' weights, and for how many rows the kernel is to unpack NF4 itself (0: they are 16-bit, or are made so here)."""
        packed = [part.weight for part in joint.parts]
        if packed[0].dtype != torch.uint8 or self._few(rows):
            return packed, rows if packed[0].dtype == torch.uint8 else 0
        found, begin = [], 0
        for part in joint.parts:
            size = part.outputs * part.inputs
            kernels.unpack_nf4[(size // 4096,)](
                part.weight, part.scale8, part.scale32, part.offset, self.scale_levels, self.unpacked[begin:], 64, **self.overlap
            )
            found.append(self.unpacked[begin : begin + size])
            begin += size
        return found, 0

    def _linear(self, joint: Joint, x: Tensor, out: Tensor, rows: int) -> None:
        adapted, residual, bias = joint is not self.head, out is self.hidden, joint.parts[0].bias is not None
        if adapted:
            self._low(joint, x, rows)
        weights, nf4 = self._weights(joint, rows)
        block = shape_of(joint, nf4)
        biases = joint.fields("bias") if bias else [weights[0]] * 3
        parts = [*three(weights), *biases, *(value for name in ("scale8", "scale32", "offset") for value in joint.fields(name))]
        kernels.linear[(sum(joint.outputs) // block.outputs,)](
            x, out, out, *parts, self.scale_levels, self.low, self.chosen, joint.seconds, self.ranks, self.scales, self.in_use,
            rows, *joint.outputs, joint.inputs, block.outputs, block.inputs, padded(rows), ADAPTERS if adapted else 0, self.rank, SPLITS,
            nf4, bias, residual, num_warps=block.warps, **self.overlap, num_stages=block.stages,
        )  # fmt: skip

    def _gated(self, joint: Joint, x: Tensor, out: Tensor, rows: int) -> None:
        self._low(joint, x, rows)
        weights, nf4 = self._weights(joint, rows)
        block = shape_of(joint, nf4)
        parts = [*weights, *(value for name in ("scale8", "scale32", "offset") for value in joint.fields(name)[:2])]
        kernels.gated[(joint.outputs[0] // block.outputs,)](
            x, out, *parts, self.scale_levels, self.low, self.chosen, joint.seconds, self.ranks, self.scales,
            self.in_use, rows, joint.outputs[0], joint.inputs, block.outputs, block.inputs, padded(rows), ADAPTERS, self.rank, SPLITS, nf4,
            num_warps=block.warps, **self.overlap, num_stages=block.stages,
        )  # fmt: skip

    def _attend(self, index: int, layer: "_Layer", out: Tensor, rows: int) -> None:
        keys, values = self.state.keys[index], self.state.values[index]
        context, width = keys.shape[2], layer.head_dim
        normed = bool(layer.norms)
        norms = [norm.weight for norm in layer.norms] or [self.hidden, self.hidden]
        attention_kernels.rotate_and_store[(rows, layer.heads + 2 * layer.kv_heads)](
            self.qkv, keys, values, self.state.cos, self.state.sin, self.state.positions, *norms,
            layer.norms[0].variance_epsilon if normed else 0.0, layer.heads, layer.kv_heads, width // 2, context, normed,
            num_warps=1, **self.overlap,
        )  # fmt: skip
        attention_kernels.attend[(rows, layer.kv_heads, ATTENTION_SPLITS)](
            self.qkv, keys, values, self.mixed, self.peaks, self.masses, self.state.positions, layer.scaling, layer.heads, layer.kv_heads,
            width, context, max(16, 1 << (layer.heads // layer.kv_heads - 1).bit_length()), ATTENTION_BLOCK, ATTENTION_SPLITS,
            **self.overlap,
        )  # fmt: skip
        attention_kernels.combine[(rows * layer.heads,)](
            self.mixed,
            self.peaks,
            self.masses,
            out,
            layer.heads,
            width,
            ATTENTION_SPLITS,
            self._is_parted(out),
            num_warps=1,
            **self.overlap,
        )


class _Layer:
    """One transformer layer as the kernels take it."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_before, self.norm_after = layer.input_layernorm, layer.post_attention_layernorm
        self.norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.qkv, self.out = Joint.of(attention, "q_proj", "k_proj", "v_proj"), Joint.of(attention, "o_proj")
        self.gated, self.down = Joint.of(mlp, "gate_proj", "up_proj"), Joint.of(mlp, "down_proj")
        self.joints = (self.qkv, self.out, self.gated, self.down)
        self.heads, self.kv_heads = (width // self.head_dim for width in self.qkv.outputs[:2])


def overlapping() -> dict[str, bool]:
    """How kernels are launched: on Hopper and later each is set up while the one before it still runs."""
    can = torch.cuda.get_device_capability() >= (9, 0)
    return {"OVERLAP": can, "launch_pdl": can}


def padded(rows: int) -> int:
    """Rows as the matrix units take them: a power of two of at least 16."""
    return max(16, 1 << (rows - 1).bit_length())
