"""A comparison: one question, what base, tuned and further checkpoints wrote, how they were made, and the proof that base was base."""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepdoctor.config import SamplingConfig
from deepdoctor.errors import ConfigError, RunError
from deepdoctor.files import write_json
from deepdoctor.prompts import split_completion
from deepdoctor.proof import Proof

SCHEMA = 1
LISTED = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")
HEADING = re.compile(r"\s*(?:#{1,6}\s|\*\*[^*\n]+\*\*:?\s*$)")
Finish = Literal["", "stop", "length", "stopped"]
FINISH_WORDS = {"": "writing", "stop": "finished", "length": "cut off by the length limit", "stopped": "stopped by you"}


@dataclass(frozen=True)
class Transcript:
    """What one side wrote so far. `finish_reason` is "" while writing, else stop, length or stopped. Lengths are in tokens."""

    text: str = ""
    tokens: int = 0
    reasoning_tokens: int = 0
    seconds: float = 0.0
    finish_reason: Finish = ""

    @property
    def reasoning(self) -> str:
        """The thought, as far as it goes."""
        return split_completion(self.text)[0]

    @property
    def response(self) -> str:
        """The answer; "" while the thought is open, however long it is."""
        return split_completion(self.text)[1]

    @property
    def closed(self) -> bool:
        """Whether the thought was ended."""
        return split_completion(self.text)[2]

    @property
    def tokens_per_second(self) -> float:
        """Speed of this side."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Fields of the JSON format: reasoning, response, closed, tokens, reasoning_tokens, seconds, finish_reason, text."""
        return {"reasoning": self.reasoning, "response": self.response, "closed": self.closed, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Transcript":
        """Read back what `to_dict` wrote. Raises KeyError or TypeError if fields are missing."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Further:
    """What another checkpoint of the tuned side's run wrote beside the pair, to the same prompt. step None: the final adapter.

    In its proof the tuned side is this one; the base side is that of the pair.
    """

    step: int | None
    written: Transcript
    proof: Proof | None = None

    def to_dict(self) -> dict[str, Any]:
        """The transcript's fields with step, proof and measures."""
        proof = self.proof.to_dict() if self.proof else None
        return {"step": self.step, **self.written.to_dict(), "proof": proof, "measures": measures(self.written)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Further":
        """Read back what `to_dict` wrote. Raises KeyError or TypeError if fields are missing."""
        return cls(values["step"], Transcript.from_dict(values), values["proof"] and Proof.from_dict(values["proof"]))


def step_name(step: int | None, article: str = "") -> str:
    """What a checkpoint is called, or, after an article, the final adapter (step None)."""
    return f"{article}final adapter" if step is None else f"checkpoint {step}"


@dataclass(frozen=True)
class Comparison:
    """A question with both transcripts, base first, and all that is needed to make them again.

    further: what other checkpoints of the run wrote in the same pass, in the order in which they were asked for.
    rows_at_once: the most texts that were written in one pass with these, themselves counted. In float32 a text does not depend on that; in
    16-bit numbers sums are rounded, so the same seed gives the same text again only beside as many others.
    """

    question: str
    base: Transcript
    tuned: Transcript
    sampling: SamplingConfig
    prompt_style: str
    model: str
    run: str
    step: int | None = None
    proof: Proof | None = None
    id: str = ""
    created: float = 0.0
    seen: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    rows_at_once: int = 2
    further: tuple[Further, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all texts have ended."""
        return all(each.finish_reason for each in (self.base, self.tuned, *(one.written for one in self.further)))

    def require_proven(self) -> None:
        """Raise ProofError if a proof that it carries does not stand."""
        if self.proof:
            self.proof.require()
        for each in self.further:
            if each.proof:
                each.proof.require(f"for {step_name(each.step, 'the ')}")

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready fields; `from_dict` takes them back."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("id", "created", "question", "model", "run", "step", "prompt_style")},
            "sampling": self.sampling.model_dump(),
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "proof": self.proof.to_dict() if self.proof else None,
            "changes": changes(self.base, self.tuned),
            "further": [each.to_dict() for each in self.further],
            **{name: getattr(self, name) for name in ("seen", "reference", "versions", "rows_at_once")},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Comparison":
        """Read back what `to_dict` wrote. Raises RunError if fields are missing."""
        try:
            base, tuned = (Transcript.from_dict(values[side]) for side in ("base", "tuned"))
            proof = values["proof"] and Proof.from_dict(values["proof"])
            plain = ("id", "created", "question", "model", "run", "step", "prompt_style", "seen", "reference", "versions")
            sampling = SamplingConfig.of(values["sampling"])
            kept = {k: values[k] for k in plain} | {"rows_at_once": values.get("rows_at_once", 2)}
            further = tuple(Further.from_dict(each) for each in values.get("further", ()))
            return cls(base=base, tuned=tuned, proof=proof, sampling=sampling, further=further, **kept)
        except (KeyError, TypeError, ConfigError) as error:
            raise RunError(f"This is not a saved comparison: {error}.") from None


def measures(transcript: Transcript) -> dict[str, int]:
    """Style of one side in numbers: reasoning_tokens, response_tokens, response_words, bullets, headings, paragraphs (every other line)."""
    lines = [line for line in transcript.response.splitlines() if line.strip()]
    listed, headings = [line for line in lines if LISTED.match(line)], [line for line in lines if HEADING.match(line)]
    return {
        "reasoning_tokens": transcript.reasoning_tokens,
        "response_tokens": max(0, transcript.tokens - transcript.reasoning_tokens) if transcript.closed else 0,
        "response_words": len(transcript.response.split()),
        "bullets": len(listed),
        "headings": len(headings),
        "paragraphs": sum(line not in listed and line not in headings for line in lines),
    }


def changes(base: Transcript, tuned: Transcript) -> dict[str, dict[str, int]]:
    """What changed, in numbers: {measure: {"base": n, "tuned": m}}."""
    before, after = measures(base), measures(tuned)
    return {name: {"base": before[name], "tuned": after[name]} for name in before}


def comparison_text(comparison: Comparison) -> str:
    """A comparison for reading."""
    proof = comparison.proof
    further = [(step_name(each.step).upper(), each.written) for each in comparison.further]
    sides = [_side(name, transcript) for name, transcript in (("BASE", comparison.base), ("TUNED", comparison.tuned), *further)]
    lines = [comparison.question, "", *sides]
    if proof:
        lines.append(
            f"proof: base differs from the plain base by {proof.base_difference:.2g}, tuned from PEFT by {proof.tuned_difference:.2g} "
            f"(at most {proof.tolerance:.2g}); the adapter changes logits by {proof.effect:.2g}"
        )
    lines += [
        f"proof of {step_name(each.step, 'the ')}: it differs from PEFT by {each.proof.tuned_difference:.2g}, and changes logits by "
        f"{each.proof.effect:.2g}"
        for each in comparison.further
        if each.proof
    ]
    lines += [f"reference: {comparison.reference}"] if comparison.reference else []
    return "\n".join([*lines, f"saved as {comparison.id}; the question is {comparison.seen.get('grade', 'not graded')} in training"])


def _side(name: str, side: Transcript) -> str:
    finish = FINISH_WORDS[side.finish_reason]
    told = f"{name}: {side.tokens} tokens, {side.reasoning_tokens} of them reasoning, {side.seconds:.1f} s, {finish}"
    answer = side.response if side.closed else f"(no answer: the thought was {finish})"
    return f"{told}\n--- reasoning\n{side.reasoning}\n--- answer\n{answer}\n"


class Comparisons:
    """Finished comparisons on disk: one JSON file each under `<data>/comparisons/`."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(data_dir) / "comparisons"

    def path(self, comparison_id: str) -> Path:
        """The comparison's file. Raises RunError unless the id is a plain name."""
        if not re.fullmatch(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}", comparison_id):
            raise RunError(f"There is no comparison {comparison_id[:40]!r}.")
        return self.root / f"{comparison_id}.json"

    def save(self, comparison: Comparison) -> Comparison:
        """Store it and return it with id and time. The id is unguessable: it is what a link carries."""
        values = {**comparison.to_dict(), "created": time.time()}
        values["id"] = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        write_json(self.path(values["id"]), values)
        return Comparison.from_dict(values)

    def get(self, comparison_id: str) -> Comparison:
        """Read one back. Raises RunError if there is none, or its file is damaged."""
        file = self.path(comparison_id)
        if not file.exists():
            raise RunError(f"There is no comparison {comparison_id!r} here; it may have been deleted.")
        try:
            return Comparison.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RunError(f"The comparison {comparison_id} cannot be read: {error}.") from None

    def list(self, most: int = 100) -> list[Comparison]:
        """The newest comparisons first; damaged files are left out."""
        found = []
        for file in sorted(self.root.glob("*.json"), key=_age, reverse=True)[:most] if self.root.exists() else []:
            try:
                found.append(self.get(file.stem))
            except RunError:
                continue
        return found


def _age(file: Path) -> tuple[str, int]:
    """When a comparison was saved: its name tells the second, the file's time the rest."""
    return file.name[:15], file.stat().st_mtime_ns
