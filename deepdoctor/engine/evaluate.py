"""Held-out loss: how well the model foresees the reasoning and the response of rows it was not trained on.

By the forward pass of decoding, which leaves the trainer's model alone, in batches and slices so small that memory is never asked for much.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepdoctor.engine.forward import attention, groups_of, head, hidden_states, rotations
from deepdoctor.engine.model import LoadedModel
from deepdoctor.estimates import EVALUATED_PLACES, EVALUATED_ROWS, EVALUATED_TOKENS
from deepdoctor.tokens import Encoded


def held_out_loss(model: Any, rows: Sequence[Encoded], adapter: str | None = None) -> dict[str, float]:
    """Mean negative log-likelihood a token, in nats, of reasoning, response and both, over `rows`.

    `model` is a transformers causal model, adapters attached to it or not; `adapter` names the one to read with, None: the base alone.
    Returns {} for no rows, else held_out_loss, held_out_reasoning_loss and held_out_response_loss. Prompt tokens are never counted.
    """
    return _mean_losses(rows, lambda batch: token_losses(model, batch, adapter))


def _mean_losses(rows: Sequence[Encoded], losses_of: Callable[[list[Encoded]], Tensor]) -> dict[str, float]:
    if not rows:
        return {}
    sums = {"reasoning": 0.0, "response": 0.0}
    counts = {"reasoning": 0, "response": 0}
    for batch in batches(rows):
        for row, row_losses in zip(batch, losses_of(batch), strict=True):
            for part in sums:
                chosen = [place - 1 for place, name in enumerate(row.parts) if name == part and place]
                # the end-of-sequence token has part "response": its loss is the cost of ending there
                sums[part] += float(row_losses[chosen].sum())
                counts[part] += len(chosen)
    both = sum(sums.values()) / max(1, sum(counts.values()))
    parts = {f"held_out_{part}_loss": sums[part] / max(1, counts[part]) for part in sums}
    return {name: round(value, 5) for name, value in {"held_out_loss": both, **parts}.items()}


def evaluate(loaded: LoadedModel, rows: Sequence[Encoded], adapter: str | None) -> dict[str, float]:
    """`held_out_loss` of a loaded model with that adapter, or with none, by the forward pass that writes with it."""
    if not loaded.info.decoding:
        return held_out_loss(loaded.base, rows, adapter)
    from deepdoctor.engine import one_by_one

    return _mean_losses(rows, lambda batch: one_by_one.token_losses(loaded, batch, adapter))


def batches(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """The rows by length, at most EVALUATED_ROWS together and, padding counted, EVALUATED_TOKENS, or one row that is longer."""
    batch: list[Encoded] = []
    for row in sorted(rows, key=lambda each: len(each.ids)):
        if batch and (len(batch) == EVALUATED_ROWS or (len(batch) + 1) * len(row.ids) > EVALUATED_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def token_losses(model: Any, batch: Sequence[Encoded], adapter: str | None = None) -> Tensor:
    """Loss of every token but the first, [rows, longest - 1] float32; entry i belongs to token i + 1. Right padding is not masked."""
    device = model.model.norm.weight.device
    longest = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in batch], device=device)
    hidden = _hidden(model, ids, adapter)[:, :-1].flatten(0, 1)
    slices = zip(hidden.split(EVALUATED_PLACES), ids[:, 1:].flatten().split(EVALUATED_PLACES), strict=True)
    losses = [F.cross_entropy(head(model, some), targets, reduction="none") for some, targets in slices]
    return torch.cat(losses).view(len(batch), -1).cpu()


def _hidden(model: Any, ids: Tensor, adapter: str | None) -> Tensor:
    layers, turn = model.model.layers, rotations(model.config, ids.shape[1], ids.device)

    def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, layers[index].self_attn.scaling)

    return hidden_states(model, ids, turn, groups_of([adapter] * len(ids)), attend)
