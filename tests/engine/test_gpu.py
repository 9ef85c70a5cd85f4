"""On an NVIDIA GPU: the fused decoder is exact, and base stays base whatever has happened to the model before. Run with `pytest -m gpu`."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig
from deepdoctor.engine import accelerator
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.compare import TOLERANCES, reference_logits
from deepdoctor.engine.decode import Decoder, Row
from deepdoctor.engine.evaluate import token_losses
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.forward import State, TorchSteps, rotations
from deepdoctor.engine.guard import GuardedSteps
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.rows import prepare_rows
from deepdoctor.engine.session import Session
from deepdoctor.errors import EngineError
from tests.engine import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
SHAPE: dict[str, Any] = {
    **{"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"head_dim": 64, "vocab_size": 640, "max_position_embeddings": 1024, "initializer_range": 0.04},
}
PROMPT = [0, 5, 9, 17, 300, 41, 8, 77]
FORCED = 256
QUESTION = "A patient aged 50 has thirst. What is it?"


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A model large enough for the kernels, and two adapters of different rank."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.save_model(folder / "model", request.param, **SHAPE)
    return model, [tiny.save_adapter(folder / str(rank), model, seed=rank, rank=rank, strength=0.05) for rank in (4, 24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama large enough for the kernels."""
    return tiny.save_model(tmp_path_factory.mktemp("llama"), **SHAPE)


@pytest.fixture(params=["bfloat16", "float16", "4bit"])
def precision(request: pytest.FixtureRequest) -> str:
    """How the weights are held."""
    return str(request.param)


def opened(data_dir: Path, folder: Path, precision: str) -> Session:
    session = Session(data_dir)
    session.load(ModelConfig(name=str(folder), precision=precision))  # type: ignore[arg-type]
    return session


