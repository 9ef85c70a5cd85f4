"""The forward pass over rows that each carry their own adapter, or none: base and tuned go through the weights together.

Reads the weights of a loaded Llama, Qwen2 or Qwen3 model where they are; nothing is copied or merged, and no forward of the model's own,
which others may have patched, is called. A row without an adapter touches base weights only: there is no switch that could be forgotten.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Group = tuple[str, slice | Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
ARCHITECTURES = ("llama", "qwen2", "qwen3")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
# what `times` turns round on a CPU: products of a weight of so many numbers with at most so many tokens
FEW_PLACES, LARGE_WEIGHT = 4, 2**17


def why_unpaired(architecture: Any) -> str:
    """Why this forward pass does not know a model of that configuration, in words; "" if it does."""
    if architecture.model_type not in ARCHITECTURES:
        return f"a {architecture.model_type} model is not of a family that paired decoding knows"
    if architecture.hidden_act not in ("silu", "swish"):
        return f"its layers are gated by {architecture.hidden_act}, which paired decoding does not know"
    if "sliding_attention" in (getattr(architecture, "layer_types", None) or ()):
        return "it attends through a sliding window, which paired decoding does not know"
    if (rotation := architecture.rope_parameters["rope_type"]) not in FIXED_ROTATIONS:
        return f"it turns positions by {rotation} scaling, which paired decoding does not know"
    return ""


@dataclass
class State:
    """What the rows being written share with the device. Rows stand in the first slots; the slots behind them are free.

    tokens, positions, counts, live: [slots] int64: the token to read next, where it goes in the cache, how many tokens were drawn, and 1
    for a slot in use. logits: [slots, vocabulary] float32. keys, values: [layers, slots, kv_heads, context, head_dim].
    cos, sin: [context, head_dim / 2] float32.
    """

    tokens: Tensor
    positions: Tensor
    counts: Tensor
    live: Tensor
    logits: Tensor
    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def empty(cls, model: Any, slots: int, context: int) -> "State":
        """All slots free, with room for `context` tokens each."""
        weight, config = model.model.norm.weight, model.config
        device, dtype = weight.device, weight.dtype
        tokens, positions, counts, live = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(4))
        logits = torch.zeros(slots, config.vocab_size, device=device)
        shape = (len(model.model.layers), slots, config.num_key_value_heads, context, model.model.layers[0].self_attn.head_dim)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(tokens, positions, counts, live, logits, keys, values, *rotations(config, context, device))

    def move(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the row of slot `source`, which holds `length` tokens."""
        for held in (self.tokens, self.positions, self.counts, self.live, self.logits):
            held[target] = held[source]
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]

    def advance(self, rows: int) -> None:
        """Count the token that each of the first rows has just read."""
        self.positions[:rows] += self.live[:rows]
        self.counts[:rows] += self.live[:rows]


class Steps(Protocol):
    """One way to put rows through the weights: `TorchSteps` anywhere, `FusedSteps` on an NVIDIA GPU where its guard allows it."""

    def prefill(self, slot: int, prompt: list[int], adapter: str | None) -> None:
        """Read a prompt into a slot; its last logits go to `State.logits[slot]`."""

    def assign(self, adapters: list[str | None]) -> None:
        """Which adapter each row is written with; told whenever the rows change."""

    def forward(self, lengths: list[int]) -> None:
        """Read one more token into each of the first rows, which hold `lengths` tokens: `tokens` at `positions`, logits to `logits`."""

    def bucket(self, rows: int) -> int:
        """How many slots take part when `rows` are in use."""

    def run(self, key: Hashable, call: Callable[[], object]) -> None:
        """Do `call`, which works on the state's tensors alone; the same key always stands for the same call."""


