"""Who judges what: trials (one blinded pair shown to one rater), raters, and the assignment of pairs to a rater."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal, NamedTuple

Arm = Literal["base", "tuned", "native"]
LONGEST_NAME = 80
MOST_YEARS = 80
TOKEN = re.compile(r"[0-9a-f]{24}")


class Pair(NamedTuple):
    """The tuned answer to a question, and the one it stands against."""

    question: str
    seed: int
    other: Arm


@dataclass(frozen=True)
class Trial:
    """One blinded pair shown to one rater: what stands in slot A and in slot B. `repeat_of` is the trial it repeats, or ""."""

    id: str
    question: str
    seed: int
    arms: tuple[Arm, Arm]
    repeat_of: str = ""

    @property
    def tuned_slot(self) -> Literal["A", "B"]:
        """Where the tuned answer stands."""
        return "A" if self.arms[0] == "tuned" else "B"

    @property
    def other(self) -> Literal["base", "native"]:
        """What stands in the other slot."""
        arm = self.arms[1] if self.arms[0] == "tuned" else self.arms[0]
        return "native" if arm == "native" else "base"


@dataclass(frozen=True)
class Rater:
    """Somebody who judges: `token` is their secret part of the link, `joined` a time in seconds since 1970."""

    token: str
    name: str
    specialty: str
    years: int
    joined: float
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """The rater's file."""
        values = {**asdict(self), "rater": self.token}
        del values["token"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Rater":
        """Read back what `to_dict` wrote. Raises KeyError or TypeError for anything else."""
        trials = tuple(Trial(**{**trial, "arms": tuple(trial["arms"])}) for trial in values["trials"])
        return cls(values["rater"], values["name"], values["specialty"], values["years"], values["joined"], trials)


def one_of_each(answered: Sequence[tuple[str, int]], others: Sequence[Arm], key: str, place: int) -> list[Pair]:
    """One pair for each question and seed, never two: the text that came back beside another one would be the tuned one.

    Of two `others` each stands in half of the pairs, drawn from `key`; raters at `place` 2n and 2n + 1 get each other's halves, so that
    every question meets both. `key` must hold what the rater does not know.
    """
    halves = [number % 2 for number in range(len(answered))]
    Random(f"{key}:{place // 2}").shuffle(halves)
    return [Pair(*each, others[(half + place) % len(others)]) for each, half in zip(answered, halves, strict=True)]


def assign(pairs: Sequence[Pair], repeat_share: float, key: str) -> list[Trial]:
    """Every pair once in random order, tuned in A for half of them; `repeat_share` of them come again in the last third, slots swapped.

    What is repeated stood in the first half. Drawn from `key`, which must hold what the rater does not know: who could draw the same
    again would know the A/B map.
    """
    rng = Random(key)
    order = rng.sample(pairs, len(pairs))
    tuned_first = [place % 2 == 0 for place in range(len(order))]
    if len(order) % 2:
        tuned_first[-1] = rng.random() < 0.5
    rng.shuffle(tuned_first)
    trials = [
        Trial(secrets.token_hex(8), pair.question, pair.seed, ("tuned", pair.other) if first else (pair.other, "tuned"))
        for pair, first in zip(order, tuned_first, strict=True)
    ]
    repeated = rng.sample(trials[: len(trials) // 2], repeats(len(trials), repeat_share))
    total = len(trials) + len(repeated)
    places = sorted(rng.sample(range(total - total // 3, total), len(repeated)))
    for place, old in zip(places, repeated, strict=True):
        trials.insert(place, Trial(secrets.token_hex(8), old.question, old.seed, (old.arms[1], old.arms[0]), old.id))
    return trials


def repeats(pairs: int, repeat_share: float) -> int:
    """How many of so many pairs are shown a second time."""
    return min(round(repeat_share * pairs), pairs // 2)


def new_token() -> str:
    """A rater's secret: 96 random bits."""
    return secrets.token_hex(12)


def plain_name(text: str) -> str:
    """A name on one line, without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same person's, as far as spelling tells."""
    return plain_name(one).casefold() == plain_name(other).casefold()