@torch.no_grad()
def in_float32(loaded: LoadedModel, text: list[int], adapter: str | None) -> torch.Tensor:
    """Logits [FORCED, vocabulary] of the same weights, NF4 taken apart, by the textbook formulas in float32.

    Written out here, because once Unsloth is imported even a plain transformers model runs Unsloth's code.
    """
    base, ids = loaded.base, torch.tensor(PROMPT + text, device=loaded.device)
    model, length = base.model, len(PROMPT) + len(text)
    cos, sin = rotations(base.config, length, loaded.device)

    def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
        plain = getattr(module, "base_layer", module)
        out = F.linear(x, wide(plain.weight), None if plain.bias is None else plain.bias.float())
        if adapter and plain is not module:
            low = x @ module.lora_A[adapter].weight.float().T
            out = out + low @ module.lora_B[adapter].weight.float().T * module.scaling[adapter]
        return out

    def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon) * module.weight.float()

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    hidden = model.embed_tokens.weight[ids].float()
    future = torch.ones(length, length, dtype=torch.bool, device=loaded.device).triu(1)
    for layer in model.layers:
        attention, normed = layer.self_attn, norm(layer.input_layernorm, hidden)
        query, key, value = (
            linear(each, normed).view(length, -1, attention.head_dim).transpose(0, 1)
            for each in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
        times = len(query) // len(key)
        scores = turn(query) @ turn(key).repeat_interleave(times, 0).transpose(1, 2) * attention.head_dim**-0.5
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value.repeat_interleave(times, 0)
        hidden = hidden + linear(attention.o_proj, mixed.transpose(0, 1).flatten(1))
        normed = norm(layer.post_attention_layernorm, hidden)
        hidden = hidden + linear(layer.mlp.down_proj, F.silu(linear(layer.mlp.gate_proj, normed)) * linear(layer.mlp.up_proj, normed))
    return linear(base.lm_head, norm(model.norm, hidden))[len(PROMPT) :]


def wide(weight: Any) -> torch.Tensor:
    """The weight's numbers in float32."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.float()
    import bitsandbytes

    in_full = copy.copy(state)
    in_full.dtype = torch.float32
    return bitsandbytes.functional.dequantize_4bit(weight.data, in_full)


def forced(loaded: LoadedModel, adapters: list[str | None], text: list[int], kind: str, decoder: Decoder | None = None) -> torch.Tensor:
    """Logits [rows, FORCED, vocabulary] by the fused or the plain steps, reading `text` token by token behind PROMPT."""
    decoder = decoder or Decoder(loaded, len(adapters), len(PROMPT) + FORCED + 1)
    steps = decoder.steps if kind == "fused" else TorchSteps(loaded.base, decoder.state)
    state: State = decoder.state
    found = []
    with torch.inference_mode():
        for slot, adapter in enumerate(adapters):
            steps.prefill(slot, PROMPT, adapter)
            state.positions[slot], state.live[slot] = len(PROMPT), 1
        steps.assign(adapters)
        for place, token in enumerate(text):
            state.tokens[: len(adapters)] = token
            steps.forward([len(PROMPT) + place] * len(adapters))
            found.append(state.logits[: len(adapters)].clone())
    return torch.stack(found, 1)


def whole(model: Any, text: list[int]) -> torch.Tensor:
    """Logits [FORCED, vocabulary] of one plain forward pass over the same text."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([PROMPT + text], device="cuda")).logits[0, len(PROMPT) :].float()


@torch.no_grad()
def test_a_decoder_from_before_the_first_adapter_writes_as_a_later_one(model: Path, precision: str, tmp_path: Path) -> None:
    """The first adapter of a layer puts another module in its place, and one of few layers leaves others for the next."""
    loaded = tiny.model_of(opened(tmp_path / "data", model, precision))
    decoder = Decoder(loaded, 3, len(PROMPT) + FORCED + 1)
    text = torch.randint(5, 600, (FORCED,), generator=torch.Generator().manual_seed(3)).tolist()
    few = tiny.save_adapter(tmp_path / "few", model, rank=4, strength=0.05, projections=("q_proj", "v_proj"))
    full = tiny.save_adapter(tmp_path / "full", model, rank=8, strength=0.05)
    first = forced(loaded, [None, select_adapter(loaded, few)], text, "fused", decoder)
    sides = [None, select_adapter(loaded, few), select_adapter(loaded, full)]
    found = forced(loaded, sides, text, "fused", decoder)
    assert loaded.no_kernels == ""
    assert torch.equal(found, forced(loaded, sides, text, "fused"))
    assert torch.equal(first, forced(loaded, sides[:2], text, "fused"))
    assert not torch.allclose(found[1], found[2], atol=0.1)


def test_a_short_model_is_not_stretched(model: Path, precision: str, tmp_path: Path) -> None:
    config = tiny.model_of(opened(tmp_path / "data", model, precision)).base.config
    assert config.max_position_embeddings == SHAPE["max_position_embeddings"]
    assert config.rope_parameters["rope_type"] == "default"


def test_an_attached_adapter_holds_the_numbers_of_its_file(family: tuple[Path, list[Path]], precision: str, tmp_path: Path) -> None:
    folder, adapters = family
    loaded = tiny.model_of(opened(tmp_path / "data", folder, precision))
    for adapter in adapters:
        name, stored = select_adapter(loaded, adapter), load_file(adapter / "adapter_model.safetensors", device="cuda")
        assert loaded.peft is not None
        attached = {key.replace(f".{name}", ""): weight for key, weight in loaded.peft.named_parameters() if f".{name}." in key}
        assert attached.keys() == stored.keys()
        assert all(weight.dtype == torch.float32 and torch.equal(weight, stored[key]) for key, weight in attached.items())


@torch.no_grad()
def test_it_is_no_further_from_float32_than_transformers_is(family: tuple[Path, list[Path]], precision: str, tmp_path: Path) -> None:
    folder, adapters = family
    loaded = tiny.model_of(opened(tmp_path / "data", folder, precision))
    assert loaded.backend.name == "unsloth"
    names = [select_adapter(loaded, adapter) for adapter in adapters]
    text = torch.randint(5, 600, (FORCED,), generator=torch.Generator().manual_seed(3)).tolist()
    sides = [None, names[0], names[1], None, names[0]]
    fused = forced(loaded, sides, text, "fused")
    assert loaded.no_kernels == ""
    assert isinstance(Decoder(loaded, 2, 64).steps, GuardedSteps)
    wanted = [in_float32(loaded, text, side) for side in (None, *names)]
    assert loaded.peft is not None
    with loaded.peft.disable_adapter():
        peers = [whole(loaded.peft, text)]
    for name in names:
        loaded.peft.set_adapter(name, inference_mode=True)
        peers.append(whole(loaded.peft, text))
    for row, side in enumerate(sides):
        which = 0 if side is None else 1 + names.index(side)
        ours, theirs = ((made - wanted[which]).abs() for made in (fused[row], peers[which]))
        assert ours.mean() <= 1.05 * theirs.mean(), f"row {row}: {ours.mean():.5f} against {theirs.mean():.5f}"
        assert ours.max() <= 1.5 * theirs.max(), f"row {row}: {ours.max():.4f} against {theirs.max():.4f}"
    assert (wanted[1] - wanted[0]).abs().max() > 10 * (fused[1] - wanted[1]).abs().max()


def test_five_or_more_rows_read_nf4_as_few_do(model: Path, tmp_path: Path) -> None:
    loaded = tiny.model_of(opened(tmp_path / "data", model, "4bit"))
    text = list(range(20, 60))
    few, many = forced(loaded, [None] * 2, text, "fused"), forced(loaded, [None] * 6, text, "fused")
    assert (few[0] - many[0]).abs().max() <= TOLERANCES[loaded.dtype] / 4


@pytest.fixture
def ready(model: Path, precision: str, tmp_path: Path) -> Iterator[Session]:
    """A session with the larger model."""
    yield opened(tmp_path / "data", model, precision)
    torch.cuda.empty_cache()


def plain_logits(loaded: LoadedModel) -> torch.Tensor:
    """Logits after PROMPT by the library's own forward, adapters disabled if there are any."""
    ids = torch.tensor([PROMPT], device="cuda")
    with torch.no_grad():
        if loaded.peft is None:
            return loaded.base(input_ids=ids).logits[0, -1].float()
        with loaded.peft.disable_adapter():
            return loaded.peft(input_ids=ids).logits[0, -1].float()


def ours(loaded: LoadedModel, adapter: str | None) -> torch.Tensor:
    """Logits after PROMPT by the decoder."""
    row = Row(PROMPT, adapter, SamplingConfig(temperature=0, max_new_tokens=2))
    decoder = Decoder(loaded, 1, 32)
    decoder.submit([row])
    while decoder.step():
        pass
    assert row.first_logits is not None
    return row.first_logits


def require_base(loaded: LoadedModel, never_adapted: torch.Tensor, first: torch.Tensor) -> None:
    """Base weights and our base logits are bit for bit those of before any adapter was near, and the library's are too, or nearly."""
    assert base_hash(loaded.base) == loaded.info.base_hash
    assert torch.equal(ours(loaded, None), first)
    assert same_base(loaded, plain_logits(loaded), never_adapted)
    assert (first - never_adapted).abs().max() <= TOLERANCES[loaded.dtype]


def same_base(loaded: LoadedModel, off: torch.Tensor, never_adapted: torch.Tensor) -> bool:
    """Bit for bit in 16 bit. In 4 bit Unsloth unpacks weights by another kernel once adapters are attached: equal within rounding."""
    if loaded.info.precision != "4bit":
        return torch.equal(off, never_adapted)
    return bool((off - never_adapted).abs().max() <= TOLERANCES[loaded.dtype] / 4)


def test_base_stays_base_whatever_happens(ready: Session, dataset: DatasetConfig, tmp_path: Path, model: Path) -> None:
    """After training, a stopped training, an exception, other checkpoints, and 100 alternations."""
    loaded = tiny.model_of(ready)
    never_adapted, first = plain_logits(loaded), ours(loaded, None)
    run = ready.finetune(tiny.new_run(ready, dataset, max_steps=6, optimizer="adamw_8bit").id)
    require_base(loaded, never_adapted, first)
    stopped = ready.finetune(tiny.new_run(ready, dataset, max_steps=6, seed=5).id, should_stop=tiny.StopAfter(2))
    assert stopped.state == "stopped"
    require_base(loaded, never_adapted, first)

    def broken() -> bool:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ready.finetune(tiny.new_run(ready, dataset, max_steps=6).id, should_stop=broken)
    require_base(loaded, never_adapted, first)
    folders = [run.adapter_dir(2), run.adapter_dir(6), stopped.adapter_dir(), tiny.save_adapter(tmp_path / "other", model)]
    tuned = {}
    for turn in range(100):
        folder = folders[turn % len(folders)]
        name = select_adapter(loaded, folder)
        off, on = reference_logits(loaded, PROMPT, name)
        assert same_base(loaded, off, never_adapted)
        found = ours(loaded, name)
        assert (found - on).abs().max() <= TOLERANCES[loaded.dtype]
        assert torch.equal(tuned.setdefault(folder, found), found)
    require_base(loaded, never_adapted, first)
    assert len({tuple(each.tolist()) for each in tuned.values()}) == len(folders)


def test_it_trains_resumes_and_compares(ready: Session, dataset: DatasetConfig) -> None:
    assert 1e-6 < tiny.model_of(ready).info.launch_seconds < 1e-4
    run = tiny.new_run(ready, dataset, max_steps=6, optimizer="adamw_torch", lora_rank=8)
    ready.finetune(run.id, should_stop=tiny.StopAfter(3))
    assert run.checkpoints()[-1] == 3
    ready.finetune(run.id, resume=True)
    assert list(tiny.losses(run)) == [1, 2, 3, 4, 5, 6]
    *_, made = ready.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY))
    assert made.finished
    assert made.proof is not None
    assert made.proof.problems() == []


