"""One comparison: both sides decoded together, with the proof that base is base and tuned is tuned, and further checkpoints beside them."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepdoctor.comparison import Comparison, Further, step_name
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import adapter_hash, as_side, select_adapter
from deepdoctor.engine.decode import Row, decoder_for, transcript
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.model import LoadedModel
from deepdoctor.prompts import render_question, style_named
from deepdoctor.proof import BaseProof, Proof

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


class Pair:
    """A comparison being made: rows of one prompt, base first, then tuned. Makes no progress by itself; a `Decoder` writes its rows.

    also: adapters by the checkpoints of the same run that answer beside the pair. Raises ConfigError for a question that cannot be asked.
    """

    def __init__(self, loaded: LoadedModel, asked: Question, adapter: str, also: Mapping[int | None, str] | None = None) -> None:
        self.loaded, self.asked = loaded, asked
        self.prompt_text = render_question(asked.question, style_named(asked.prompt_style))
        prompt = loaded.tokenizer(self.prompt_text)["input_ids"]
        self.base, self.tuned = Row(prompt, None, asked.sampling), Row(prompt, adapter, asked.sampling)
        self.further = {step: Row(prompt, name, asked.sampling) for step, name in (also or {}).items()}
        self.proof: Proof | None = None
        self.further_proofs: dict[int | None, Proof] = {}
        self._shown = 0.0

    @property
    def rows(self) -> list[Row]:
        """Base and tuned, and what else is written with them."""
        return [self.base, self.tuned, *self.further.values()]

    @property
    def finished(self) -> bool:
        """Whether all of it has ended."""
        return all(row.finish for row in self.rows)

    def prove(self) -> None:
        """Take the proofs, once there is something to prove. Raises ProofError if one fails."""
        if self.proof is None and self.base.first_logits is not None:
            self.proof = prove(self.loaded, self.prompt_text, self.base, self.tuned)
            self.proof.require()
            for step, row in self.further.items():
                self.further_proofs[step] = prove(self.loaded, self.prompt_text, self.base, row, self.proof.base_hash)
                self.further_proofs[step].require(f"for {step_name(step, 'the ')}")

    def due(self) -> bool:
        """Whether it is time for a snapshot; says yes SNAPSHOTS_PER_SECOND times a second at most."""
        now = time.monotonic()
        if self.proof is None or self.finished or now - self._shown < 1 / SNAPSHOTS_PER_SECOND:
            return False
        self._shown = now
        return True

    def snapshot(self) -> Comparison:
        """What stands there now."""
        return Comparison(
            **vars(self.asked),
            base=transcript(self.loaded, self.base),
            tuned=transcript(self.loaded, self.tuned),
            model=self.loaded.config.name,
            proof=self.proof,
            versions=versions(),
            rows_at_once=max(row.shared for row in self.rows),
            further=tuple(Further(step, transcript(self.loaded, row), self.further_proofs.get(step)) for step, row in self.further.items()),
        )


def compare(loaded: LoadedModel, asked: Question, adapter_folder: Path, should_stop: Callable[[], bool]) -> Iterator[Comparison]:
    """Snapshots of base and tuned writing together, the last one finished and proven.

    `should_stop` is asked after every token; when it says yes, both sides end as "stopped" with what they have. Raises ProofError before
    the first snapshot if the proof fails, ConfigError for a question that cannot be asked, ModelError for an adapter that does not fit.
    """
    pair = Pair(loaded, asked, select_adapter(loaded, adapter_folder))
    decoder = decoder_for(loaded, 2, pair.base.longest)
    decoder.submit(pair.rows)
    while decoder.step():
        pair.prove()
        if should_stop():
            decoder.drop(pair.rows)
        elif pair.due():
            yield pair.snapshot()
    yield pair.snapshot()


def prove(loaded: LoadedModel, prompt_text: str, base: Row, tuned: Row, hash_now: str = "") -> Proof:
    """Check the decoder's first logits of both rows against transformers' own forward with the adapter disabled and enabled.

    The base row must also read weights whose hash is the one taken at load, before any adapter was near. hash_now: that of the base
    weights, if it was taken at the same time.
    """
    assert base.first_logits is not None
    assert tuned.first_logits is not None
    assert tuned.adapter is not None
    off, on = reference_logits(loaded, base.prompt, tuned.adapter)
    return Proof(
        base_difference=_distance(base.first_logits, off),
        tuned_difference=_distance(tuned.first_logits, on),
        effect=_distance(base.first_logits, tuned.first_logits),
        base_nearer=_spread(base.first_logits, on) - _spread(base.first_logits, off),
        tuned_nearer=_spread(tuned.first_logits, off) - _spread(tuned.first_logits, on),
        tolerance=TOLERANCES[loaded.dtype],
        base_hash=hash_now or base_hash(loaded.base),
        base_hash_at_load=loaded.info.base_hash,
        adapter_hash=adapter_hash(loaded, tuned.adapter),
        prompt_hash=_prompt_hash(prompt_text),
    )


def prove_base(loaded: LoadedModel, prompt_text: str, row: Row, proof: Proof, adapter: str) -> BaseProof:
    """Check the decoder's first logits of a row of the base alone against transformers' own forward with the adapter disabled.

    proof: of the pair that it is written with, taken at the same time: the weights' hash is taken from there.
    """
    assert row.first_logits is not None
    off, on = reference_logits(loaded, row.prompt, adapter)
    return BaseProof(
        base_difference=_distance(row.first_logits, off),
        base_nearer=_spread(row.first_logits, on) - _spread(row.first_logits, off),
        tolerance=proof.tolerance,
        base_hash=proof.base_hash,
        base_hash_at_load=proof.base_hash_at_load,
        prompt_hash=_prompt_hash(prompt_text),
    )


def _prompt_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reference_logits(loaded: LoadedModel, prompt: list[int], adapter: str) -> tuple[Tensor, Tensor]:
    """Logits [vocabulary] after a prompt, by transformers and PEFT: with all adapters disabled, and with `adapter` on."""
    assert loaded.peft is not None
    ids = torch.tensor([prompt], device=loaded.device)
    # not inference_mode: what Unsloth keeps from such a pass (its rotation tables) could not be trained with afterwards
    with torch.no_grad(), loaded.backend.reading(loaded.base, len(prompt)), as_side(loaded, adapter) as model:
        with model.disable_adapter():
            off = model(input_ids=ids).logits[0, -1].float()
        on = model(input_ids=ids).logits[0, -1].float()
    return off, on


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def _spread(left: Tensor, right: Tensor) -> float:
    return float((left - right).cpu().double().square().mean().sqrt())  # MPS has no 64-bit numbers


def versions() -> dict[str, Any]:
    """Versions of what wrote the texts."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}
