"""What the arms of a study wrote to one question, and that all of it is of one adapter and base."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.errors import StudyError
from deepdoctor.studies.trials import Arm


@dataclass(frozen=True)
class Answer:
    """What the arms wrote to one question with one seed. `native` is the base under its native prompt, where the study has that arm."""

    comparison: Comparison
    native: Transcript | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Answer":
        """From a row of answers.jsonl. Raises RunError, KeyError or TypeError if it is not one."""
        native = row["native"]
        fields = Transcript.__dataclass_fields__
        return cls(Comparison.from_dict(row["comparison"]), native and Transcript(**{name: native[name] for name in fields}))

    def side(self, arm: Arm) -> Transcript:
        """What one arm wrote. Raises StudyError if the native arm is missing."""
        if arm != "native":
            return self.comparison.base if arm == "base" else self.comparison.tuned
        if self.native is None:
            raise StudyError("This study has no answers of the base under its native prompt.")
        return self.native


def require_one_adapter(rows: Iterable[Mapping[str, Any]], *more: tuple[str, str]) -> None:
    """Raise StudyError unless rows of answers.jsonl, those without proof left out, were written with the same adapter and base.

    more: hashes of adapter and base that further answers would be written with.
    """
    proofs = (row["comparison"]["proof"] for row in rows)
    if len({*more, *((proof["adapter_hash"], proof["base_hash"]) for proof in proofs if proof)}) > 1:
        raise StudyError(
            "The answers of this study would not all be of the same adapter and base: since the first were written, its run was trained "
            "on, or the model was loaded in another precision. Make a new study of the run; what is written here stays."
        )
