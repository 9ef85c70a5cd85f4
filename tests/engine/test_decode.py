"""Decoding: greedy tokens are generate's, sampling is transformers' distribution, and rows neither see nor wait for each other."""

from pathlib import Path

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from deepdoctor.config import SamplingConfig
from deepdoctor.engine.decode import Row, decode, draw, transcript
from deepdoctor.engine.model import LoadedModel, select_adapter
from deepdoctor.errors import ConfigError
from tests.engine import tiny

PROMPTS = [[0, 5, 9, 17, 300, 41, 8, 77], [12], [0, 250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]
TOKENS = 24


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_greedy_tokens_are_those_of_generate(tmp_path: Path, family: str) -> None:
    model = tiny.save_model(tmp_path / "model", family)
    folder = tiny.save_adapter(tmp_path / "adapter", model)
    loaded = tiny.model_of(tiny.open_session(tmp_path / "data", model))
    name = select_adapter(loaded, folder)
    greedy = SamplingConfig(temperature=0, max_new_tokens=TOKENS)
    written = tiny.write(loaded, *(Row(prompt, adapter, greedy) for prompt in PROMPTS for adapter in (None, name)))
    base, tuned = tiny.plain(model), tiny.with_adapter(model, folder)
    wanted = [tiny.generate(side, prompt, TOKENS) for prompt in PROMPTS for side in (base, tuned)]
    assert written == wanted
    assert wanted[0] != wanted[1]
    with tuned.disable_adapter():
        assert [tiny.generate(tuned, prompt, TOKENS) for prompt in PROMPTS] == written[::2]


def test_several_adapters_in_one_batch(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    folders = [tiny.save_adapter(tmp_path / str(seed), llama, seed, rank=2 + seed) for seed in range(3)]
    names = [select_adapter(loaded, folder) for folder in folders]
    greedy = SamplingConfig(temperature=0, max_new_tokens=TOKENS)
    order = [names[0], None, names[1], names[0], names[2]]
    written = tiny.write(loaded, *(Row(PROMPTS[0], name, greedy) for name in order))
    alone = {name: tiny.generate(tiny.with_adapter(llama, folder), PROMPTS[0], TOKENS) for name, folder in zip(names, folders, strict=True)}
    assert written == [alone[name] if name else tiny.generate(tiny.plain(llama), PROMPTS[0], TOKENS) for name in order]
    assert len({tuple(tokens) for tokens in written}) == 4


def test_rows_end_each_at_its_own_time(loaded: LoadedModel, llama: Path, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    limits = [3, 25, 1, 11]
    texts = [
        Row(PROMPTS[0], side, SamplingConfig(temperature=0, max_new_tokens=most))
        for side, most in zip([None, name] * 2, limits, strict=True)
    ]
    seen = [[len(row.tokens) for row in texts] for _ in decode(loaded, texts)]
    assert seen[0] == [1, 1, 1, 1]
    assert seen[-1] == limits
    assert len(seen) == max(limits)
    assert {row.finish for row in texts} == {"length"}
    sides = {None: tiny.plain(llama), name: tiny.with_adapter(llama, adapter)}
    assert [row.tokens for row in texts] == [
        tiny.generate(sides[row.adapter], row.prompt, most) for row, most in zip(texts, limits, strict=True)
    ]


def test_the_end_of_sequence_token_ends_a_row_and_is_not_kept(loaded: LoadedModel) -> None:
    with torch.no_grad():
        loaded.base.lm_head.weight[loaded.eos_id] = 0
    [before] = tiny.write(loaded, Row(PROMPTS[0], None, tiny.GREEDY))
    ending = before[6]
    loaded.tokenizer.eos_token = loaded.tokenizer.convert_ids_to_tokens(ending)
    row = Row(PROMPTS[0], None, tiny.GREEDY)
    tiny.write(loaded, row)
    assert row.finish == "stop"
    assert row.tokens == before[: before.index(ending)]


def test_a_full_context_is_refused_with_the_number_of_tokens_too_many(loaded: LoadedModel) -> None:
    for length, over in ((tiny.CONTEXT, 1), (tiny.CONTEXT + 9, 10)):
        with pytest.raises(ConfigError, match=rf"{length} tokens, {over} more than fit") as caught:
            next(decode(loaded, [Row([5], None, tiny.GREEDY), Row([5] * length, None, tiny.GREEDY)]))
        assert caught.value.field == "question"


def test_writing_stops_where_the_context_ends(loaded: LoadedModel, llama: Path) -> None:
    room = 5
    row = Row([0] + [7, 9, 30] * 400, None, SamplingConfig(temperature=0, max_new_tokens=100))
    row.prompt = row.prompt[: tiny.CONTEXT - room]
    other = Row(PROMPTS[0], None, SamplingConfig(temperature=0, max_new_tokens=100))
    tiny.write(loaded, row, other)
    assert (len(row.tokens), row.finish) == (room, "length")
    assert row.tokens == tiny.generate(tiny.plain(llama), row.prompt, room)
    assert other.tokens == tiny.generate(tiny.plain(llama), other.prompt, 100)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.5), (0.6, 0.95), (2.0, 0.8), (0.3, 0.05)])
