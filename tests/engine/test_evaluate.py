"""The held-out loss equals transformers' own, token by token, over exactly the reasoning and the response."""

from pathlib import Path

import pytest
import torch

from deepdoctor.dataset import Example
from deepdoctor.engine.evaluate import ROWS_AT_ONCE, held_out_loss, token_losses
from deepdoctor.engine.model import LoadedModel
from deepdoctor.nano.tokenizer import EOS
from deepdoctor.prompts import ARTICLE
from deepdoctor.tokens import Encoded, encode_example
from tests.engine import tiny


def encoded(loaded: LoadedModel, count: int) -> list[Encoded]:
    """Rows of different lengths."""
    examples = [
        Example(f"Is it fever {'or thirst ' * row}?", f"{'Hm. ' * (row % 5)}It is fever.", "It is." * (1 + row % 3)) for row in range(count)
    ]
    return [encode_example(example, loaded.tokenizer.backend_tokenizer, EOS, ARTICLE, "response_only") for example in examples]


@torch.inference_mode()
def plain_loss(model: object, rows: list[Encoded], parts: tuple[str, ...]) -> float:
    """Transformers' own loss, one row at a time without padding, weighted by its tokens."""
    assert callable(model)
    total, count = 0.0, 0
    for row in rows:
        labels = [token if part in parts else -100 for token, part in zip(row.ids, row.parts, strict=True)]
        tokens = sum(label != -100 for label in labels)
        total += float(model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss) * tokens
        count += tokens
    return total / count


@pytest.mark.parametrize("count", [1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_it_is_the_plain_loss_of_each_part(loaded: LoadedModel, llama: Path, adapter: Path, count: int) -> None:
    rows = encoded(loaded, count)
    for model in (tiny.plain(llama), tiny.with_adapter(llama, adapter)):
        found = held_out_loss(model, rows)
        assert found["held_out_reasoning_loss"] == pytest.approx(plain_loss(model, rows, ("reasoning",)), abs=2e-5)
        assert found["held_out_response_loss"] == pytest.approx(plain_loss(model, rows, ("response",)), abs=2e-5)
        assert found["held_out_loss"] == pytest.approx(plain_loss(model, rows, ("reasoning", "response")), abs=2e-5)


@torch.inference_mode()
def test_losses_belong_to_the_token_that_follows(loaded: LoadedModel, llama: Path) -> None:
    rows, model = encoded(loaded, 3), tiny.plain(llama)
    losses = token_losses(model, rows)
    assert losses.shape == (3, max(len(row.ids) for row in rows) - 1)
    for row, found in zip(rows, losses, strict=True):
        scores = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        wanted = torch.tensor([-scores[place, token] for place, token in enumerate(row.ids[1:])])
        assert torch.allclose(found[: len(wanted)], wanted, atol=1e-4)


def test_the_end_of_sequence_counts_as_response(loaded: LoadedModel, llama: Path) -> None:
    [row] = encoded(loaded, 1)
    assert (row.ids[-1], row.parts[-1]) == (loaded.eos_id, "response")
    model = tiny.plain(llama)
    with_end = held_out_loss(model, [row])["held_out_response_loss"]
    cut = Encoded(row.ids[:-1], row.pieces[:-1], row.supervised[:-1], row.parts[:-1])
    assert held_out_loss(model, [cut])["held_out_response_loss"] != with_end


def test_the_order_of_rows_and_the_training_mode_are_left_alone(loaded: LoadedModel, llama: Path) -> None:
    rows, model = encoded(loaded, 5), tiny.plain(llama)
    assert held_out_loss(model, rows) == held_out_loss(model, rows[::-1])
    assert not model.training
    model.train()
    held_out_loss(model, rows)
    assert model.training


def test_no_rows_no_loss(llama: Path) -> None:
    assert held_out_loss(tiny.plain(llama), []) == {}
