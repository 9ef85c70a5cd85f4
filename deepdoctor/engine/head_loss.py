"""Cross-entropy behind a language model's head, some tokens at a time: in the place of Unsloth's, which every process compiles anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepdoctor.estimates import PIECE_OF_LOGITS
from deepdoctor.tokens import IGNORED

# what Unsloth may ask of its loss for other architectures than ours; such a loss is left to it
FOR_OTHERS = ("lm_head_bias", "mask", "logit_softcapping", "logit_scale_multiply", "logit_scale_divide")
# logits [some, vocabulary] and labels [some] → losses [some] in float32, 0 for IGNORED
LossesOf = Callable[[Tensor, Tensor], Tensor]


class HeadLoss(torch.autograd.Function):
    """The sum of the tokens' losses, and its gradient, without all logits there at once.

    The gradient of a part is made as soon as its logits are there, multiplied by `scale` so that float16 holds it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, scale: Tensor, losses_of: LossesOf) -> Tensor:
        """hidden: [tokens, width]; head: [vocabulary, width], frozen; labels: [tokens], the token that follows. Returns [] float32."""
        loss, gradient = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        at_once = max(1, PIECE_OF_LOGITS // len(head))
        for some, wanted, by_some in zip(hidden.split(at_once), labels.split(at_once), gradient.split(at_once), strict=True):
            loss += _part(some, head, wanted, scale, losses_of, by_some)
        ctx.save_for_backward(gradient, scale)
        return loss

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `hidden` alone: [tokens, width]."""
        gradient, scale = ctx.saved_tensors
        return gradient * (given[0] / scale), None, None, None, None


def _part(hidden: Tensor, head: Tensor, labels: Tensor, scale: Tensor, losses_of: LossesOf, gradient: Tensor) -> Tensor:
    """The loss of some tokens; their gradient is written into `gradient`."""
    logits = (hidden @ head.t()).requires_grad_()
    with torch.enable_grad():
        loss = losses_of(logits, labels).sum()
        (by_logits,) = torch.autograd.grad(loss * scale, logits)
    torch.mm(by_logits, head, out=gradient)
    return loss.detach()


def mean_loss(theirs: Callable[..., Tensor], losses_of: LossesOf, **asked: Any) -> Tensor:
    """The loss as Unsloth asks for it: the tokens' sum over `n_items`, of the whole step, or over how many are trained on.

    theirs: Unsloth's own, for what is asked for other architectures.
    """
    if any(isinstance(asked.get(name), Tensor) or asked.get(name) for name in FOR_OTHERS):
        return theirs(**asked)
    hidden, labels, scaler = asked["hidden_states"], asked["labels"], asked.get("scaling")
    if asked.get("shift_labels", True):
        labels = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)
    labels = labels.reshape(-1)
    trained = asked.get("n_items")
    count = torch.as_tensor((labels != IGNORED).sum() if trained is None else trained, device=hidden.device).clamp(min=1)
    scale = (scaler.get_scale() if scaler is not None else 1.0) / count
    return HeadLoss.apply(hidden.reshape(-1, hidden.shape[-1]), asked["lm_head_weight"], labels, scale, losses_of) / count


@contextmanager
def without_compiling() -> Iterator[None]:
    """Within this, models of Unsloth compute their loss so, by its own kernels for whole logits."""
    from unsloth.kernels.cross_entropy_loss import Fast_CrossEntropyLoss
    from unsloth.models import llama  # of which Qwen's take their forward pass

    theirs = llama.unsloth_fused_ce_loss
    llama.unsloth_fused_ce_loss = partial(mean_loss, theirs, lambda logits, labels: Fast_CrossEntropyLoss.apply(logits, labels, 0, 0))
    try:
        yield
    finally:
        llama.unsloth_fused_ce_loss = theirs
