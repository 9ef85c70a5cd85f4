"""The held-out loss equals transformers' own, token by token, over exactly the reasoning and the response."""

from pathlib import Path

import pytest
import torch

from deepdoctor.dataset import Example
from deepdoctor.engine.evaluate import batches, held_out_loss, token_losses
from deepdoctor.engine.model import LoadedModel
from deepdoctor.estimates import EVALUATED_PLACES, EVALUATED_ROWS, EVALUATED_TOKENS
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


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_it_is_the_plain_loss_of_each_part_for_base_and_adapter(loaded: LoadedModel, tmp_path: Path, family: str) -> None:
    rows = encoded(loaded, EVALUATED_ROWS + 3)
    folder = tiny.save_model(tmp_path / "model", family)
    plain, tuned = tiny.plain(folder), tiny.with_adapter(folder, tiny.save_adapter(tmp_path / "adapter", folder))
    base, found = tuned.get_base_model(), []
    for model, losses in ((plain, held_out_loss(base, rows)), (tuned, held_out_loss(base, rows, "default"))):
        assert losses["held_out_reasoning_loss"] == pytest.approx(plain_loss(model, rows, ("reasoning",)), abs=2e-5)
        assert losses["held_out_response_loss"] == pytest.approx(plain_loss(model, rows, ("response",)), abs=2e-5)
        assert losses["held_out_loss"] == pytest.approx(plain_loss(model, rows, ("reasoning", "response")), abs=2e-5)
        found.append(losses)
    assert held_out_loss(plain, rows) == found[0] != found[1]


@pytest.mark.parametrize("count", [1, EVALUATED_ROWS, 2 * EVALUATED_ROWS + 3])
def test_rows_of_any_number_are_counted_once_each(loaded: LoadedModel, llama: Path, count: int) -> None:
    rows, model = encoded(loaded, count), tiny.plain(llama)
    assert held_out_loss(model, rows)["held_out_loss"] == pytest.approx(plain_loss(model, rows, ("reasoning", "response")), abs=2e-5)


def row_of(length: int) -> Encoded:
    return Encoded([5] * length, [True] * length, ["prompt"] * (length // 2) + ["response"] * (length - length // 2))


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([10] * 9, [8, 1]),
        ([600, 500, 512], [3]),
        ([1000] * 5, [4, 1]),
        ([1024] * 4, [4]),
        ([1025] * 4, [3, 1]),
        ([2000, 2000, 2000, 30], [2, 2]),
        ([5000, 9000, 8], [1, 1, 1]),
    ],
)
def test_batches_are_bounded_by_rows_and_by_tokens_with_padding(lengths: list[int], sizes: list[int]) -> None:
    made = list(batches([row_of(length) for length in lengths]))
    assert [len(batch) for batch in made] == sizes
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(len(row.ids) for row in batch) <= EVALUATED_TOKENS
    assert sorted(len(row.ids) for batch in made for row in batch) == sorted(lengths)


def test_the_head_never_sees_more_than_a_slice(llama: Path) -> None:
    model, seen = tiny.plain(llama), []
    model.lm_head.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape.numel() // model.config.hidden_size))
    rows = [row_of(length) for length in (300, 257, 256, 255, 130, 2)]
    held_out_loss(model, rows)
    assert max(seen) == EVALUATED_PLACES == 256
    assert sum(seen) == 6 * 299


def test_nothing_is_kept_for_a_gradient(llama: Path) -> None:
    model = tiny.plain(llama)
    assert model.lm_head.weight.requires_grad
    assert not token_losses(model, [row_of(9)]).requires_grad


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
    cut = Encoded(row.ids[:-1], row.supervised[:-1], row.parts[:-1])
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
