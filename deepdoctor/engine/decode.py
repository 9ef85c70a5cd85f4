"""Paired decoding: rows with the adapter off and on, written together token by token, each with its own sampling and its own end.

Rows are slots of a static cache. They are filled and freed at token boundaries, so a new pair joins while others are being written.
"""

import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepdoctor.comparison import Finish, Transcript
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.forward import State, Steps, TorchSteps
from deepdoctor.engine.guard import GuardedSteps, why_no_kernels
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.sampling import Sampler
from deepdoctor.errors import ConfigError
from deepdoctor.prompts import THINK_CLOSE

if TYPE_CHECKING:
    from deepdoctor.engine.one_by_one import OneByOne


@dataclass(eq=False)
class Row:
    """One text being written: a prompt (token ids), the adapter it is written with (None: the base) and what came of it so far.

    The end-of-sequence token counts as a token but is not part of `tokens`. `shared` is the most rows it was ever written beside, itself
    counted: in 16-bit numbers rounding, and with it the text, can depend on that.
    """

    prompt: list[int]
    adapter: str | None
    sampling: SamplingConfig
    tokens: list[int] = field(default_factory=list)
    finish: Finish = ""
    seconds: float = 0.0
    shared: int = 0
    first_logits: Tensor | None = None
    began: float = 0.0

    @property
    def longest(self) -> int:
        """Tokens of cache the row can come to need."""
        return len(self.prompt) + self.sampling.max_new_tokens


class Decoder:
    """The rows being written, and those that wait for a slot. Everything happens in `step`."""

    def __init__(self, loaded: LoadedModel, slots: int, context: int) -> None:
        self.loaded = loaded
        self.slots, self.context = slots, min(context, loaded.info.max_length)
        self.rows: list[Row] = []
        self.waiting: deque[list[Row]] = deque()
        self.state = State.empty(loaded.base, slots, self.context)
        self.sampler = Sampler(slots, loaded.base.config.vocab_size, self.context, loaded.device)
        self.steps: Steps = steps_for(loaded, self.state)
        self._ahead = loaded.device.type == "cuda"
        if self._ahead:
            self._host = torch.zeros(slots, dtype=torch.int64, pin_memory=True)
            self._arrived = torch.cuda.Event()

    def takes(self, rows: int, beside: int = 0) -> bool:
        """Whether so many rows can begin while so many others are written."""
        return rows + beside <= self.slots

    def submit(self, rows: list[Row]) -> None:
        """Queue rows that are to begin together. Raises ConfigError if they can never fit."""
        require_room(rows, self.context)
        self.waiting.append(rows)

    def drop(self, rows: Sequence[Row]) -> None:
        """Stop writing these rows, keeping what they have; others are not touched."""
        for row in rows:
            if row in self.rows:
                row.finish = row.finish or "stopped"
                self._free(self.rows.index(row))
        self.waiting = deque(group for group in self.waiting if not any(row in rows for row in group))

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every row; rows that wait begin where there is room. False if there was nothing to do."""
        while self.waiting and self.takes(len(self.waiting[0]), len(self.rows)):
            for row in self.waiting.popleft():
                self._begin(row)
        if not self.rows:
            return False
        self._draw()
        if self._ahead:  # the device reads the drawn tokens on while the host looks at them
            self.steps.forward(self._lengths())
        self._take(self._drawn())
        if not self._ahead and self.rows:
            self.steps.forward([length - 1 for length in self._lengths()])
        return True

    def _lengths(self) -> list[int]:
        return [len(row.prompt) + len(row.tokens) for row in self.rows]

    def _begin(self, row: Row) -> None:
        slot = len(self.rows)
        self.rows.append(row)
        row.began = time.perf_counter()
        self.steps.prefill(slot, row.prompt, row.adapter)
        row.first_logits = self.state.logits[slot].clone()
        self.state.positions[slot], self.state.counts[slot], self.state.live[slot] = len(row.prompt), 0, 1
        self.sampler.admit(slot, row.prompt, row.sampling)
        self._arranged()

    def _free(self, slot: int) -> None:
        """Take a row out; the last one takes its place, so that rows fill the first slots."""
        last = len(self.rows) - 1
        if slot != last:
            self.state.move(last, slot, self._lengths()[last])
            self.sampler.move(last, slot)
            self.rows[slot] = self.rows[last]
        self.rows.pop()
        for held in (self.state.positions, self.state.counts, self.state.live):
            held[last] = 0
        self._arranged()

    def _arranged(self) -> None:
        self.steps.assign([row.adapter for row in self.rows])
        for row in self.rows:
            row.shared = max(row.shared, len(self.rows))

    def _draw(self) -> None:
        """Draw a token for every row into `State.tokens`, and send it on its way to the host."""
        rows = self.steps.bucket(len(self.rows))
        greedy = all(row.sampling.temperature == 0 for row in self.rows)
        logits, counts, tokens = self.state.logits[:rows], self.state.counts[:rows], self.state.tokens[:rows]
        self.steps.run(("draw", rows, greedy), lambda: tokens.copy_(self.sampler.draw(logits, counts, greedy)))
        if self._ahead:
            self._host.copy_(self.state.tokens, non_blocking=True)
            self._arrived.record()

    def _drawn(self) -> list[int]:
        if self._ahead:
            self._arrived.synchronize()
            return self._host.tolist()
        return self.state.tokens.tolist()

    def _take(self, drawn: list[int]) -> None:
        """Write down what was drawn and free the slots of rows that are done."""
        now = time.perf_counter()
        for slot in reversed(range(len(self.rows))):
            row = self.rows[slot]
            row.seconds = now - row.began
            row.finish = finish_of(self.loaded, row, drawn[slot])
            if row.finish:
                self._free(slot)


def require_room(rows: Sequence[Row], context: int) -> None:
    """Raise ConfigError if a row's prompt leaves no room for an answer in so many tokens of context."""
    for row in rows:
        if len(row.prompt) >= context:
            over = len(row.prompt) + 1 - context
            raise ConfigError(f"The question is too long: {len(row.prompt)} tokens, {over} more than fit.", field="question")