def rotations(config: Any, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding at each position, [context, head_dim / 2] float32 (Su et al. 2021)."""
    given = config.rope_parameters
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if given["rope_type"] == "default":
        frequencies, scale = 1.0 / given["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width), 1.0
    else:
        frequencies, scale = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"))
    angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies[None, :]
    return (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)


def groups_of(adapters: list[str | None]) -> list[Group]:
    """Which rows each adapter works on: [(adapter, rows)]; rows that follow each other become a slice, which needs no copying."""
    found: list[Group] = []
    for name in dict.fromkeys(adapter for adapter in adapters if adapter):
        rows = [row for row, adapter in enumerate(adapters) if adapter == name]
        whole = rows == list(range(rows[0], rows[-1] + 1))
        found.append((name, slice(rows[0], rows[-1] + 1) if whole else torch.tensor(rows)))
    return found


class TorchSteps:
    """The steps by plain PyTorch operations, on any device and in any numbers."""

    def __init__(self, model: Any, state: State) -> None:
        self.model, self.state = model, state
        self.groups: list[Group] = []

    def assign(self, adapters: list[str | None]) -> None:
        """Which adapter each row is written with."""
        self.groups = groups_of(adapters)

    def prefill(self, slot: int, prompt: list[int], adapter: str | None) -> None:
        """Read a prompt into a slot; its last logits go to `State.logits[slot]`."""
        ids = torch.tensor([prompt], device=self.state.tokens.device)
        self.state.logits[slot] = self._logits(ids, slot, [0], groups_of([adapter]))[0]

    def forward(self, lengths: list[int]) -> None:
        """Read one more token into each of the first rows."""
        rows = len(lengths)
        self.state.logits[:rows] = self._logits(self.state.tokens[:rows, None], 0, lengths, self.groups)
        self.state.advance(rows)

    def bucket(self, rows: int) -> int:
        """The rows themselves."""
        return rows

    def run(self, key: Hashable, call: Callable[[], object]) -> None:  # noqa: ARG002
        """Do it."""
        call()

    def _logits(self, ids: Tensor, slot: int, lengths: list[int], groups: list[Group]) -> Tensor:
        """Logits [rows, vocabulary] after the last of `ids` [rows, new], of rows that stand in slots from `slot` on and hold `lengths`."""
        state = self.state
        rows, new = ids.shape
        positions = torch.tensor(lengths, device=ids.device)[:, None] + torch.arange(new, device=ids.device)
        width = max(lengths) + new
        turn = state.cos[positions].unsqueeze(1), state.sin[positions].unsqueeze(1)
        mask = None if len(set(lengths)) == 1 else (torch.arange(width, device=ids.device) <= positions[:, :, None]).unsqueeze(1)

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache = state.keys[index, slot : slot + rows], state.values[index, slot : slot + rows]
            keys, values = (_remember(held, positions, one)[:, :, :width] for held, one in zip(cache, (key, value), strict=True))
            return attention(query, keys, values, self.model.model.layers[index].self_attn.scaling, mask)

        return head(self.model, hidden_states(self.model, ids, turn, groups, attend)[:, -1])


def hidden_states(model: Any, ids: Tensor, turn: tuple[Tensor, Tensor], groups: list[Group], attend: Attend) -> Tensor:
    """What the layers make of token ids [rows, new]: [rows, new, hidden], as `head` takes it.

    turn: cosine and sine of each token's position, [rows or 1, 1, new, head_dim / 2]. attend: from a layer's number and its rotated query,
    rotated key and value, each [rows, heads, new, head_dim], the mixed values in the query's shape.
    """
    hidden = model.model.embed_tokens(ids)
    for index, layer in enumerate(model.model.layers):
        mixed = attend(index, *_heads(layer.self_attn, rms_norm(layer.input_layernorm, hidden), groups, turn))
        hidden = hidden + project(layer.self_attn.o_proj, mixed.transpose(1, 2).flatten(2), groups)
        normed = rms_norm(layer.post_attention_layernorm, hidden)
        gate = F.silu(project(layer.mlp.gate_proj, normed, groups))
        hidden = hidden + project(layer.mlp.down_proj, gate * project(layer.mlp.up_proj, normed, groups), groups)
    return hidden


def head(model: Any, hidden: Tensor) -> Tensor:
    """Logits [places, vocabulary] float32 of hidden states [places, hidden]."""
    return times(model.lm_head, rms_norm(model.model.norm, hidden)[:, None])[:, 0].float()


def attention(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Values mixed for each query [rows, heads, new, head_dim]; without a mask, all queries see all keys, or several new ones the past."""
    if query.shape[1] != keys.shape[1] and query.shape[2] > 1:
        # a card before Ampere has no kernel for shared heads that would not hold every score at once
        keys, values = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (keys, values))
    causal = mask is None and query.shape[2] > 1
    shared = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=shared)


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """x / rms(x) * weight, computed in float32 (Zhang and Sennrich 2019)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)


def _heads(attention: Any, normed: Tensor, groups: list[Group], turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated query and key, and value, each [rows, heads, new, head_dim]."""
    shape = (*normed.shape[:2], -1, attention.head_dim)
    query = project(attention.q_proj, normed, groups).view(shape)
    key = project(attention.k_proj, normed, groups).view(shape)
    value = project(attention.v_proj, normed, groups).view(shape)
    if hasattr(attention, "q_norm"):
        query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
    return _rotate(query.transpose(1, 2), *turn), _rotate(key.transpose(1, 2), *turn), value.transpose(1, 2)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of the Llama family, turned in float32."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def _remember(cache: Tensor, positions: Tensor, new: Tensor) -> Tensor:
    """Write new keys or values [rows, kv_heads, new, head_dim] at their positions into the cache [rows, kv_heads, context, head_dim]."""
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
    cache[rows, :, positions] = new.transpose(1, 2)
    return cache


def project(module: nn.Module, x: Tensor, groups: list[Group]) -> Tensor:
    """A linear layer on rows x [rows, new, inputs]: the base weights for all, plus each adapter's low-rank term on its own rows."""
    base: Any = getattr(module, "base_layer", module)
    out = times(base, x)
    if base is module:
        return out
    adapter: Any = module
    for name, rows in groups:
        if name not in adapter.lora_A:
            continue
        first, second, scale = adapter.lora_A[name].weight, adapter.lora_B[name].weight, adapter.scaling[name]
        low = F.linear(x[rows].flatten(0, 1).to(first.dtype), first)
        if isinstance(rows, slice) and first.dtype == out.dtype:  # one product fewer to make and to copy
            out[rows].flatten(0, 1).addmm_(low, second.t(), alpha=scale)
        else:
            out[rows] += (F.linear(low, second) * scale).to(out.dtype).view(-1, *out.shape[1:])
    return out


def times(layer: Any, x: Tensor) -> Tensor:
    """A linear layer without adapters on x [rows, new, inputs]."""
    places = x.shape[0] * x.shape[1]
    few = 1 < places <= FEW_PLACES and x.device.type == "cpu"
    if not few or layer.bias is not None or layer.weight.numel() < LARGE_WEIGHT:
        return layer(x)
    # the other way round the product is shared out among the cores by outputs: of so few rows a CPU's library would make one core's work
    return (layer.weight @ x.flatten(0, 1).t()).t().contiguous().view(*x.shape[:2], -1)
