"""The pairs being written and those that wait for room: several people's comparisons go through the weights together."""

from collections import deque
from collections.abc import Callable

import psutil
import torch

from deepdoctor.config import SamplingConfig
from deepdoctor.engine import accelerator
from deepdoctor.engine.compare import Pair
from deepdoctor.engine.decode import Decoder, Row, decoder_for
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.one_by_one import OneByOne
from deepdoctor.errors import ConfigError

SLOTS_AT_MOST = 16
USUAL_CONTEXT = 2048
CONTEXT_STEP = 512
RESERVE = 1.5 * 2**30
SHARE_OF_FREE = 0.5


class Pairs:
    """Pairs in the order in which they were asked for. The cache is made with the first one, and made larger only while nobody writes.

    planned: how many slots there can be, `slots_for` if not given.
    """

    def __init__(self, loaded: LoadedModel, planned: Callable[[LoadedModel, int, int], int] | None = None) -> None:
        self.loaded, self.planned = loaded, planned or slots_for
        self.writing: list[Pair] = []
        self.waiting: deque[Pair] = deque()
        self.decoder: Decoder | OneByOne | None = None

    @property
    def adapters(self) -> set[str]:
        """Names of the adapters that must stay attached."""
        return {row.adapter for pair in (*self.writing, *self.waiting) for row in pair.rows if row.adapter}

    def warm(self) -> None:
        """Make the cache of the usual size and write two rows of a few tokens: what is compiled and captured at first use is then there."""
        context = min(USUAL_CONTEXT, self.loaded.info.max_length)
        slots = self.planned(self.loaded, context, 0)
        if self.decoder or slots < 2 or self.loaded.info.decoding:
            return
        self.decoder = decoder_for(self.loaded, slots, context)
        prompt = [self.loaded.eos_id] * 32
        settings = [SamplingConfig(temperature=temperature, max_new_tokens=3) for temperature in (0, 0.6)]
        for sampling in settings:
            self.decoder.submit([Row(prompt, None, sampling), Row(prompt, None, sampling)])
            while self.decoder.step():
                pass

    def submit(self, pair: Pair) -> None:
        """Queue a pair. Raises ConfigError, and queues nothing, if it can never fit."""
        prompt, room = max(len(row.prompt) for row in pair.rows), self.loaded.info.max_length
        if prompt >= room:
            raise ConfigError(f"The question is too long: {prompt} tokens, {prompt + 1 - room} more than fit.", field="question")
        if not self._fits(pair) and self.planned(self.loaded, self._context(pair), self._held()) < len(pair.rows):
            fewer = "Leave out further checkpoints, or lower" if pair.further else "Lower"
            raise ConfigError(f"There is not memory enough for texts that long. {fewer} the longest answer.", field="max_new_tokens")
        self.waiting.append(pair)

    def place(self, pair: Pair) -> int:
        """How many wait before this one; 0 for the next, -1 if it is being written."""
        return self.waiting.index(pair) if pair in self.waiting else -1

    def step(self) -> list[Pair]:
        """One token for every pair being written; returns those that ended with it."""
        self._admit()
        if self.decoder:
            self.decoder.step()
        done = [pair for pair in self.writing if pair.finished]
        self.writing = [pair for pair in self.writing if not pair.finished]
        return done

    def drop(self, pair: Pair) -> None:
        """Write this pair no further; what it has stays in it, and no other pair is touched."""
        if pair in self.waiting:
            self.waiting.remove(pair)
        elif self.decoder:
            self.decoder.drop(pair.rows)
        for row in pair.rows:
            row.finish = row.finish or "stopped"
        self.writing = [each for each in self.writing if each is not pair]

    def release(self) -> None:
        """Give the cache's memory back; only while nobody writes."""
        self.decoder = None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _admit(self) -> None:
        while self.waiting:
            if not self._fits(self.waiting[0]):
                if self.writing:
                    return
                context, held = self._context(self.waiting[0]), self._held()
                self.release()
                # never fewer than it was admitted with, though memory may have shrunk since
                slots = max(self.planned(self.loaded, context, held), len(self.waiting[0].rows))
                self.decoder = decoder_for(self.loaded, slots, context)
            assert self.decoder
            if not self.decoder.takes(len(self.waiting[0].rows), sum(len(each.rows) for each in self.writing)):
                return
            pair = self.waiting.popleft()
            self.decoder.submit(pair.rows)
            self.writing.append(pair)

    def _fits(self, pair: Pair) -> bool:
        if self.decoder is None or not self.decoder.takes(len(pair.rows)):
            return False
        return min(longest_of(pair), self.loaded.info.max_length) <= self.decoder.context

    def _context(self, pair: Pair) -> int:
        wanted = -(-longest_of(pair) // CONTEXT_STEP) * CONTEXT_STEP
        return min(self.loaded.info.max_length, max(USUAL_CONTEXT, wanted))

    def _held(self) -> int:
        return cache_bytes(self.loaded, self.decoder.slots, self.decoder.context) if self.decoder else 0


def longest_of(pair: Pair) -> int:
    """Tokens of cache that each of its rows can come to need."""
    return max(row.longest for row in pair.rows)


def cache_bytes(loaded: LoadedModel, slots: int, context: int) -> int:
    """Bytes of keys and values of that many slots."""
    config = loaded.base.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * loaded.info.layers * heads * width * loaded.dtype.itemsize * slots * context


def slots_for(loaded: LoadedModel, context: int, held: int = 0, free: int | None = None) -> int:
    """How many rows of that context fit beside the weights: even, at most SLOTS_AT_MOST. `held`: bytes that will be freed first.

    free: bytes that are free now, found out if not given. On a CPU half of them stay for others, and at least one pair is written: a
    machine can go beyond its memory, slowly.
    """
    on_gpu = loaded.device.type == "cuda"
    if free is None:
        free = accelerator.free_bytes(loaded.config.gpu_memory_gib) if on_gpu else psutil.virtual_memory().available
    usable = free + held - RESERVE if on_gpu else (free + held) * SHARE_OF_FREE
    fitting = int(usable // cache_bytes(loaded, 1, context))
    return max(0 if on_gpu else 2, min(SLOTS_AT_MOST, fitting // 2 * 2))
