"""Whether the fused kernels may write, and who writes where they may not or cannot. Torch-free: tested without a GPU.

Cards before Ampere have no bfloat16 and no tf32 in their matrix units; an adapter of high rank needs tiles larger than a program can hold.
"""

import subprocess
from collections.abc import Callable, Collection, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepdoctor.engine.forward import Steps

LEAST_CAPABILITY = (8, 0)
HALF = ("float16", "bfloat16")
NARROWEST_RANK, WIDEST_RANK = 16, 128


def why_no_kernels(capability: tuple[int, int], dtype: str, ranks: Collection[int] = ()) -> str:
    """Why kernels cannot serve a card of that compute capability, numbers of that kind, and adapters of those ranks; "" if they can."""
    if capability < LEAST_CAPABILITY:
        return (
            f"the card has compute capability {capability[0]}.{capability[1]}; the kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
        )
    if dtype.removeprefix("torch.") not in HALF:
        return "it is not in 16-bit numbers"
    if ranks and max(ranks) > WIDEST_RANK:
        return f"an adapter of rank {max(ranks)} is wider than the kernels' {WIDEST_RANK}"
    return ""


def rank_held(ranks: Collection[int]) -> int:
    """The width in which kernels hold the adapters of those ranks: a power of two that the matrix units can take."""
    return max(NARROWEST_RANK, *(1 << (rank - 1).bit_length() for rank in ranks if rank), NARROWEST_RANK)


def cannot_compile(error: BaseException) -> bool:
    """Whether an error says that a kernel cannot be built or started as it is: Triton's own, or there is no working C compiler."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return "triton" in kinds or isinstance(error, subprocess.CalledProcessError) or "C compiler" in str(error)


class GuardedSteps:
    """Steps by kernels, and by plain operations for rows that kernels cannot serve, or for all once a kernel could not be built.

    refuses: for the adapters of all rows, why kernels cannot serve them; "" if they can. give_up: told why a kernel could not be built;
    from then on `refuses` is to refuse. Both ways work on one state, and count in it what they have read, so that they can take turns.
    """

    def __init__(self, fused: "Steps", plain: "Steps", refuses: Callable[[list[str | None]], str], give_up: Callable[[str], None]) -> None:
        self.fused, self.plain, self.refuses, self.give_up = fused, plain, refuses, give_up
        self.now = fused

    def prefill(self, slot: int, prompt: list[int], adapter: str | None) -> None:
        """Read a prompt into a slot by plain operations: it is long enough to keep the device busy."""
        self.plain.prefill(slot, prompt, adapter)

    def assign(self, adapters: list[str | None]) -> None:
        """Which adapter each row is written with; decides who writes."""
        self.plain.assign(adapters)
        self.now = self.plain if self.refuses(adapters) else self.fused
        if self.now is self.fused:
            self.fused.assign(adapters)

    def forward(self, lengths: list[int]) -> None:
        """Read one more token into each of the first rows. A step whose kernels cannot be built has not counted it: it is done again."""
        try:
            self.now.forward(lengths)
        except Exception as error:
            if self.now is self.plain or not cannot_compile(error):
                raise
            self.give_up(f"{type(error).__name__}: {error}")
            self.now = self.plain
            self.plain.forward(lengths)

    def bucket(self, rows: int) -> int:
        """How many slots take part when `rows` are in use."""
        return self.fused.bucket(rows)

    def run(self, key: Hashable, call: Callable[[], object]) -> None:
        """Do `call`; by a graph where there are graphs."""
        self.fused.run(key, call)