@pytest.mark.parametrize("supervision", ["whole_text", "response_only"])
def test_the_trainer_s_loss_is_that_of_the_supervised_tokens(model: Path, dataset: DatasetConfig, tmp_path: Path, supervision: str) -> None:
    """With a learning rate of next to nothing, the mean loss of a whole pass is what the plain model gives on the tokens trained on."""
    session = opened(tmp_path / "data", model, "bfloat16")
    run = tiny.new_run(session, dataset, max_steps=3, batch_size=3, learning_rate=1e-12, supervision=supervision)
    session.finetune(run.id)
    loaded = tiny.model_of(session)
    rows = prepare_rows(loaded, run).train
    found = []
    for row in rows:
        losses = token_losses(loaded.base, [row])[0]
        kept = [place - 1 for place, trained in enumerate(row.supervised) if trained and place]
        found.append((float(losses[kept].sum()), len(kept)))
    wanted = sum(loss for loss, _ in found) / sum(count for _, count in found)
    logged = tiny.losses(run)
    assert sum(logged.values()) / len(logged) == pytest.approx(wanted, rel=0.02)


def test_rows_behind_each_other_give_the_losses_of_padded_ones(model: Path, dataset: DatasetConfig, tmp_path: Path) -> None:
    """As does the same step in batches of two. Each run begins with the same adapter and meets the rows in the same order."""
    session = opened(tmp_path / "data", model, "bfloat16")
    ways: list[dict[str, Any]] = [{"padded_to": 1}, {"padded_to": 0}, {"padded_to": 0, "batch_size": 2, "accumulation": 2}]
    found = []
    for way in ways:
        recipe = {"max_steps": 6, "batch_size": 4, "accumulation": 1, "learning_rate": 1e-3, **way}
        run = session.finetune(tiny.new_run(session, dataset, **recipe).id)
        assert run.status["plan"]["how"]["padded_to"] == way["padded_to"]
        found.append(list(tiny.losses(run).values()))
    padded, in_line, halves = found
    assert in_line == pytest.approx(padded, rel=0.01)
    assert halves == pytest.approx(in_line, rel=0.01)
    assert padded[-1] < 0.9 * padded[0], "it learns, so that equal losses mean equal gradients"


def test_running_out_of_memory_is_told_and_leaves_the_engine_usable(model: Path, dataset: DatasetConfig, tmp_path: Path) -> None:
    session = opened(tmp_path / "data", model, "bfloat16")
    good = session.finetune(tiny.new_run(session, dataset, max_steps=2).id)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 40 * 2**20) / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(EngineError, match="Lower the batch size"):
            session.finetune(tiny.new_run(session, dataset, max_steps=2, batch_size=256, lora_rank=512).id)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    *_, made = session.compare(Compare(QUESTION, good.id, sampling=tiny.GREEDY))
    assert made.finished


def test_auto_takes_four_bits_where_memory_is_short(model: Path, tmp_path: Path) -> None:
    session = Session(tmp_path / "data")
    assert session.load(ModelConfig(name=str(model))).info.precision == "bfloat16"
    assert session.load(ModelConfig(name=str(model), gpu_memory_gib=5)).info.precision == "4bit"
    assert accelerator.free_bytes(5) <= 5 * accelerator.GIB
    accelerator.prepare(None)
