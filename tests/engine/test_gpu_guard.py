"""On an NVIDIA GPU: wide adapters beside narrow ones, whole texts through the decoder, kernels that fail, and held-out losses."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine import head_loss
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.compare import TOLERANCES, reference_logits
from deepdoctor.engine.decode import Decoder, Row
from deepdoctor.engine.evaluate import token_losses
from deepdoctor.engine.forward import TorchSteps
from deepdoctor.engine.guard import GuardedSteps
from deepdoctor.engine.head_loss import mean_loss, without_compiling
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.protocol import LONGEST_TRAINED
from deepdoctor.engine.room import free
from deepdoctor.tokens import IGNORED, Encoded
from tests.engine import tiny
from tests.engine.across import QUESTION, Listener, adapted_run, log_of, request
from tests.engine.test_gpu import FORCED, PROMPT, SHAPE, forced, in_float32, opened, whole
from tests.engine.tiny import until

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
PRECISIONS = ["bfloat16", "float16", "4bit"]
RANKS = (16, 128, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A Llama large enough for the kernels, and adapters of RANKS for it."""
    folder = tmp_path_factory.mktemp("llama")
    saved = tiny.save_model(folder / "model", **SHAPE)
    return saved, [tiny.save_adapter(folder / str(rank), saved, seed=rank, rank=rank, strength=0.05) for rank in RANKS]


@pytest.fixture(params=PRECISIONS)
def ready(request: pytest.FixtureRequest, model: tuple[Path, list[Path]], tmp_path: Path) -> tuple[LoadedModel, list[str]]:
    """The model loaded in each way, with the names of its adapters."""
    loaded = tiny.model_of(opened(tmp_path / "data", model[0], str(request.param)))
    return loaded, [select_adapter(loaded, folder) for folder in model[1]]


def test_a_wide_adapter_beside_a_narrow_one_is_written_as_by_plain_steps(ready: tuple[LoadedModel, list[str]]) -> None:
    loaded, (narrow, wide, _) = ready
    text = torch.randint(5, 600, (FORCED,), generator=torch.Generator().manual_seed(3)).tolist()
    sides = [None, narrow, wide, narrow]
    fused, plain = forced(loaded, sides, text, "fused"), forced(loaded, sides, text, "plain")
    assert loaded.no_kernels == ""
    assert (fused - plain).abs().max() <= TOLERANCES[loaded.dtype] / 2
    assert (fused[1] - fused[2]).abs().max() > 4 * (fused - plain).abs().max()
    for row, side in enumerate(sides):
        right = in_float32(loaded, text, side)
        assert (fused[row] - right).abs().mean() <= 1.1 * (plain[row] - right).abs().mean()


def test_a_wide_adapter_that_joins_later_leaves_the_others_as_they_are(ready: tuple[LoadedModel, list[str]]) -> None:
    """Graphs captured for the narrow one know a buffer that the wide one replaces."""
    loaded, (narrow, wide, smallest) = ready
    endless, length = tiny.Endless(**vars(loaded)), 48
    greedy = tiny.GREEDY.changed(max_new_tokens=length)
    decoder = Decoder(endless, 4, 512)
    assert isinstance(decoder.steps, GuardedSteps)
    for sides in ([None, narrow], [None, narrow, wide], [None, smallest], [wide], [None, narrow]):
        rows = [Row(PROMPT, side, greedy) for side in sides]
        logits = tiny.recorded(decoder, *rows)
        assert decoder.steps.now is decoder.steps.fused
        for row, found, side in zip(rows, logits, sides, strict=True):
            right = in_float32(loaded, row.tokens, side)[:-1]
            assert (found[1:] - right).abs().max() <= TOLERANCES[loaded.dtype]
            others = [in_float32(loaded, row.tokens, other)[:-1] for other in (None, narrow, wide, smallest) if other != side]
            assert all((found[1:] - other).abs().mean() > 2 * (found[1:] - right).abs().mean() for other in others)


