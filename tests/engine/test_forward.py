"""The forward pass is exact: every family's logits equal transformers' and PEFT's, for prompts read whole and token by token."""

from pathlib import Path

import pytest
import torch

from deepdoctor.engine.forward import groups_of, new_cache, prefill, step
from deepdoctor.engine.model import LoadedModel, select_adapter
from tests.engine import tiny

TOLERANCE = 1e-4
PROMPTS = [[5, 9, 17, 300, 41, 8, 77], [12], [250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]
CONTINUATION = [44, 2, 310, 9, 120, 5, 6]


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LoadedModel]:
    """Of one family: the model's folder, an adapter's folder, and the model loaded by a session."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.save_model(folder / "model", request.param)
    adapter = tiny.save_adapter(folder / "adapter", model)
    return model, adapter, tiny.model_of(tiny.open_session(folder / "data", model))


def teacher_forced(loaded: LoadedModel, prompt: list[int], adapter: str | None) -> torch.Tensor:
    """Logits after the prompt and after each token of CONTINUATION, [1 + len(CONTINUATION), vocabulary]."""
    cache = new_cache(loaded.base, 1, len(prompt) + len(CONTINUATION))
    found = [prefill(loaded.base, cache, 0, prompt, adapter)]
    found += [step(loaded.base, cache, [token], groups_of([adapter]))[0] for token in CONTINUATION]
    return torch.stack(found)


def wanted(model: object, prompt: list[int]) -> torch.Tensor:
    """The same logits by one plain forward pass."""
    assert callable(model)
    return model(input_ids=torch.tensor([prompt + CONTINUATION])).logits[0, len(prompt) - 1 :].float()


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{len(prompt)} tokens")
@torch.inference_mode()
def test_logits_are_those_of_the_plain_model_and_of_peft(family: tuple[Path, Path, LoadedModel], prompt: list[int]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    base, tuned = teacher_forced(loaded, prompt, None), teacher_forced(loaded, prompt, name)
    assert (base - wanted(tiny.plain(model), prompt)).abs().max() <= TOLERANCE
    assert (tuned - wanted(tiny.with_adapter(model, adapter), prompt)).abs().max() <= TOLERANCE
    assert (base - tuned).abs().max() > 1000 * TOLERANCE


@torch.inference_mode()
def test_rows_of_different_lengths_and_adapters_share_a_pass(family: tuple[Path, Path, LoadedModel]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    adapters = [name, None, name]
    cache = new_cache(loaded.base, 3, 30)
    first = torch.stack([prefill(loaded.base, cache, row, prompt, adapters[row]) for row, prompt in enumerate(PROMPTS)])
    rest = [step(loaded.base, cache, [token, token, token], groups_of(adapters)) for token in CONTINUATION]
    assert cache.lengths == [len(prompt) + len(CONTINUATION) for prompt in PROMPTS]
    base, tuned = tiny.plain(model), tiny.with_adapter(model, adapter)
    for row, prompt in enumerate(PROMPTS):
        found = torch.stack([first[row], *(logits[row] for logits in rest)])
        assert (found - wanted(tuned if adapters[row] else base, prompt)).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_dropping_rows_leaves_the_others_as_they_were(family: tuple[Path, Path, LoadedModel]) -> None:
    model, _adapter, loaded = family
    cache = new_cache(loaded.base, 3, 30)
    for row, prompt in enumerate(PROMPTS):
        prefill(loaded.base, cache, row, prompt, None)
    cache.keep([2, 0])
    logits = step(loaded.base, cache, [44, 44], [])
    base = tiny.plain(model)
    assert (logits[0] - wanted(base, PROMPTS[2])[1]).abs().max() <= TOLERANCE
    assert (logits[1] - wanted(base, PROMPTS[0])[1]).abs().max() <= TOLERANCE


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
