"""The loss in parts: as of all logits at once, with its gradient, whatever is untrained, scaled or counted elsewhere."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepdoctor.engine import head_loss
from deepdoctor.engine.head_loss import mean_loss
from deepdoctor.tokens import IGNORED

VOCABULARY, WIDTH, ROWS, TOKENS = 37, 16, 2, 11


class Scaler:
    """What accelerate has for float16."""

    def get_scale(self) -> float:
        return 1024.0


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """One loss a token, by PyTorch."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def not_asked(**_asked: Any) -> Tensor:
    """In the place of Unsloth's loss, where it is not to be used."""
    raise AssertionError


def case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [rows, tokens, width], head [vocabulary, width], labels [rows, tokens] of which some are not trained on."""
    drawn = torch.Generator().manual_seed(5)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=drawn).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=drawn).to(dtype)
    labels = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=drawn)
    labels[0, 3:6] = IGNORED
    return hidden, head, labels


def whole(hidden: Tensor, head: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """The mean loss by all logits at once."""
    logits, wanted = (hidden @ head.t())[:, :-1].reshape(-1, VOCABULARY).float(), labels[:, 1:].reshape(-1)
    return F.cross_entropy(logits, wanted, reduction="sum") / (count or (wanted != IGNORED).sum())


@pytest.fixture(autouse=True, params=[4 * VOCABULARY, 10_000])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens at once, of which 22 are no multiple, or all."""
    monkeypatch.setattr(head_loss, "PIECE_OF_LOGITS", request.param)


@pytest.mark.parametrize("count", [None, 50, torch.tensor(50)])
@pytest.mark.parametrize("scaler", [None, Scaler()])
def test_the_loss_and_its_gradient_are_those_of_all_logits_at_once(count: Any, scaler: Any) -> None:
    """scaler: its scale comes back through `backward`, as accelerate multiplies the loss by it."""
    hidden, head, labels = case()
    scale = scaler.get_scale() if scaler else 1.0
    loss = mean_loss(not_asked, losses_of, hidden_states=hidden, lm_head_weight=head, labels=labels, n_items=count, scaling=scaler)
    (gradient,) = torch.autograd.grad(loss * scale, hidden)
    right = whole(hidden, head, labels, count and int(count))
    (wanted,) = torch.autograd.grad(right * scale, hidden)
    assert loss.item() == pytest.approx(right.item(), rel=1e-6)
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-7 * scale)
    assert wanted.abs().max() > 1e-3


def test_float16_holds_gradients_that_are_scaled_before_they_are_rounded() -> None:
    hidden, head, labels = case(torch.float16)
    head = head * 1e-3
    small = {"hidden_states": hidden, "lm_head_weight": head, "labels": labels, "n_items": 100_000}
    (lost,) = torch.autograd.grad(mean_loss(not_asked, losses_of, **small), hidden)
    (kept,) = torch.autograd.grad(mean_loss(not_asked, losses_of, **small, scaling=Scaler()) * 1024.0, hidden)
    exact = hidden.detach().float().requires_grad_()
    (right,) = torch.autograd.grad(whole(exact, head.float(), labels, 100_000), exact)
    assert (lost.float() - right).norm() > 0.5 * right.norm()
    assert (kept.float() / 1024 - right).norm() < 0.05 * right.norm()


def test_labels_that_are_shifted_already_are_taken_as_they_are() -> None:
    hidden, head, labels = case()
    shifted = torch.cat([labels[:, 1:], torch.full((ROWS, 1), IGNORED)], 1)
    told = {"hidden_states": hidden, "lm_head_weight": head}
    once = mean_loss(not_asked, losses_of, **told, labels=labels)
    assert mean_loss(not_asked, losses_of, **told, labels=shifted, shift_labels=False).item() == once.item()
    assert mean_loss(not_asked, losses_of, **told, labels=shifted).item() != pytest.approx(once.item(), rel=1e-3)


def test_a_step_without_a_trained_token_has_no_loss() -> None:
    hidden, head, labels = case()
    loss = mean_loss(not_asked, losses_of, hidden_states=hidden, lm_head_weight=head, labels=torch.full_like(labels, IGNORED))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("other", [{"logit_softcapping": 30.0}, {"lm_head_bias": torch.ones(VOCABULARY)}, {"logit_scale_divide": 2}])
def test_what_other_architectures_need_is_left_to_unsloth(other: dict[str, Any]) -> None:
    hidden, head, labels = case()
    asked = {"hidden_states": hidden, "lm_head_weight": head, "labels": labels, "logit_scale_multiply": 0, **other}
    given = []

    def theirs(**got: Any) -> Tensor:
        given.append(got)
        return torch.ones(())

    assert mean_loss(theirs, losses_of, **asked) == 1
    assert list(given[0]) == list(asked)