def test_every_logit_that_a_decoder_draws_from_is_no_further_from_float32_than_transformers_is(
    ready: tuple[LoadedModel, list[str]],
) -> None:
    """Along 256 tokens of its own, with neighbours that end earlier so that rows move from slot to slot and other graphs take over."""
    loaded, (narrow, wide, _) = ready
    long, short = tiny.GREEDY.changed(max_new_tokens=FORCED), tiny.GREEDY.changed(max_new_tokens=31)
    sides = [wide, None, narrow, None, narrow]
    rows = [Row(PROMPT, side, short if place < 3 else long) for place, side in enumerate(sides)]
    logits = tiny.recorded(Decoder(tiny.Endless(**vars(loaded)), 6, 512), *rows)
    assert loaded.peft is not None
    for row, found in zip(rows[3:], logits[3:], strict=True):
        right = in_float32(loaded, row.tokens, row.adapter)[:-1]
        if row.adapter:
            loaded.peft.set_adapter(row.adapter, inference_mode=True)
            peer = whole(loaded.peft, row.tokens)[:-1]
        else:
            with loaded.peft.disable_adapter():
                peer = whole(loaded.peft, row.tokens)[:-1]
        assert found[1:].shape == right.shape == (FORCED - 1, loaded.info.vocabulary)
        assert (found[1:] - right).abs().mean() <= 1.05 * (peer - right).abs().mean()


