"""Writing with models that paired decoding does not know: by transformers' own forward pass, one text after the other.

Base rows with all adapters switched off, tuned rows with theirs on; whatever was on before is on again after each token. Tokens are drawn
as in pairs, so the same settings have the same meaning, and a text depends on nothing but its own seed.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from deepdoctor.engine.adapters import as_side
from deepdoctor.engine.decode import Row, finish_of, require_room
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.sampling import Sampler
from deepdoctor.estimates import EVALUATED_PLACES
from deepdoctor.tokens import Encoded

# one pair, or a study's question with its native arm: who comes next waits and is told so; a larger group begins when it is alone
SLOTS = 3


@dataclass
class _Text:
    """A row being written: its own cache, the logits to draw from next, and what drawing must remember."""

    row: Row
    cache: Any
    logits: Tensor
    sampler: Sampler


class OneByOne:
    """Rows being written one after the other, in the order in which they came, and those that wait. Used like a `Decoder`."""

    def __init__(self, loaded: LoadedModel, slots: int, context: int) -> None:
        self.loaded = loaded
        self.slots, self.room, self.context = min(slots, SLOTS), slots, min(context, loaded.info.max_length)
        self.waiting: deque[list[Row]] = deque()
        self._texts: list[_Text] = []

    @property
    def rows(self) -> list[Row]:
        """The rows that have begun."""
        return [text.row for text in self._texts]

    def takes(self, rows: int, beside: int = 0) -> bool:
        """Whether so many rows can begin while so many others are written."""
        return rows + beside <= (self.slots if beside else self.room)

    def submit(self, rows: list[Row]) -> None:
        """Queue rows that are to begin together. Raises ConfigError if they can never fit."""
        require_room(rows, self.context)
        self.waiting.append(rows)

    def drop(self, rows: Sequence[Row]) -> None:
        """Stop writing these rows, keeping what they have; others are not touched."""
        for row in rows:
            if row in self.rows:
                row.finish = row.finish or "stopped"
        self._texts = [text for text in self._texts if not text.row.finish]
        self.waiting = deque(group for group in self.waiting if not any(row in rows for row in group))

    @torch.no_grad()
    def step(self) -> bool:
        """One token for the first row; rows that wait read their prompts where there is room. False if there was nothing to do."""
        while self.waiting and self.takes(len(self.waiting[0]), len(self._texts)):
            self._texts += [self._begin(row) for row in self.waiting.popleft()]
        if not self._texts:
            return False
        self._write(self._texts[0])
        self._texts = [text for text in self._texts if not text.row.finish]
        return True

    def _begin(self, row: Row) -> _Text:
        began, cache = time.perf_counter(), DynamicCache(config=self.loaded.base.config)
        row.first_logits = self._read(row.prompt, row.adapter, cache)
        sampler = Sampler(1, len(row.first_logits), self.context, self.loaded.device)
        sampler.admit(0, row.prompt, row.sampling)
        row.shared, row.seconds = 1, time.perf_counter() - began
        return _Text(row, cache, row.first_logits, sampler)

    def _write(self, text: _Text) -> None:
        """Draw a token and, if the row goes on, read it. `seconds` count what is spent on this row only."""
        began, row = time.perf_counter(), text.row
        counts = torch.tensor([len(row.tokens)], device=self.loaded.device)
        token = int(text.sampler.draw(text.logits.unsqueeze(0), counts, row.sampling.temperature == 0))
        row.finish = finish_of(self.loaded, row, token)
        if not row.finish:
            text.logits = self._read([token], row.adapter, text.cache)
        row.seconds += time.perf_counter() - began

    def _read(self, tokens: list[int], adapter: str | None, cache: Any) -> Tensor:
        """Logits [vocabulary] float32 after tokens that are read behind those in the cache."""
        with as_side(self.loaded, adapter) as model:
            ids = torch.tensor([tokens], device=self.loaded.device)
            return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()


@torch.no_grad()
def token_losses(loaded: LoadedModel, batch: Sequence[Encoded], adapter: str | None) -> Tensor:
    """As `evaluate.token_losses`, by the model's own forward pass: a few places of all rows at a time, behind those in a cache."""
    longest = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in batch], device=loaded.device)
    cache, found, places = DynamicCache(config=loaded.base.config), [], max(1, EVALUATED_PLACES // len(batch))
    with as_side(loaded, adapter) as model:
        for given, wanted in zip(ids[:, :-1].split(places, 1), ids[:, 1:].split(places, 1), strict=True):
            logits = model(input_ids=given, past_key_values=cache, use_cache=True).logits.float()
            found.append(F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none"))
    return torch.cat(found, 1).cpu()
