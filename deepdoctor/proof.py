"""What shows that base was base and tuned was tuned, measured on the very prompt that was asked."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from deepdoctor.errors import ProofError


@dataclass(frozen=True)
class Provable(ABC):
    """What all proofs have in common: they name what does not hold, and refuse the pair then."""

    @abstractmethod
    def problems(self) -> list[str]:
        """What does not hold, in words; empty if the proof stands."""

    def require(self, where: str = "") -> None:
        """Raise ProofError unless the proof stands. where: of which text, as in "for checkpoint 20"; "" for the pair itself."""
        if problems := self.problems():
            of = f"{where}, " if where else ""
            raise ProofError(f"This pair is not shown, because {of}{'; and '.join(problems)}. Reload the model and try again.")

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what does not hold."""
        return {**asdict(self), "problems": self.problems()}


@dataclass(frozen=True)
class Proof(Provable):
    """What shows that base was base and tuned was tuned, measured on the very prompt that was asked.

    base_difference: largest absolute difference between the logits of the base row and of the plain base weights run by transformers with
        the adapter disabled; tuned_difference: the same for the tuned row against PEFT's forward with the adapter on; effect: largest
        absolute difference between the base row's and the tuned row's logits. tolerance bounds the first two.
    base_nearer: how much nearer the base row's logits are to the plain base's than to PEFT's with the adapter on (difference of the two
        root mean square distances); tuned_nearer: how much nearer the tuned row's are to PEFT's. Both must be positive: that tells the
        sides apart where rounding is larger than what the adapter changes in any single logit.
    base_hash: hash of the base weights now; base_hash_at_load: the same before any adapter was attached.
    """

    base_difference: float
    tuned_difference: float
    effect: float
    base_nearer: float
    tuned_nearer: float
    tolerance: float
    base_hash: str
    base_hash_at_load: str
    adapter_hash: str
    prompt_hash: str

    def problems(self) -> list[str]:
        """What does not hold, in words; empty if the proof stands."""
        found = _base_problems(self)
        if not self.tuned_difference <= self.tolerance:
            found.append(f"the tuned side differs from PEFT's forward by {self.tuned_difference:.2g} (allowed {self.tolerance:.2g})")
        if not self.effect > 0:
            found.append("the adapter changes nothing: both sides would be the base")
        elif not (self.base_nearer > 0 and self.tuned_nearer > 0):
            found.append("the two sides cannot be told apart by their logits")
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Proof":
        """Read back what was saved; the first proofs, which asked that the effect exceed the tolerance, did not measure nearness."""
        nearer = values["effect"] - values["tolerance"]
        return cls(**{name: values.get(name, nearer) if name.endswith("_nearer") else values[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class BaseProof(Provable):
    """What shows that a text of the base alone, such as one under its native prompt, is the base's. The fields are those of `Proof`."""

    base_difference: float
    base_nearer: float
    tolerance: float
    base_hash: str
    base_hash_at_load: str
    prompt_hash: str

    def problems(self) -> list[str]:
        """What does not hold, in words; empty if the proof stands."""
        found = _base_problems(self)
        if not found and not self.base_nearer > 0:
            found.append("the base side cannot be told from the tuned one by its logits")
        return found


def _base_problems(proof: Proof | BaseProof) -> list[str]:
    found = []
    if proof.base_hash != proof.base_hash_at_load:
        found.append("the base weights have changed since they were loaded")
    if not proof.base_difference <= proof.tolerance:
        found.append(f"the base side differs from the plain base by {proof.base_difference:.2g} (allowed {proof.tolerance:.2g})")
    return found