def test_tokens_are_drawn_as_transformers_would(temperature: float, top_p: float) -> None:
    """Support must be equal; frequencies lie within a chi-square bound that a right sampler misses once in ten thousand seeds."""
    draws, vocabulary = 6000, 14
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(5)) * 1.2
    warped = TemperatureLogitsWarper(temperature)(None, logits.unsqueeze(0))
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    wanted = warped.softmax(-1)[0]
    sampling = SamplingConfig(temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(11)
    counts = torch.bincount(torch.tensor([draw(logits, sampling, generator) for _ in range(draws)]), minlength=vocabulary)
    kept = wanted > 0
    assert wanted[kept].min() * draws > 5, "the comparison needs a few draws of every token"
    assert (counts > 0).tolist() == kept.tolist()
    chi_square = ((counts - wanted * draws)[kept] ** 2 / (wanted * draws)[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_temperature_zero_takes_the_likeliest_token_whatever_the_seed() -> None:
    logits = torch.tensor([0.0, 3.0, 2.999, -1.0])
    found = {draw(logits, SamplingConfig(temperature=0, seed=seed), torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert found == {1}


def test_the_same_seed_writes_the_same_text_and_another_seed_another(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)

    def text(seed: int) -> list[list[int]]:
        sampling = SamplingConfig(temperature=0.9, seed=seed, max_new_tokens=TOKENS)
        return tiny.write(loaded, Row(PROMPTS[0], None, sampling), Row(PROMPTS[0], name, sampling))

    assert text(1) == text(1)
    assert text(1)[0] != text(2)[0]
    assert text(1)[1] != text(2)[1]


def test_a_text_does_not_depend_on_its_neighbours(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    sampling = SamplingConfig(temperature=0.8, seed=3, max_new_tokens=TOKENS)
    other = SamplingConfig(temperature=1.5, seed=4, max_new_tokens=7)

    def row() -> Row:
        return Row(PROMPTS[0], name, sampling)

    [alone] = tiny.write(loaded, row())
    assert tiny.write(loaded, row(), Row(PROMPTS[2], None, other))[0] == alone
    assert tiny.write(loaded, Row(PROMPTS[1], None, other), row(), Row(PROMPTS[2], name, other))[1] == alone


def test_leaving_early_keeps_what_was_written(loaded: LoadedModel) -> None:
    row = Row(PROMPTS[0], None, tiny.GREEDY)
    steps = decode(loaded, [row])
    for _ in range(3):
        next(steps)
    steps.close()
    assert (len(row.tokens), row.finish) == (3, "")


def test_a_transcript_counts_the_thought_and_hides_control_tokens(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    row = Row([0], None, tiny.GREEDY, finish="stop", seconds=2.0)
    row.tokens = tokenizer("fever\n</think>\nIt is an infection.")["input_ids"]
    said = transcript(loaded, row)
    assert (said.reasoning, said.response, said.closed) == ("fever", "It is an infection.", True)
    assert "begin" not in said.text
    assert said.tokens == len(row.tokens)
    assert said.reasoning_tokens == row.tokens.index(tokenizer.convert_tokens_to_ids("</think>"))
    row.tokens = row.tokens[: said.reasoning_tokens]
    cut = transcript(loaded, row)
    assert (cut.response, cut.closed, cut.reasoning_tokens) == ("", False, len(row.tokens))
