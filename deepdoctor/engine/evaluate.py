"""Held-out loss: how well the model foresees the reasoning and the response of rows it was not trained on."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from deepdoctor.tokens import Encoded

ROWS_AT_ONCE = 8


def held_out_loss(model: Any, rows: Sequence[Encoded]) -> dict[str, float]:
    """Mean negative log-likelihood a token, in nats, of reasoning, response and both, over `rows`.

    `model` is a transformers causal model with whatever adapter is active. Returns {} for no rows, else held_out_loss,
    held_out_reasoning_loss and held_out_response_loss. Prompt tokens are never counted.
    """
    if not rows:
        return {}
    sums = {"reasoning": 0.0, "response": 0.0}
    counts = {"reasoning": 0, "response": 0}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ordered = sorted(rows, key=lambda row: len(row.ids))
        for start in range(0, len(ordered), ROWS_AT_ONCE):
            batch = ordered[start : start + ROWS_AT_ONCE]
            losses = token_losses(model, batch)
            for row, row_losses in zip(batch, losses, strict=True):
                for part in sums:
                    chosen = [place - 1 for place, name in enumerate(row.parts) if name == part and place]
                    # the end-of-sequence token has part "response": its loss is the cost of ending there
                    sums[part] += float(row_losses[chosen].sum())
                    counts[part] += len(chosen)
    model.train(was_training)
    both = sum(sums.values()) / max(1, sum(counts.values()))
    parts = {f"held_out_{part}_loss": sums[part] / max(1, counts[part]) for part in sums}
    return {name: round(value, 5) for name, value in {"held_out_loss": both, **parts}.items()}


def token_losses(model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
    """Loss of every token but the first, [rows, longest - 1] float32; entry i belongs to token i + 1. Right padding is not masked."""
    device = next(model.parameters()).device
    longest = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in batch], device=device)
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu()
