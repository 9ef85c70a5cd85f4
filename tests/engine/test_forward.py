"""The forward pass is exact: every family's logits equal transformers' and PEFT's, for prompts read whole and token by token."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.forward import FIXED_ROTATIONS, LARGE_WEIGHT, State, TorchSteps, groups_of, project, rotations, times
from deepdoctor.engine.model import LoadedModel
from tests.engine import tiny

TOLERANCE = 1e-4
PROMPTS = [[5, 9, 17, 300, 41, 8, 77], [12], [250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]
CONTINUATION = [44, 2, 310, 9, 120, 5, 6]
ROTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": tiny.LLAMA3_ROPE,
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LoadedModel]:
    """Of one family: the model's folder, an adapter's folder, and the model loaded by a session."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.save_model(folder / "model", request.param)
    adapter = tiny.save_adapter(folder / "adapter", model)
    return model, adapter, tiny.model_of(tiny.open_session(folder / "data", model))


def begin(loaded: LoadedModel, prompts: list[list[int]], adapters: list[str | None], context: int) -> TorchSteps:
    """Steps with one slot for each prompt, which it has read."""
    steps = TorchSteps(loaded.base, State.empty(loaded.base, len(prompts), context))
    for slot, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
        steps.prefill(slot, prompt, adapter)
    steps.assign(adapters)
    return steps


def force(steps: TorchSteps, lengths: list[int], continuation: list[int]) -> torch.Tensor:
    """Logits of each row before and after each token of a continuation that all read, [rows, 1 + tokens, vocabulary]."""
    rows = len(lengths)
    found = [steps.state.logits[:rows].clone()]
    for count, token in enumerate(continuation):
        steps.state.tokens[:rows] = token
        steps.forward([length + count for length in lengths])
        found.append(steps.state.logits[:rows].clone())
    return torch.stack(found, dim=1)


def teacher_forced(loaded: LoadedModel, prompt: list[int], adapter: str | None, continuation: list[int] = CONTINUATION) -> torch.Tensor:
    """Logits after the prompt and after each token of the continuation, [1 + tokens, vocabulary]."""
    steps = begin(loaded, [prompt], [adapter], len(prompt) + len(continuation))
    return force(steps, [len(prompt)], continuation)[0]


def wanted(model: Any, prompt: list[int], continuation: list[int] = CONTINUATION) -> torch.Tensor:
    """The same logits by one plain forward pass."""
    return model(input_ids=torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 :].float()


def tokens(count: int) -> list[int]:
    """So many tokens of no meaning."""
    return random.Random(count).choices(range(3, 500), k=count)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{len(prompt)} tokens")
