"""Drawing: transformers' distribution under every filter, and numbers that depend on nothing but the row's own seed."""

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deepdoctor.config import SamplingConfig
from deepdoctor.engine.sampling import Sampler, running_sums

CPU = torch.device("cpu")
VOCABULARY = 14
PROMPT = [2, 3, 7, 11]
GREEDY = SamplingConfig(temperature=0)
FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cold": {"temperature": 0.7},
    "hot": {"temperature": 2.0},
    "top-k 1": {"top_k": 1},
    "top-k 5": {"top_k": 5},
    "top-k beyond the vocabulary": {"top_k": 5000},
    "top-p": {"top_p": 0.5},
    "top-p that keeps one": {"temperature": 0.3, "top_p": 0.05},
    "the distills' own": {"temperature": 0.6, "top_p": 0.95},
    "min-p": {"min_p": 0.15},
    "min-p 1": {"min_p": 1.0},
    "repetition penalty": {"repetition_penalty": 1.7},
    "repetition reward": {"repetition_penalty": 0.7},
    "top-k and top-p": {"top_k": 6, "top_p": 0.8},
    "top-p and min-p": {"temperature": 1.5, "top_p": 0.9, "min_p": 0.2},
    "all together": {"temperature": 1.3, "top_p": 0.95, "top_k": 9, "min_p": 0.05, "repetition_penalty": 1.4},
}


def settings(**changes: Any) -> SamplingConfig:
    """No filter at all, but for the changes; one new token."""
    return SamplingConfig.of({"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1, **changes})


def random_logits(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.2


def sampler_of(*rows: SamplingConfig, longest: int = 8, vocabulary: int = VOCABULARY) -> Sampler:
    """A sampler with one slot for each of those settings, all after PROMPT."""
    sampler = Sampler(len(rows), vocabulary, longest, CPU)
    for slot, sampling in enumerate(rows):
        sampler.admit(slot, PROMPT, sampling)
    return sampler


def draw(sampler: Sampler, logits: torch.Tensor, count: int = 0, greedy: bool = False) -> list[int]:
    """The next token of each row of `logits`; so many were drawn before."""
    return sampler.draw(logits, torch.full((len(logits),), count), greedy).tolist()


def processed(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Probabilities [vocabulary] by transformers' processors, in the order of its generate."""
    chain = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty), TemperatureLogitsWarper(sampling.temperature)]
    )
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain(torch.tensor([PROMPT]), logits.unsqueeze(0)).softmax(-1)[0]


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_are_drawn_as_transformers_would(name: str) -> None:
    """Support must be equal; frequencies lie within a chi-square bound that a right sampler misses once in ten thousand seeds."""
    draws, logits = 5000, random_logits(VOCABULARY)
    wanted = processed(logits, settings(**FILTERS[name]))
    sampler = sampler_of(*(settings(**FILTERS[name], seed=seed) for seed in range(draws)))
    counts = torch.bincount(torch.tensor(draw(sampler, logits.expand(draws, -1))), minlength=VOCABULARY)
    kept = wanted > 0
    assert wanted[kept].min() * draws > 5, "the comparison needs a few draws of every token"
    assert (counts > 0).tolist() == kept.tolist()
    chi_square = ((counts - wanted * draws)[kept] ** 2 / (wanted * draws)[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_the_numbers_of_one_row_are_drawn_evenly_too() -> None:
    draws, logits = 4000, random_logits(VOCABULARY)
    sampler = sampler_of(settings(max_new_tokens=draws, seed=3), longest=draws)
    counts = torch.bincount(torch.tensor([draw(sampler, logits.unsqueeze(0), count)[0] for count in range(draws)]), minlength=VOCABULARY)
    wanted = logits.softmax(-1) * draws
    freedom = VOCABULARY - 1
    assert ((counts - wanted) ** 2 / wanted).sum() <= freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_tokens_as_likely_as_the_last_one_of_top_k_are_kept() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0] + [-9.0] * (VOCABULARY - 5))
    sampler = sampler_of(*(settings(top_k=2, seed=seed) for seed in range(200)))
    assert set(draw(sampler, logits.expand(200, -1))) == {1, 2, 3}
    assert (processed(logits, settings(top_k=2)) > 0).nonzero().flatten().tolist() == [1, 2, 3]


def test_greedy_with_a_penalty_is_transformers_choice_token_for_token() -> None:
    vocabulary, rows, length = 300, 4, 60
    penalties = [1.0, 1.3, 3.0, 0.8]
    sampler = sampler_of(*(SamplingConfig(temperature=0, repetition_penalty=penalty) for penalty in penalties), vocabulary=vocabulary)
    drift = random_logits(rows, vocabulary, seed=1) * 2
    texts = [list(PROMPT) for _ in range(rows)]
    for count in range(length):
        logits = drift + random_logits(rows, vocabulary, seed=100 + count)
        for text, token, penalty, row in zip(texts, draw(sampler, logits, count, greedy=True), penalties, logits, strict=True):
            wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text]), row.unsqueeze(0))
            assert token == int(wanted.argmax())
            text.append(token)
    assert len(set(texts[0])) < len(set(texts[2])), "the penalty had something to do"


