"""Pairs in a queue: who is written, who waits for room, and what a pair that goes leaves behind."""

from pathlib import Path

import pytest

from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import SELECTED_AT_MOST, select_adapter
from deepdoctor.engine.compare import Pair
from deepdoctor.engine.decode import Row
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.pairs import SLOTS_AT_MOST, USUAL_CONTEXT, Pairs, cache_bytes, longest_of, slots_for
from deepdoctor.errors import ConfigError
from tests.engine import tiny

ROOM = 4096


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny Llama whose context is longer than the usual cache, and of an adapter for it. It never ends by itself."""
    folder = tmp_path_factory.mktemp("roomy")
    model = tiny.save_model(folder / "model", max_position_embeddings=ROOM)
    return model, tiny.save_adapter(folder / "adapter", model)


@pytest.fixture
def pairs(tmp_path: Path, roomy: tuple[Path, Path]) -> Pairs:
    """An empty queue before the tiny Llama with the long context."""
    return Pairs(tiny.model_of(tiny.open_session(tmp_path / "data", roomy[0])))


@pytest.fixture
def name(pairs: Pairs, roomy: tuple[Path, Path]) -> str:
    """The adapter's name."""
    return select_adapter(pairs.loaded, roomy[1])


def new(pairs: Pairs, adapter: str, most: int = 8, seed: int = 1, question: str = "What is thirst?") -> Pair:
    """A pair that nobody has queued yet."""
    return Pair(pairs.loaded, tiny.asked(question, SamplingConfig(temperature=0.9, top_p=1, seed=seed, max_new_tokens=most)), adapter)


def queued(pairs: Pairs, adapter: str, **more: int) -> Pair:
    pair = new(pairs, adapter, **more)  # type: ignore[arg-type]
    pairs.submit(pair)
    return pair


def finish(pairs: Pairs, steps: int = 4000) -> list[Pair]:
    """Write until nothing is left; the pairs in the order of their ends."""
    ended: list[Pair] = []
    while (pairs.writing or pairs.waiting) and steps:
        ended += pairs.step()
        steps -= 1
    return ended


def texts(pair: Pair) -> list[list[int]]:
    return [row.tokens for row in pair.rows]


def alone(loaded: LoadedModel, pair: Pair) -> list[list[int]]:
    """What those rows write with nobody beside them."""
    return [tiny.write(loaded, Row(row.prompt, row.adapter, row.sampling))[0] for row in pair.rows]


def test_pairs_are_written_together_and_told_when_they_end(pairs: Pairs, name: str) -> None:
    lengths = [5, 2, 9]
    asked = [queued(pairs, name, most=most, seed=most) for most in lengths]
    assert pairs.adapters == {name}
    ended: dict[int, list[Pair]] = {step: pairs.step() for step in range(1, 10)}
    assert {step: gone for step, gone in ended.items() if gone} == {5: [asked[0]], 2: [asked[1]], 9: [asked[2]]}
    assert [texts(pair) for pair in asked] == [alone(pairs.loaded, pair) for pair in asked]
    assert (pairs.writing, pairs.step(), pairs.adapters) == ([], [], set())


def test_more_than_fit_wait_in_order_and_begin_as_others_end(pairs: Pairs, name: str) -> None:
    fit = SLOTS_AT_MOST // 2
    asked = [queued(pairs, name, most=3 + number, seed=number) for number in range(fit + 3)]
    assert [pairs.place(pair) for pair in asked] == list(range(fit + 3))
    pairs.step()
    assert [pairs.place(pair) for pair in asked] == [-1] * fit + [0, 1, 2]
    assert pairs.adapters == {name}
    for _ in range(3):
        pairs.step()
    assert [pairs.place(pair) for pair in asked[fit:]] == [-1, 0, 1], "the first has ended, and the next has its place"
    assert finish(pairs)[-1] is asked[-1]
    assert [texts(pair) for pair in asked] == [alone(pairs.loaded, pair) for pair in asked]


