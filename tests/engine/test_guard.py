"""Where the kernels may write, and that plain steps take over in the middle of a text, wherever they may not or cannot."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.decode import Decoder, Row
from deepdoctor.engine.forward import TorchSteps
from deepdoctor.engine.guard import WIDEST_RANK, GuardedSteps, cannot_compile, rank_held, why_no_kernels
from deepdoctor.engine.model import LoadedModel
from tests.engine import tiny

PROMPTS = [[0, 5, 9, 17, 300, 41, 8, 77], [12, 4], [0, 250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]


@pytest.mark.parametrize(
    ("capability", "dtype", "ranks", "says"),
    [
        ((9, 0), "torch.bfloat16", (16, 24), ""),
        ((8, 0), "torch.float16", (), ""),
        ((8, 9), "bfloat16", (WIDEST_RANK,), ""),
        ((12, 0), "torch.bfloat16", (1,), ""),
        ((7, 5), "torch.float16", (16,), "capability 7.5; the kernels need 8.0"),
        ((7, 0), "torch.bfloat16", (), "capability 7.0"),
        ((9, 0), "torch.float32", (16,), "16-bit"),
        ((9, 0), "torch.bfloat16", (16, WIDEST_RANK + 1), "rank 129"),
        ((8, 6), "torch.float16", (512,), "rank 512"),
    ],
)
def test_which_cards_numbers_and_adapters_kernels_can_serve(
    capability: tuple[int, int], dtype: str, ranks: tuple[int, ...], says: str
) -> None:
    found = why_no_kernels(capability, dtype, ranks)
    assert says in found
    assert bool(found) == bool(says)


@pytest.mark.parametrize(
    ("ranks", "held"),
    [((), 16), ((1,), 16), ((16, 0, 0), 16), ((17,), 32), ((4, 24), 32), ((64, 65), 128), ((128, 16), 128), ((0, 0), 16)],
)
def test_the_width_that_holds_all_ranks(ranks: tuple[int, ...], held: int) -> None:
    assert rank_held(ranks) == held


class CompilationError(Exception):
    """As Triton raises it."""


CompilationError.__module__ = "triton.compiler.errors"


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (CompilationError("at 3:4"), True),
        (type("OutOfResources", (CompilationError,), {})("shared memory"), True),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable"), True),
        (subprocess.CalledProcessError(1, "gcc"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (TypeError("adapter a is not contiguous float32"), False),
    ],
)
def test_which_errors_say_that_a_kernel_cannot_be_built(error: Exception, yes: bool) -> None:
    assert cannot_compile(error) == yes


class Kernels(TorchSteps):
    """Stands for the fused steps: writes as they would, but only for so many steps, and notes what it was told."""

    def __init__(self, model: Any, state: Any, error: Exception | None = None, after: int = 0) -> None:
        super().__init__(model, state)
        self.error, self.left, self.assigned, self.written = error, after, [], 0

    def assign(self, adapters: list[str | None]) -> None:
        self.assigned.append(adapters)
        super().assign(adapters)

    def forward(self, lengths: list[int]) -> None:
        self.left -= 1
        if self.error and self.left < 0:
            raise self.error
        self.written += 1
        super().forward(lengths)


def guarded(loaded: LoadedModel, decoder: Decoder, kernels: Kernels, widest: int = WIDEST_RANK) -> list[str]:
    """Have the decoder write by those kernels behind a guard; returns a list that fills with what the guard gives up for."""
    told: list[str] = []

    def refuses(adapters: list[str | None]) -> str:
        assert loaded.peft is not None
        too_wide = any(name and loaded.peft.peft_config[name].r > widest for name in adapters)
        return "too wide" if told or too_wide else ""

    decoder.steps = GuardedSteps(kernels, TorchSteps(loaded.base, decoder.state), refuses, told.append)
    return told


@pytest.fixture
def sides(loaded: LoadedModel, adapter: Path, llama: Path, tmp_path: Path) -> list[str | None]:
    """No adapter, one of rank 4, one of rank 12."""
    wide = tiny.save_adapter(tmp_path / "wide", llama, seed=5, rank=12)
    return [None, select_adapter(loaded, adapter), select_adapter(loaded, wide)]


def written(loaded: LoadedModel, sides: list[str | None]) -> list[list[int]]:
    """What rows with those adapters write by plain steps."""
    return tiny.write(loaded, *(Row(prompt, side, tiny.GREEDY) for prompt in PROMPTS for side in sides))


@pytest.mark.parametrize("after", [0, 5])
def test_a_kernel_that_cannot_be_built_hands_over_in_the_middle(loaded: LoadedModel, sides: list[str | None], after: int) -> None:
    decoder = Decoder(loaded, 12, 64)
    kernels = Kernels(loaded.base, decoder.state, CompilationError("at 3:4"), after)
    told = guarded(loaded, decoder, kernels)
    rows = [Row(prompt, side, tiny.GREEDY) for prompt in PROMPTS for side in sides]
    decoder.submit(rows)
    while decoder.step():
        pass
    assert [row.tokens for row in rows] == written(loaded, sides)
    assert told == ["CompilationError: at 3:4"]
    assert kernels.written == after


def test_other_errors_of_kernels_are_raised(loaded: LoadedModel, sides: list[str | None]) -> None:
    decoder = Decoder(loaded, 2, 64)
    told = guarded(loaded, decoder, Kernels(loaded.base, decoder.state, RuntimeError("CUDA error: misaligned address")))
    decoder.submit([Row(PROMPTS[0], sides[1], tiny.GREEDY)])
    with pytest.raises(RuntimeError, match="misaligned"):
        decoder.step()
    assert told == []


def test_rows_beside_an_adapter_too_wide_are_written_plainly_and_by_kernels_again_after_it(
    loaded: LoadedModel, sides: list[str | None]
) -> None:
    decoder = Decoder(loaded, 4, 64)
    kernels = Kernels(loaded.base, decoder.state)
    guarded(loaded, decoder, kernels, widest=8)
    long, short = tiny.GREEDY, tiny.GREEDY.changed(max_new_tokens=6)
    rows = [Row(PROMPTS[0], sides[0], long), Row(PROMPTS[0], sides[1], long)]
    decoder.submit(rows)
    for _ in range(4):
        decoder.step()
    assert kernels.written == 4
    wide = Row(PROMPTS[2], sides[2], short)
    decoder.submit([wide])
    while decoder.step():
        pass
    # the wide one's last token is taken before the others read on, so that they are by themselves again
    assert kernels.written == 24 - 1 - (6 - 1)
    assert all(sides[2] not in adapters for adapters in kernels.assigned)
    alone = tiny.write(loaded, *(Row(row.prompt, row.adapter, row.sampling) for row in [*rows, wide]))
    assert [row.tokens for row in [*rows, wide]] == alone


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@torch.inference_mode()
def test_every_logit_that_a_decoder_draws_from_is_the_plain_model_s(tmp_path: Path, family: str) -> None:
    """Read along 256 tokens, with neighbours that end earlier so that rows move from slot to slot."""
    folder = tiny.save_model(tmp_path / "model", family)
    saved = tiny.save_adapter(tmp_path / "adapter", folder)
    loaded = tiny.model_of(tiny.open_session(tmp_path / "data", folder))
    name = select_adapter(loaded, saved)
    long = tiny.GREEDY.changed(max_new_tokens=256, repetition_penalty=1.2)
    neighbours = [Row(PROMPTS[2], side, tiny.GREEDY) for side in (name, None)]
    rows = [*neighbours, Row(PROMPTS[0], None, long), Row(PROMPTS[0], name, long)]
    logits = tiny.recorded(Decoder(tiny.Endless(**vars(loaded)), 4, 300), *rows)
    for row, found, model in zip(rows[2:], logits[2:], (tiny.plain(folder), tiny.with_adapter(folder, saved)), strict=True):
        right = model(input_ids=torch.tensor([row.prompt + row.tokens])).logits[0, len(row.prompt) - 1 : -1]
        assert found.shape == right.shape == (256, loaded.info.vocabulary)
        assert (found - right).abs().max() <= 1e-4
