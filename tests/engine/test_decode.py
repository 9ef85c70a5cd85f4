"""Decoding: greedy tokens are generate's, and rows neither see nor wait for each other, whenever they come, go or move."""

import sys
from pathlib import Path

import pytest
import torch

from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.decode import Decoder, Row, decode, transcript
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.session import Session
from deepdoctor.errors import ConfigError
from tests.engine import tiny

PROMPTS = [[0, 5, 9, 17, 300, 41, 8, 77], [12], [0, 250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]
TOKENS = 24


def sampled(seed: int = 3, **changes: float) -> SamplingConfig:
    return SamplingConfig.of({"temperature": 0.8, "seed": seed, "max_new_tokens": TOKENS, **changes})


def alone(loaded: LoadedModel, row: Row) -> list[int]:
    """What such a row writes with nobody beside it."""
    [written] = tiny.write(loaded, Row(row.prompt, row.adapter, row.sampling))
    return written


def finish(decoder: Decoder) -> None:
    """Write everything to its end."""
    while decoder.step():
        pass


@pytest.fixture
def sides(loaded: LoadedModel, adapter: Path) -> tuple[None, str]:
    """No adapter, and the name of one that is attached."""
    return None, select_adapter(loaded, adapter)


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


@pytest.mark.parametrize("penalty", [1.4, 0.8])
def test_greedy_tokens_with_a_repetition_penalty_are_those_of_generate(
    loaded: LoadedModel, llama: Path, adapter: Path, sides: tuple[None, str], penalty: float
) -> None:
    greedy = SamplingConfig(temperature=0, max_new_tokens=60, repetition_penalty=penalty)
    written = tiny.write(loaded, *(Row(prompt, side, greedy) for prompt in PROMPTS for side in sides))
    models = tiny.plain(llama), tiny.with_adapter(llama, adapter)
    assert written == [tiny.generate(model, prompt, 60, repetition_penalty=penalty) for prompt in PROMPTS for model in models]
    assert written[0] != tiny.generate(models[0], PROMPTS[0], 60)


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


def test_the_same_seed_writes_the_same_text_and_another_seed_another(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)

    def text(seed: int) -> list[list[int]]:
        sampling = SamplingConfig(temperature=0.9, seed=seed, max_new_tokens=TOKENS)
        return tiny.write(loaded, Row(PROMPTS[0], None, sampling), Row(PROMPTS[0], name, sampling))

    assert text(1) == text(1)
    assert text(1)[0] != text(2)[0]
    assert text(1)[1] != text(2)[1]


def test_rows_join_while_others_are_written_and_every_text_is_the_text_alone(loaded: LoadedModel, sides: tuple[None, str]) -> None:
    """A new pair at every third step, of all kinds of sampling and lengths, ten of them through six slots."""
    lengths = [24, 3, 40, 11, 1, 17, 30, 8, 2, 25]
    kinds: list[dict[str, float]] = [{}, {"temperature": 0}, {"temperature": 1.5, "top_k": 9}, {"repetition_penalty": 1.3}, {"min_p": 0.1}]
    samplings = [sampled(number, max_new_tokens=length, **kinds[number % 5]) for number, length in enumerate(lengths)]
    pairs = [[Row(PROMPTS[number % 3], side, sampling) for side in sides] for number, sampling in enumerate(samplings)]
    decoder, waiting = Decoder(loaded, 6, 64), list(pairs)
    for step in range(300):
        if waiting and step % 3 == 0:
            decoder.submit(waiting.pop(0))
        decoder.step()
    assert [[row.tokens for row in pair] for pair in pairs] == [[alone(loaded, row) for row in pair] for pair in pairs]
    assert {row.finish for pair in pairs for row in pair} <= {"length", "stop"}
    assert pairs[0][0].shared == 6
    assert decoder.rows == []


def test_how_many_rows_stood_beside_one_another_is_kept(loaded: LoadedModel) -> None:
    decoder = Decoder(loaded, 4, 64)
    early, late = Row(PROMPTS[0], None, sampled(1)), Row(PROMPTS[0], None, sampled(2, max_new_tokens=40))
    decoder.submit([early])
    decoder.step()
    assert early.shared == 1
    decoder.submit([late])
    finish(decoder)
    assert (early.shared, late.shared) == (2, 2)


def test_dropping_a_pair_in_the_middle_frees_its_slots_and_leaves_the_others(loaded: LoadedModel, sides: tuple[None, str]) -> None:
    pairs = [[Row(PROMPTS[number], side, sampled(number)) for side in sides] for number in range(3)]
    decoder = Decoder(loaded, 6, 64)
    for pair in pairs:
        decoder.submit(pair)
    for _ in range(7):
        decoder.step()
    decoder.drop(pairs[0])
    assert len(decoder.rows) == 4
    new = [Row(PROMPTS[2], side, sampled(9)) for side in sides]
    decoder.submit(new)
    decoder.step()
    assert len(decoder.rows) == 6, "the new pair has taken the slots that became free"
    finish(decoder)
    for row in pairs[0]:
        assert (row.tokens, row.finish) == (alone(loaded, row)[:7], "stopped")
    for row in [*pairs[1], *pairs[2], *new]:
        assert row.tokens == alone(loaded, row)
        assert row.finish == "length"


def test_rows_that_wait_begin_together_in_order_and_as_soon_as_there_is_room(loaded: LoadedModel) -> None:
    def rows(count: int, most: int) -> list[Row]:
        return [Row(PROMPTS[1], None, sampled(number, max_new_tokens=most)) for number in range(count)]

    first, second, third, fourth = rows(2, 5), rows(1, 8), rows(3, 4), rows(1, 4)
    decoder, began = Decoder(loaded, 4, 64), {}
    for group in (first, second, third, fourth):
        decoder.submit(group)
    step = 0
    while decoder.step():
        for name, group in (("first", first), ("second", second), ("third", third), ("fourth", fourth)):
            if any(row.tokens for row in group):
                assert all(row.tokens for row in group)
                began.setdefault(name, step)
        step += 1
    # three wait for two slots and one that stands free; the fourth would fit at once, but comes after them
    assert began == {"first": 0, "second": 0, "third": 5, "fourth": 8}


def test_dropping_rows_that_wait_takes_them_out_of_the_queue(loaded: LoadedModel) -> None:
    decoder = Decoder(loaded, 1, 64)
    first, second, third = (Row(PROMPTS[0], None, sampled(number, max_new_tokens=4)) for number in range(3))
    for row in (first, second, third):
        decoder.submit([row])
    decoder.step()
    decoder.drop([second])
    finish(decoder)
    assert [len(row.tokens) for row in (first, second, third)] == [4, 0, 4]
    assert second.finish == ""


def test_a_slot_used_a_hundred_times_writes_as_at_first(loaded: LoadedModel, sides: tuple[None, str]) -> None:
    decoder = Decoder(loaded, 2, 64)

    def written(prompt: list[int], seed: int, most: int) -> list[list[int]]:
        rows = [Row(prompt, side, sampled(seed, max_new_tokens=most, repetition_penalty=1.2)) for side in sides]
        decoder.submit(rows)
        finish(decoder)
        return [row.tokens for row in rows]

    first = written(PROMPTS[0], 1, 12)
    for turn in range(100):
        written(PROMPTS[turn % 3], turn, 1 + turn * 7 % 20)
    assert written(PROMPTS[0], 1, 12) == first


def test_an_adapter_trained_further_is_seen_at_once(session: Session) -> None:
    loaded = tiny.model_of(session)
    training = tiny.busy_training(session)
    next(training)
    assert loaded.peft is not None
    decoder, found = Decoder(loaded, 2, 64), []
    for _ in range(3):
        rows = [Row(PROMPTS[0], side, tiny.GREEDY) for side in (None, TRAINED)]
        decoder.submit(rows)
        finish(decoder)
        assert rows[1].tokens == tiny.generate(loaded.peft, PROMPTS[0], 24)
        with loaded.peft.disable_adapter():
            assert rows[0].tokens == tiny.generate(loaded.peft, PROMPTS[0], 24)
        found.append(tuple(rows[1].tokens))
        for _ in range(4):
            next(training)
    assert len(set(found)) == 3, "the training in between was real"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are wanted")
def test_without_a_gpu_no_kernels_are_imported(loaded: LoadedModel) -> None:
    tiny.write(loaded, Row(PROMPTS[0], None, tiny.GREEDY))
    assert not {"triton", "deepdoctor.engine.fused", "deepdoctor.engine.kernels"} & set(sys.modules)


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