def test_the_cache_grows_only_while_nobody_writes(pairs: Pairs, name: str) -> None:
    short = queued(pairs, name, most=6)
    pairs.step()
    small = pairs.decoder
    assert small is not None
    assert small.context == USUAL_CONTEXT
    long, behind = queued(pairs, name, most=3000), queued(pairs, name, most=4, seed=2)
    for _ in range(4):
        assert pairs.step() == []
        assert pairs.decoder is small
        assert [pairs.place(pair) for pair in (short, long, behind)] == [-1, 0, 1], "nobody overtakes the long one"
    assert pairs.step() == [short]
    pairs.step()
    assert pairs.decoder is not None
    assert longest_of(long) <= pairs.decoder.context < ROOM
    assert pairs.decoder.context % 512 == 0
    assert [pairs.place(pair) for pair in (long, behind)] == [-1, -1]
    for _ in range(3):
        pairs.step()
    pairs.drop(long)
    large = pairs.decoder
    again = queued(pairs, name, most=6)
    finish(pairs)
    assert pairs.decoder is large, "what is there is used again"
    assert texts(again) == texts(short) == alone(pairs.loaded, short)
    assert texts(behind) == alone(pairs.loaded, behind)


def test_a_cache_is_never_longer_than_the_model_s_context(pairs: Pairs, name: str) -> None:
    pair = queued(pairs, name, most=8192)
    pairs.step()
    assert pairs.decoder is not None
    assert pairs.decoder.context == ROOM < longest_of(pair)
    assert pairs.place(pair) == -1


def test_a_prompt_that_is_too_long_is_refused_with_the_number_of_tokens_over(loaded: LoadedModel, adapter: Path) -> None:
    pairs = Pairs(loaded)
    name = select_adapter(loaded, adapter)
    words = next(count for count in range(1, tiny.CONTEXT) if len(new(pairs, name, question="fever " * count).base.prompt) >= tiny.CONTEXT)
    for more in (0, 3):
        pair = new(pairs, name, question="fever " * (words + more))
        length = len(pair.base.prompt)
        with pytest.raises(ConfigError, match=rf"{length} tokens, {length + 1 - tiny.CONTEXT} more than fit") as caught:
            pairs.submit(pair)
        assert caught.value.field == "question"
    assert (list(pairs.waiting), pairs.adapters) == ([], set())
    longest = new(pairs, name, question="fever " * (words - 1))
    pairs.submit(longest)
    finish(pairs)
    written = min(8, tiny.CONTEXT - len(longest.base.prompt))
    assert [(len(row.tokens), row.finish) for row in longest.rows] == [(written, "length")] * 2


