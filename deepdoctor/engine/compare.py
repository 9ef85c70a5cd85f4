"""One comparison: both sides decoded together, with the proof that base is base and tuned is tuned."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepdoctor.comparison import Comparison, Proof
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.decode import Row, decode, transcript
from deepdoctor.engine.model import LoadedModel, adapter_hash, base_hash, select_adapter
from deepdoctor.prompts import render_question, style_named

SNAPSHOTS_PER_SECOND = 10
# Largest logit difference taken for rounding: float32 sums in another order; 16-bit numbers carry 8 to 11 bits and logits reach about 30.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 1.0}


@dataclass(frozen=True)
class Question:
    """What is asked, and how: the part of a comparison that is known before it is made."""

    question: str
    sampling: SamplingConfig
    prompt_style: str
    run: str
    step: int | None = None
    reference: str = ""


def compare(loaded: LoadedModel, asked: Question, adapter_folder: Path, should_stop: Callable[[], bool]) -> Iterator[Comparison]:
    """Snapshots of base and tuned writing together, the last one finished and proven.

    `should_stop` is asked before every token; when it says yes, both sides end as "stopped" with what they have. Raises ProofError before
    the first snapshot if the proof fails, ConfigError for a question that cannot be asked, ModelError for an adapter that does not fit.
    """
    prompt_text = render_question(asked.question, style_named(asked.prompt_style))
    prompt = loaded.tokenizer(prompt_text)["input_ids"]
    adapter = select_adapter(loaded, adapter_folder)
    base, tuned = Row(prompt, None, asked.sampling), Row(prompt, adapter, asked.sampling)
    steps = decode(loaded, [base, tuned])
    proof: Proof | None = None
    shown = 0.0

    def snapshot() -> Comparison:
        return Comparison(
            **vars(asked),
            base=transcript(loaded, base),
            tuned=transcript(loaded, tuned),
            model=loaded.config.name,
            proof=proof,
            versions=versions(),
        )

    for _ in steps:
        if proof is None:
            proof = prove(loaded, prompt_text, base, tuned)
            proof.require()
        if should_stop():
            steps.close()
            for row in (base, tuned):
                row.finish = row.finish or "stopped"
        elif time.monotonic() - shown > 1 / SNAPSHOTS_PER_SECOND and not (base.finish and tuned.finish):
            shown = time.monotonic()
            yield snapshot()
    yield snapshot()


def prove(loaded: LoadedModel, prompt_text: str, base: Row, tuned: Row) -> Proof:
    """Check the decoder's first logits of both rows against transformers' own forward with the adapter disabled and enabled.

    The base row must also read weights whose hash is the one taken at load, before any adapter was near.
    """
    assert base.first_logits is not None
    assert tuned.first_logits is not None
    assert tuned.adapter is not None
    off, on = reference_logits(loaded, base.prompt, tuned.adapter)
    return Proof(
        base_difference=_distance(base.first_logits, off),
        tuned_difference=_distance(tuned.first_logits, on),
        effect=_distance(base.first_logits, tuned.first_logits),
        tolerance=TOLERANCES[loaded.dtype],
        base_hash=base_hash(loaded.base),
        base_hash_at_load=loaded.info.base_hash,
        adapter_hash=adapter_hash(loaded, tuned.adapter),
        prompt_hash=hashlib.sha256(prompt_text.encode()).hexdigest(),
    )


def reference_logits(loaded: LoadedModel, prompt: list[int], adapter: str) -> tuple[Tensor, Tensor]:
    """Logits [vocabulary] after a prompt, by transformers and PEFT: with all adapters disabled, and with `adapter` on."""
    assert loaded.peft is not None
    ids = torch.tensor([prompt], device=loaded.device)
    was_training, active = loaded.peft.training, loaded.peft.active_adapter
    loaded.peft.eval()
    loaded.peft.set_adapter(adapter, inference_mode=True)
    try:
        with torch.inference_mode():
            with loaded.peft.disable_adapter():
                off = loaded.peft(input_ids=ids).logits[0, -1].float()
            on = loaded.peft(input_ids=ids).logits[0, -1].float()
    finally:
        loaded.peft.set_adapter(active)
        loaded.peft.train(was_training)
    return off, on


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def versions() -> dict[str, Any]:
    """Versions of what wrote the texts."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}