def test_an_adapter_too_wide_for_kernels_is_written_plainly(
    ready: tuple[LoadedModel, list[str]], model: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    loaded, _ = ready
    name = select_adapter(loaded, tiny.save_adapter(tmp_path / "widest", model[0], seed=9, rank=256, strength=0.03))
    decoder = Decoder(tiny.Endless(**vars(loaded)), 2, 128)
    assert isinstance(decoder.steps, GuardedSteps)
    decoder.submit([again := Row(PROMPT, name, tiny.GREEDY)])
    while decoder.step():
        assert again.finish or decoder.steps.now is decoder.steps.plain
    assert isinstance(decoder.steps.plain, TorchSteps)
    [found] = tiny.recorded(decoder, row := Row(PROMPT, name, tiny.GREEDY))
    assert row.tokens == again.tokens
    assert (found[1:] - in_float32(loaded, row.tokens, name)[:-1]).abs().max() <= TOLERANCES[loaded.dtype]


def test_held_out_losses_read_the_weights_as_they_are_held(ready: tuple[LoadedModel, list[str]]) -> None:
    loaded, names = ready
    ids = [*PROMPT, *torch.randint(5, 600, (FORCED,), generator=torch.Generator().manual_seed(1)).tolist()]
    row = Encoded(ids, [True] * len(ids), ["response"] * len(ids))
    for side in (None, *names):
        found = token_losses(loaded.base, [row], side)[0, len(PROMPT) :]
        right = F.cross_entropy(
            in_float32(loaded, ids[len(PROMPT) :], side)[:-1], torch.tensor(ids[len(PROMPT) + 1 :], device=loaded.device), reduction="none"
        )
        assert found.mean().item() == pytest.approx(right.mean().item(), rel=0.01)
        assert (found - right.cpu()).abs().max() <= 2 * TOLERANCES[loaded.dtype]


def test_a_run_says_in_which_numbers_it_trained_and_its_own_peak(
    model: tuple[Path, list[Path]], dataset: DatasetConfig, tmp_path: Path
) -> None:
    session = opened(tmp_path / "data", model[0], "bfloat16")
    before = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    del before
    run = session.finetune(tiny.new_run(session, dataset, max_steps=2, base_precision="4bit").id)
    status = run.status
    assert (status["precision"], status["backend"]) == ("4bit", "unsloth")
    assert 0 < status["peak_bytes"] < 2**31, "what was held before the run does not count"
    assert status["planned_bytes"] > 0


def test_running_out_of_memory_while_answering_is_told_and_the_same_process_answers_again(tmp_path: Path) -> None:
    """The logits of a whole prompt, which the proof needs, are larger than what the process may use."""
    folder = tiny.save_model(tmp_path / "model", **{**SHAPE, "vocab_size": 128_256, "max_position_embeddings": 16_384})
    limited = ModelConfig(name=str(folder), precision="bfloat16", gpu_memory_gib=3)
    with EngineClient(tmp_path / "data", limited) as engine:
        assert until(lambda: engine.state.phase == "ready", 300), log_of(engine)
        run, pid = adapted_run(engine, folder, tmp_path), engine.pid
        short = request(run, most=24)
        assert Listener(engine, short).join().last.finished
        refused = Listener(engine, replace(short, question=" ".join([QUESTION] * 800))).join()
        assert str(refused.error).startswith("Out of memory while answering. Shorten the question, lower the longest answer")
        again = Listener(engine, replace(short, sampling=short.sampling.changed(seed=2))).join()
        assert again.last.finished
        assert again.last.proof is not None
        assert engine.pid == pid


def test_a_model_that_was_trained_is_given_up_whole(model: tuple[Path, list[Path]], dataset: DatasetConfig, tmp_path: Path) -> None:
    session = opened(tmp_path / "data", model[0], "bfloat16")
    session.finetune(tiny.new_run(session, dataset, max_steps=2, optimizer="adamw_8bit").id)
    weights = [weakref.ref(weight) for weight in tiny.model_of(session).base.parameters()]
    assert all(weight() is not None for weight in weights)
    del session
    free()
    assert not any(weight() is not None for weight in weights)


def test_a_text_longer_than_unsloth_is_told_of_is_read_to_its_end(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", **{**SHAPE, "max_position_embeddings": 16_384})
    loaded = tiny.model_of(opened(tmp_path / "data", folder, "bfloat16"))
    name = select_adapter(loaded, tiny.save_adapter(tmp_path / "adapter", folder, strength=0.05))
    text = torch.randint(5, 600, (LONGEST_TRAINED + 800,), generator=torch.Generator().manual_seed(2)).tolist()
    off, on = reference_logits(loaded, text, name)
    assert not torch.equal(off, reference_logits(loaded, [*text[:-1], text[-1] + 1], name)[0])
    decoder = Decoder(loaded, 2, len(text) + 8)
    two = tiny.GREEDY.changed(max_new_tokens=2)
    base, tuned = tiny.recorded(decoder, Row(text, None, two), Row(text, name, two))
    assert (base[0] - off).abs().max() <= TOLERANCES[loaded.dtype]
    assert (tuned[0] - on).abs().max() <= TOLERANCES[loaded.dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_in_parts_is_no_further_from_float32_than_unsloth_s_own_is(dtype: torch.dtype) -> None:
    from unsloth.models import llama

    drawn = torch.Generator("cuda").manual_seed(3)
    hidden = torch.randn(2, 1400, 512, generator=drawn, device="cuda").to(dtype).requires_grad_()
    head = (0.05 * torch.randn(128_256, 512, generator=drawn, device="cuda")).to(dtype)
    labels = torch.randint(0, 128_256, (2, 1400), generator=drawn, device="cuda")
    labels[:, 100:300] = IGNORED
    asked = {"hidden_states": hidden, "lm_head_weight": head, "lm_head_bias": None, "labels": labels, "n_items": torch.tensor(5000)}
    exact = hidden.detach().float().requires_grad_()
    wanted = labels[:, 1:].reshape(-1)
    right = F.cross_entropy((exact[:, :-1] @ head.float().t()).reshape(len(wanted), -1), wanted, reduction="sum") / 5000
    (slope,) = torch.autograd.grad(right, exact)
    theirs = llama.unsloth_fused_ce_loss
    off = {}
    for name, within in (("theirs", nullcontext()), ("ours", without_compiling())):
        with within:
            assert (llama.unsloth_fused_ce_loss is theirs) == (name == "theirs")
            loss = llama.unsloth_fused_ce_loss(trainer=None, **asked)
        (gradient,) = torch.autograd.grad(loss, hidden)
        off[name] = abs(loss.item() - right.item()) / right.item(), ((gradient - slope).norm() / slope.norm()).item()
    assert llama.unsloth_fused_ce_loss is theirs
    print(dtype, off)
    assert off["ours"][0] <= max(1.1 * off["theirs"][0], 1e-5)
    assert off["ours"][1] <= 1.1 * off["theirs"][1]


def test_a_run_s_losses_are_made_in_parts(
    model: tuple[Path, list[Path]], dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(*given: Any, **more: Any) -> torch.Tensor:
        asked.append(more)
        return mean_loss(*given, **more)

    monkeypatch.setattr(head_loss, "mean_loss", counted)
    session = opened(tmp_path / "data", model[0], "bfloat16")
    recipe = {"max_steps": 3, "batch_size": 2, "accumulation": 2, "batching": "as_set"}
    run = session.finetune(tiny.new_run(session, dataset, **recipe).id)
    assert run.status["plan"]["how"]["accumulation"] == 2
    assert len(asked) >= 5, "of nine rows the last step takes one"