def test_dropping_a_pair_that_waits_lets_those_behind_it_move_up(pairs: Pairs, name: str) -> None:
    asked = [queued(pairs, name, seed=number) for number in range(SLOTS_AT_MOST // 2 + 3)]
    pairs.step()
    pairs.drop(asked[-2])
    assert [pairs.place(pair) for pair in asked[-3:]] == [0, -1, 1]
    assert (asked[-2].finished, texts(asked[-2]), asked[-2].base.finish) == (True, [[], []], "stopped")
    ended = finish(pairs)
    assert asked[-2] not in ended
    assert len(ended) == len(asked) - 1


def test_dropping_a_pair_that_is_written_keeps_its_text_and_leaves_the_others(pairs: Pairs, name: str) -> None:
    first, second, third = (queued(pairs, name, most=12, seed=seed) for seed in range(3))
    for _ in range(5):
        pairs.step()
    pairs.drop(first)
    assert first.finished
    assert [row.finish for row in first.rows] == ["stopped"] * 2
    assert texts(first) == [tokens[:5] for tokens in alone(pairs.loaded, first)]
    joined = queued(pairs, name, most=4, seed=9)
    assert finish(pairs) == [joined, second, third]
    for pair in (second, third, joined):
        assert texts(pair) == alone(pairs.loaded, pair)
    pairs.drop(second)
    assert [row.finish for row in second.rows] == ["length"] * 2, "what has ended stays as it ended"


def test_released_memory_is_taken_again_by_the_next_pair(pairs: Pairs, name: str) -> None:
    first = queued(pairs, name)
    finish(pairs)
    assert pairs.decoder is not None
    pairs.release()
    assert pairs.decoder is None
    assert pairs.step() == []
    again = queued(pairs, name)
    finish(pairs)
    assert texts(again) == texts(first)


@pytest.mark.parametrize(
    ("rows", "held", "slots"), [(64, 0, 16), (32, 0, 16), (31, 0, 14), (12, 0, 6), (10, 0, 4), (10, 2, 6), (5, 0, 2), (1, 0, 2), (0, 0, 2)]
)
def test_without_a_gpu_the_slots_take_half_of_what_is_free(pairs: Pairs, rows: int, held: int, slots: int) -> None:
    """`rows`, `held`: of how many rows the caches would fit into what is free, and into what is about to be freed."""
    one = cache_bytes(pairs.loaded, 1, ROOM)
    assert slots_for(pairs.loaded, ROOM, held * one, free=rows * one) == slots


def test_without_a_gpu_what_is_free_is_found_out(pairs: Pairs) -> None:
    assert slots_for(pairs.loaded, 64) == SLOTS_AT_MOST
    assert slots_for(pairs.loaded, 10**9) == 2


def test_the_bytes_of_a_cache_are_those_it_takes(pairs: Pairs, name: str) -> None:
    queued(pairs, name)
    pairs.step()
    assert pairs.decoder is not None
    state = pairs.decoder.state
    assert cache_bytes(pairs.loaded, pairs.decoder.slots, pairs.decoder.context) == state.keys.nbytes + state.values.nbytes


def test_adapters_in_use_stay_however_many_they_are(pairs: Pairs, roomy: tuple[Path, Path], tmp_path: Path) -> None:
    """Six pairs with six adapters; none may be taken from under the others, and afterwards the rest go."""
    folders = [tiny.save_adapter(tmp_path / str(seed), roomy[0], seed) for seed in range(SELECTED_AT_MOST + 3)]
    asked = []
    for folder in folders[:-1]:
        asked.append(queued(pairs, select_adapter(pairs.loaded, folder, pairs.adapters)))
        pairs.step()
    assert len(pairs.adapters) == len(asked) > SELECTED_AT_MOST
    assert set(pairs.loaded.selected.values()) == pairs.adapters
    finish(pairs)
    assert len({tuple(pair.tuned.tokens) for pair in asked}) == len(asked)
    for pair, folder in zip(asked, folders, strict=False):
        assert texts(pair) == alone_with(roomy[0], folder, pair)
    newest = select_adapter(pairs.loaded, folders[-1], pairs.adapters)
    assert len(pairs.loaded.selected) == SELECTED_AT_MOST
    assert list(pairs.loaded.selected.values())[-1] == newest
    assert pairs.loaded.peft is not None
    assert set(pairs.loaded.peft.peft_config) == set(pairs.loaded.selected.values())


def test_further_checkpoints_take_their_slots_and_keep_their_adapters(pairs: Pairs, roomy: tuple[Path, Path], tmp_path: Path) -> None:
    """Three pairs of five texts fill fifteen of sixteen slots: the pair behind them waits."""
    names: list[str] = []
    for seed in range(SELECTED_AT_MOST):
        names.append(select_adapter(pairs.loaded, tiny.save_adapter(tmp_path / str(seed), roomy[0], seed), set(names)))
    asked = [tiny.asked("What is thirst?", SamplingConfig(seed=seed, max_new_tokens=4 + seed)) for seed in range(3)]
    wide = [Pair(pairs.loaded, question, names[0], {20: names[1], 40: names[2], None: names[3]}) for question in asked]
    for pair in wide:
        pairs.submit(pair)
    behind = queued(pairs, names[0])
    pairs.step()
    assert [pairs.place(pair) for pair in (*wide, behind)] == [-1, -1, -1, 0]
    assert pairs.adapters == set(names)
    finish(pairs)
    assert {row.shared for row in wide[0].rows} == {15}
    for pair in (*wide, behind):
        assert texts(pair) == alone(pairs.loaded, pair)


def test_a_cache_with_too_few_slots_is_made_again_when_nobody_writes(
    loaded: LoadedModel, adapter: Path, llama: Path, tmp_path: Path
) -> None:
    free = [2]
    pairs, name = Pairs(loaded, lambda *_: free[0]), select_adapter(loaded, adapter)
    other = select_adapter(pairs.loaded, tiny.save_adapter(tmp_path / "other", llama, 2), {name})
    short = queued(pairs, name, most=3)
    pairs.step()
    wide = Pair(pairs.loaded, tiny.asked("What is thirst?"), name, {20: other})
    with pytest.raises(ConfigError, match=r"not memory enough.*Leave out further checkpoints, or lower"):
        pairs.submit(wide)
    free[0] = 4
    pairs.submit(wide)
    pairs.step()
    assert (pairs.place(short), pairs.place(wide)) == (-1, 0)
    free[0] = 2  # what was promised is kept
    assert finish(pairs) == [short, wide]
    assert texts(wide) == alone(pairs.loaded, wide)


def alone_with(model: Path, adapter: Path, pair: Pair) -> list[list[int]]:
    """What those rows write on a model freshly loaded, with that adapter alone."""
    fresh = tiny.model_of(tiny.open_session(adapter / "data", model))
    name = select_adapter(fresh, adapter)
    return tiny.write(fresh, Row(pair.base.prompt, None, pair.base.sampling), Row(pair.tuned.prompt, name, pair.tuned.sampling))