def test_temperature_zero_takes_the_likeliest_token_whatever_the_seed() -> None:
    logits = torch.tensor([0.0, 3.0, 2.999, -1.0]).expand(20, -1)
    for greedy in (True, False):
        sampler = sampler_of(*(GREEDY.changed(seed=seed) for seed in range(20)), vocabulary=VOCABULARY)
        padded = torch.nn.functional.pad(logits, (0, VOCABULARY - 4), value=-9.0)
        assert set(draw(sampler, padded, greedy=greedy)) == {1}


def test_rows_at_temperature_zero_stand_beside_drawn_ones() -> None:
    logits = random_logits(4, VOCABULARY)
    mixed = [settings(seed=1), GREEDY.changed(seed=2), settings(seed=3), GREEDY]
    found = draw(sampler_of(*mixed), logits)
    assert [found[1], found[3]] == logits[[1, 3]].argmax(-1).tolist()
    for row in (0, 2):
        assert draw(sampler_of(mixed[row]), logits[row : row + 1]) == [found[row]]


def test_free_slots_may_be_drawn_along() -> None:
    """Where a graph serves eight rows and six are in use, two slots that nobody ever filled are drawn too."""
    logits = random_logits(4, VOCABULARY)
    sampler = Sampler(4, VOCABULARY, 8, CPU)
    for slot in range(3):
        sampler.admit(slot, PROMPT, settings(seed=slot))
    found = draw(sampler, logits)
    assert found[:3] == draw(sampler_of(*(settings(seed=slot) for slot in range(3))), logits[:3])
    assert 0 <= found[3] < VOCABULARY


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first, again, other = (sampler_of(settings(seed=seed, max_new_tokens=8)).uniform for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    assert first.dtype == torch.float64
    assert 0 <= first.min() < first.max() < 1


def test_a_row_s_numbers_do_not_depend_on_how_long_it_may_become() -> None:
    short = sampler_of(settings(seed=1, max_new_tokens=5), longest=5).uniform
    long = sampler_of(settings(seed=1, max_new_tokens=900), longest=2000).uniform
    assert torch.equal(short[0], long[0, :5])


def test_a_slot_forgets_what_it_held() -> None:
    logits, repeats = random_logits(1, VOCABULARY), settings(repetition_penalty=2.0, max_new_tokens=8)
    sampler = Sampler(1, VOCABULARY, 8, CPU)
    sampler.admit(0, list(range(VOCABULARY)), settings(temperature=0.1, top_k=1, seed=9))
    draw(sampler, logits)
    sampler.admit(0, PROMPT, repeats)
    fresh = sampler_of(repeats)
    assert [draw(sampler, logits, count) for count in range(8)] == [draw(fresh, logits, count) for count in range(8)]


def test_a_row_that_moves_is_drawn_on_as_before() -> None:
    logits = random_logits(1, VOCABULARY)
    moved, other = settings(seed=4, repetition_penalty=2.0, max_new_tokens=8), settings(seed=5, top_k=2, max_new_tokens=8)
    stays, moves = sampler_of(moved), sampler_of(other, settings(), moved)
    both = [draw(moves, logits.expand(3, -1), count)[2] for count in range(3)]
    moves.move(2, 0)
    after = [draw(moves, logits, count)[0] for count in range(3, 8)]
    assert both + after == [draw(stays, logits, count)[0] for count in range(8)]


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000, 2048])
def test_running_sums_are_cumulative_sums(length: int) -> None:
    shares = torch.rand(3, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = running_sums(shares)
    assert found.shape == shares.shape
    assert torch.allclose(found, shares.cumsum(-1), rtol=1e-12, atol=0)