def finish_of(loaded: LoadedModel, row: Row, drawn: int) -> Finish:
    """Write a drawn token down; how the row ends with it, "" if it goes on."""
    if drawn == loaded.eos_id:
        return "stop"
    row.tokens.append(drawn)
    full = len(row.prompt) + len(row.tokens) >= loaded.info.max_length
    return "length" if full or len(row.tokens) >= row.sampling.max_new_tokens else ""


def decoder_for(loaded: LoadedModel, slots: int, context: int) -> "Decoder | OneByOne":
    """What writes with that model: paired decoding, or for models that it does not know one text after the other."""
    if not loaded.info.decoding:
        return Decoder(loaded, slots, context)
    from deepdoctor.engine.one_by_one import OneByOne

    return OneByOne(loaded, slots, context)


def steps_for(loaded: LoadedModel, state: State) -> Steps:
    """The fastest steps that this model and device allow."""
    plain = TorchSteps(loaded.base, state)
    if loaded.device.type != "cuda":
        return plain
    capability = torch.cuda.get_device_capability()

    def refuses(adapters: Sequence[str | None]) -> str:
        configs: dict[str, Any] = loaded.peft.peft_config if loaded.peft else {}
        ranks = [configs[name].r for name in adapters if name]
        return loaded.no_kernels or why_no_kernels(capability, str(loaded.dtype), ranks)

    def give_up(reason: str) -> None:
        loaded.no_kernels = reason
        print(f"The fused kernels cannot be used here; plain PyTorch writes instead. {reason}", file=sys.stderr, flush=True)

    if refuses([]) or not find_spec("triton"):
        return plain
    from deepdoctor.engine.fused import FusedSteps, why_not

    return plain if why_not(loaded) else GuardedSteps(FusedSteps(loaded.base, state), plain, refuses, give_up)


def decode(loaded: LoadedModel, rows: list[Row]) -> Generator[None, None, None]:
    """Write all rows to their ends, one token a row (or of one row, see `decoder_for`) for each item yielded; close it to stop.

    Raises ConfigError, before anything is written, if a prompt leaves no room for an answer.
    """
    decoder = decoder_for(loaded, len(rows), max(row.longest for row in rows))
    groups = [rows] if len(rows) <= decoder.slots else [[row] for row in rows]
    require_room(rows, decoder.context)
    for group in groups:
        decoder.submit(group)
    while decoder.step():
        yield


def transcript(loaded: LoadedModel, row: Row) -> Transcript:
    """What a row has written so far, as text."""
    close = loaded.tokenizer.convert_tokens_to_ids(THINK_CLOSE)
    thought = row.tokens.index(close) if close in row.tokens else len(row.tokens)
    return Transcript(
        text=str(loaded.tokenizer.decode(row.tokens, skip_special_tokens=True)),
        tokens=len(row.tokens),
        reasoning_tokens=thought,
        seconds=round(row.seconds, 3),
        finish_reason=row.finish,
    )
