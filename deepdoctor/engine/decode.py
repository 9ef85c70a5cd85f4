"""Paired decoding: rows with the adapter off and on, generated together token by token, each with its own sampling and its own end."""

import time
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepdoctor.comparison import Finish, Transcript
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.forward import groups_of, new_cache, prefill, step
from deepdoctor.engine.model import LoadedModel
from deepdoctor.errors import ConfigError
from deepdoctor.prompts import THINK_CLOSE


@dataclass
class Row:
    """One text being written: a prompt (token ids), the adapter it is written with (None: the base) and what came of it so far.

    The end-of-sequence token counts as a token but is not part of `tokens`.
    """

    prompt: list[int]
    adapter: str | None
    sampling: SamplingConfig
    tokens: list[int] = field(default_factory=list)
    finish: Finish = ""
    seconds: float = 0.0
    first_logits: Tensor | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.sampling.seed)


def decode(loaded: LoadedModel, rows: list[Row]) -> Generator[None, None, None]:
    """Write all rows to their ends, one token a row for each item yielded; close the iterator to stop where it is.

    Raises ConfigError, before anything is written, if a prompt leaves no room for an answer.
    """
    room = loaded.info.max_length
    for row in rows:
        if len(row.prompt) >= room:
            raise ConfigError(
                f"The question is too long: {len(row.prompt)} tokens, {len(row.prompt) + 1 - room} more than fit.", field="question"
            )
    began = time.perf_counter()
    context = min(room, max(len(row.prompt) + row.sampling.max_new_tokens for row in rows))
    with torch.inference_mode():
        cache = new_cache(loaded.base, len(rows), context)
        logits = torch.stack([prefill(loaded.base, cache, place, row.prompt, row.adapter) for place, row in enumerate(rows)])
    for row, first in zip(rows, logits, strict=True):
        row.first_logits = first
    live, groups = list(rows), groups_of([row.adapter for row in rows])
    while live:
        for row, scores in zip(live, logits, strict=True):
            _extend(row, scores, loaded.eos_id, room, time.perf_counter() - began)
        yield
        staying = [place for place, row in enumerate(live) if not row.finish]
        if not staying:
            return
        with torch.inference_mode():
            if len(staying) < len(live):
                live = [live[place] for place in staying]
                groups = groups_of([row.adapter for row in live])
                cache.keep(staying)
            logits = step(loaded.base, cache, [row.tokens[-1] for row in live], groups)


def _extend(row: Row, logits: Tensor, eos: int, room: int, seconds: float) -> None:
    token = draw(logits, row.sampling, row.generator)
    row.seconds = seconds
    if token == eos:
        row.finish = "stop"
        return
    row.tokens.append(token)
    if len(row.tokens) >= row.sampling.max_new_tokens or len(row.prompt) + len(row.tokens) >= room:
        row.finish = "length"


def draw(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """One token from logits [vocabulary]: the likeliest at temperature 0, else drawn after temperature and nucleus (top-p) filtering.

    Nucleus: the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman et al. 2020).
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    ordered, places = (logits.float().cpu() / sampling.temperature).sort(descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    return int(places[torch.multinomial(probabilities, 1, generator=generator)])


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