@torch.inference_mode()
def test_logits_are_those_of_the_plain_model_and_of_peft(family: tuple[Path, Path, LoadedModel], prompt: list[int]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    base, tuned = teacher_forced(loaded, prompt, None), teacher_forced(loaded, prompt, name)
    assert (base - wanted(tiny.plain(model), prompt)).abs().max() <= TOLERANCE
    assert (tuned - wanted(tiny.with_adapter(model, adapter), prompt)).abs().max() <= TOLERANCE
    assert (base - tuned).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("length", [1, tiny.CONTEXT - 256, tiny.CONTEXT - 4])
@torch.inference_mode()
def test_it_stays_exact_up_to_the_end_of_the_context(family: tuple[Path, Path, LoadedModel], length: int) -> None:
    """256 tokens are forced, or as many as the context has room for."""
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    prompt, continuation = tokens(length), tokens(min(256, tiny.CONTEXT - length))
    for adapter_name, side in ((None, tiny.plain(model)), (name, tiny.with_adapter(model, adapter))):
        found, right = teacher_forced(loaded, prompt, adapter_name, continuation), wanted(side, prompt, continuation)
        assert (found - right).abs().max() <= TOLERANCE
        assert torch.equal(found.argmax(-1), right.argmax(-1))


@torch.inference_mode()
def test_rows_of_different_lengths_and_adapters_share_a_pass(family: tuple[Path, Path, LoadedModel]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    adapters = [name, None, name]
    found = force(begin(loaded, PROMPTS, adapters, 30), [len(prompt) for prompt in PROMPTS], CONTINUATION)
    base, tuned = tiny.plain(model), tiny.with_adapter(model, adapter)
    for row, prompt in enumerate(PROMPTS):
        assert (found[row] - wanted(tuned if adapters[row] else base, prompt)).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_a_row_that_moves_to_another_slot_goes_on_as_if_nothing_had_been(family: tuple[Path, Path, LoadedModel]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    short, longer, middle = PROMPTS[1], PROMPTS[2], PROMPTS[0]
    steps = begin(loaded, [longer, middle, short], [None, None, name], 30)
    neighbour = steps.state.keys[:, 1].clone()
    steps.state.move(2, 0, len(short))
    steps.assign([name, None])
    found = force(steps, [len(short), len(middle)], CONTINUATION)
    assert (found[0] - wanted(tiny.with_adapter(model, adapter), short)).abs().max() <= TOLERANCE
    assert (found[1] - wanted(tiny.plain(model), middle)).abs().max() <= TOLERANCE
    assert torch.equal(steps.state.keys[:, 1, :, : len(middle)], neighbour[:, :, : len(middle)])


def test_moving_takes_all_that_a_slot_holds(loaded: LoadedModel) -> None:
    state = State.empty(loaded.base, 3, 30)
    for held in (state.tokens, state.positions, state.counts, state.live):
        held[2] = 7
    state.logits[2] = 7.0
    state.keys[:, 2], state.values[:, 2] = 7.0, 7.0
    state.move(2, 0, 4)
    for held in (state.tokens, state.positions, state.counts, state.live, state.logits):
        assert torch.equal(held[0], held[2])
        assert not held[1].any()
    for cache in (state.keys, state.values):
        assert torch.equal(cache[:, 0, :, :4], cache[:, 2, :, :4])
        assert not cache[:, 0, :, 4:].any()
        assert not cache[:, 1].any()


def test_only_slots_in_use_advance(loaded: LoadedModel) -> None:
    state = State.empty(loaded.base, 4, 8)
    state.live[:3] = torch.tensor([1, 0, 1])
    state.advance(2)
    assert state.positions.tolist() == state.counts.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("kind", FIXED_ROTATIONS)
@pytest.mark.parametrize("changes", [{}, {"head_dim": 16}], ids=["narrow", "wide"])
def test_rotations_are_those_of_transformers(kind: str, changes: dict[str, Any]) -> None:
    given = {"rope_type": kind, "rope_theta": 5000.0, **ROTATIONS[kind]}
    config = LlamaConfig(**{**tiny.SHAPE, **changes, "rope_parameters": given})
    cos, sin = rotations(config, tiny.CONTEXT, torch.device("cpu"))
    places = torch.arange(tiny.CONTEXT).unsqueeze(0)
    right = [each[0] for each in LlamaRotaryEmbedding(config)(torch.zeros(1), places)]
    for ours, theirs in zip((cos, sin), right, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(torch.cat((ours, ours), dim=-1), theirs)


def test_rows_of_one_adapter_become_a_slice_or_a_list() -> None:
    assert groups_of([None, "a", "a", "b"]) == [("a", slice(1, 3)), ("b", slice(3, 4))]
    (name, rows), *others = groups_of(["a", None, "a"])
    assert (name, others) == ("a", [])
    assert isinstance(rows, torch.Tensor)
    assert rows.tolist() == [0, 2]
    assert groups_of([None, None]) == []


@torch.inference_mode()
def test_an_attached_adapter_does_not_touch_rows_without_one(loaded: LoadedModel, adapter: Path) -> None:
    before = teacher_forced(loaded, PROMPTS[0], None)
    name = select_adapter(loaded, adapter)
    assert torch.equal(teacher_forced(loaded, PROMPTS[0], None), before)
    assert not torch.allclose(teacher_forced(loaded, PROMPTS[0], name), before)


@pytest.mark.parametrize(("rows", "new"), [(1, 1), (2, 1), (1, 3), (4, 1), (5, 1), (2, 6)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_product_turned_round_is_the_layer_s(rows: int, new: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layer, x = torch.nn.Linear(256, LARGE_WEIGHT // 256, bias=bias), torch.randn(rows, new, 256)
    found = times(layer, x)
    assert found.shape == (rows, new, LARGE_WEIGHT // 256)
    assert found.is_contiguous()
    assert torch.allclose(found, layer(x), atol=1e-5)


@pytest.mark.parametrize("adapters", [["one", None], [None, "one", "one"], ["one", "two", "one"], ["two"]])
@pytest.mark.parametrize("new", [1, 3])
@torch.no_grad()
def test_each_row_gets_its_own_adapter_s_term(adapters: list[str | None], new: int) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 12)), lora, adapter_name="one")
    model.add_adapter("two", lora)
    module: Any = model.base_model.model[0]
    x = torch.randn(len(adapters), new, 8)
    found = project(module, x, groups_of(adapters))
    for row, name in enumerate(adapters):
        right = module.base_layer(x[row])
        if name:
            right = right + 1.5 * x[row] @ module.lora_A[name].weight.T @ module.lora_B[name].weight.T
        assert torch.allclose(found[row], right, atol=1e-5)
