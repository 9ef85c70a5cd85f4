"""The forward pass over rows that each carry their own adapter, or none: base and tuned go through the weights together.

Reads the weights of a loaded Llama, Qwen2 or Qwen3 model where they are; nothing is copied or merged. A row without an adapter touches base
weights only, so no switch has to be thrown, and none can be forgotten.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Group = tuple[str, slice | Tensor]


@dataclass
class Cache:
    """Keys and values, a list entry a layer, each [rows, kv_heads, context, head_dim]; `lengths` counts the tokens held by each row."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: list[int]

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        self.keys = [layer[rows] for layer in self.keys]
        self.values = [layer[rows] for layer in self.values]
        self.lengths = [self.lengths[row] for row in rows]


def new_cache(model: Any, rows: int, context: int) -> Cache:
    """An empty cache for `rows` rows of at most `context` tokens."""
    attention, norm = model.model.layers[0].self_attn, model.model.norm.weight
    shape = (rows, model.config.num_key_value_heads, context, attention.head_dim)
    layers = range(len(model.model.layers))
    return Cache(
        [torch.zeros(shape, device=norm.device, dtype=norm.dtype) for _ in layers],
        [torch.zeros(shape, device=norm.device, dtype=norm.dtype) for _ in layers],
        [0] * rows,
    )


def groups_of(adapters: list[str | None]) -> list[Group]:
    """Which rows each adapter works on: [(adapter, rows)]; rows that follow each other become a slice, which needs no copying."""
    found: list[Group] = []
    for name in dict.fromkeys(adapter for adapter in adapters if adapter):
        rows = [row for row, adapter in enumerate(adapters) if adapter == name]
        whole = rows == list(range(rows[0], rows[-1] + 1))
        found.append((name, slice(rows[0], rows[-1] + 1) if whole else torch.tensor(rows)))
    return found


def prefill(model: Any, cache: Cache, row: int, prompt: list[int], adapter: str | None) -> Tensor:
    """Read a prompt into one row of the cache. Returns the logits of its last token, [vocabulary], float32."""
    device = model.model.norm.weight.device
    ids = torch.tensor([prompt], device=device)
    views = Cache([layer[row : row + 1] for layer in cache.keys], [layer[row : row + 1] for layer in cache.values], [0])
    logits = _forward(model, views, ids, groups_of([adapter]))
    cache.lengths[row] = len(prompt)
    return logits[0]


def step(model: Any, cache: Cache, tokens: list[int], groups: list[Group]) -> Tensor:
    """Read one more token into every row. Returns logits [rows, vocabulary], float32."""
    ids = torch.tensor(tokens, device=model.model.norm.weight.device).unsqueeze(1)
    logits = _forward(model, cache, ids, groups)
    cache.lengths = [length + 1 for length in cache.lengths]
    return logits


def _forward(model: Any, cache: Cache, ids: Tensor, groups: list[Group]) -> Tensor:
    """Logits [rows, vocabulary] after the last of `ids` [rows, new]; writes keys and values behind what the cache holds."""
    new = ids.shape[1]
    start = torch.tensor(cache.lengths, device=ids.device)
    positions = start.unsqueeze(1) + torch.arange(new, device=ids.device)
    hidden = model.model.embed_tokens(ids)
    rotation = tuple(part.unsqueeze(1) for part in model.model.rotary_emb(hidden, positions))
    width = max(cache.lengths) + new
    mask = None if len(set(cache.lengths)) == 1 else torch.arange(width, device=ids.device) <= positions[:, :, None]
    for index, layer in enumerate(model.model.layers):
        normed = layer.input_layernorm(hidden)
        query, key, value = _heads(layer.self_attn, normed, groups, rotation)
        keys, values = _remember(cache, index, positions, (key, value), width)
        mixed = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=None if mask is None else mask.unsqueeze(1),
            is_causal=mask is None and new > 1,
            scale=layer.self_attn.scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        hidden = hidden + project(layer.self_attn.o_proj, mixed.transpose(1, 2).flatten(2), groups)
        normed = layer.post_attention_layernorm(hidden)
        gate = layer.mlp.act_fn(project(layer.mlp.gate_proj, normed, groups))
        hidden = hidden + project(layer.mlp.down_proj, gate * project(layer.mlp.up_proj, normed, groups), groups)
    return model.lm_head(model.model.norm(hidden[:, -1])).float()


def _heads(attention: Any, normed: Tensor, groups: list[Group], rotation: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated query and key, and value, each [rows, heads, new, head_dim]."""
    shape = (*normed.shape[:2], -1, attention.head_dim)
    query = project(attention.q_proj, normed, groups).view(shape)
    key = project(attention.k_proj, normed, groups).view(shape)
    value = project(attention.v_proj, normed, groups).view(shape)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    return _rotate(query.transpose(1, 2), *rotation), _rotate(key.transpose(1, 2), *rotation), value.transpose(1, 2)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of the Llama family."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _remember(cache: Cache, index: int, positions: Tensor, new: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Write new keys and values at their positions and return the part of the cache in use, [rows, kv_heads, width, head_dim]."""
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
    cache.keys[index][rows, :, positions] = new[0].transpose(1, 2)
    cache.values[index][rows, :, positions] = new[1].transpose(1, 2)
    return cache.keys[index][:, :, :width], cache.values[index][:, :, :width]


def project(module: nn.Module, x: Tensor, groups: list[Group]) -> Tensor:
    """A linear layer on rows x [rows, new, inputs]: the base weights for all, plus each adapter's low-rank term on its own rows."""
    base: Any = getattr(module, "base_layer", module)
    out = base(x)
    if base is module:
        return out
    for name, rows in groups:
        adapter: Any = module
        low = F.linear(x[rows].to(adapter.lora_A[name].weight.dtype), adapter.lora_A[name].weight)
        out[rows] += (F.linear(low, adapter.lora_B[name].weight) * adapter.scaling[name]).to(out.dtype)
    return out
