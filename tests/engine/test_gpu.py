"""On an NVIDIA GPU, in 16-bit numbers: the paired decoder still is transformers' and PEFT's, and the base still is the base."""

from pathlib import Path

import pytest
import torch

from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig
from deepdoctor.engine.compare import TOLERANCES, reference_logits
from deepdoctor.engine.decode import Row
from deepdoctor.engine.forward import new_cache, prefill
from deepdoctor.engine.model import LoadedModel, select_adapter
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.session import Session
from tests.engine import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
PROMPT = [0, 5, 9, 17, 300, 41, 8, 77]


@pytest.fixture(params=["bfloat16", "float32"])
def on_gpu(request: pytest.FixtureRequest, tmp_path: Path, llama: Path) -> Session:
    session = Session(tmp_path / "data")
    session.load(ModelConfig(name=str(llama), precision=request.param))
    return session


def first_logits(loaded: LoadedModel, adapter: str | None) -> torch.Tensor:
    with torch.inference_mode():
        return prefill(loaded.base, new_cache(loaded.base, 1, 64), 0, PROMPT, adapter)


def test_both_sides_are_transformers_own_within_the_tolerance(on_gpu: Session, adapter: Path) -> None:
    loaded = tiny.model_of(on_gpu)
    name = select_adapter(loaded, adapter)
    off, on = reference_logits(loaded, PROMPT, name)
    assert (first_logits(loaded, None) - off).abs().max() <= TOLERANCES[loaded.dtype]
    assert (first_logits(loaded, name) - on).abs().max() <= TOLERANCES[loaded.dtype]
    assert (on - off).abs().max() > TOLERANCES[loaded.dtype]


def test_the_base_row_is_a_model_that_never_had_an_adapter(on_gpu: Session, adapter: Path, llama: Path) -> None:
    loaded = tiny.model_of(on_gpu)
    select_adapter(loaded, adapter)
    untouched = tiny.plain(llama).to(device="cuda", dtype=loaded.dtype)
    with torch.inference_mode():
        wanted = untouched(input_ids=torch.tensor([PROMPT], device="cuda")).logits[0, -1].float()
    assert (first_logits(loaded, None) - wanted).abs().max() <= TOLERANCES[loaded.dtype]


def test_greedy_tokens_are_those_of_generate_in_float32(on_gpu: Session, adapter: Path, llama: Path) -> None:
    loaded = tiny.model_of(on_gpu)
    if loaded.dtype != torch.float32:
        pytest.skip("rounding may swap two tokens that are equally likely")
    name = select_adapter(loaded, adapter)
    greedy = SamplingConfig(temperature=0, max_new_tokens=24)
    written = tiny.write(loaded, Row(PROMPT, None, greedy), Row(PROMPT, name, greedy))
    assert written == [tiny.generate(side, PROMPT, 24) for side in (tiny.plain(llama), tiny.with_adapter(llama, adapter))]


def test_every_greedy_token_is_as_likely_as_the_plain_model_s_best(on_gpu: Session, adapter: Path) -> None:
    """In 16 bits a tie may fall either way; what is written must still be within rounding of the best token."""
    loaded = tiny.model_of(on_gpu)
    name = select_adapter(loaded, adapter)
    greedy = SamplingConfig(temperature=0, max_new_tokens=24)
    rows = [Row(PROMPT, None, greedy), Row(PROMPT, name, greedy)]
    tiny.write(loaded, *rows)
    for side, row in enumerate(rows):
        for count, token in enumerate(row.tokens):
            scores = reference_logits(loaded, PROMPT + row.tokens[:count], name)[side]
            assert scores.max() - scores[token] <= 2 * TOLERANCES[loaded.dtype]


def test_it_trains_compares_and_resumes(on_gpu: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(on_gpu, dataset, max_steps=6, optimizer="adamw_torch")
    on_gpu.finetune(run.id, should_stop=tiny.StopAfter(3))
    assert run.checkpoints()[-1] == 3
    on_gpu.finetune(run.id, resume=True)
    assert list(tiny.losses(run)) == [1, 2, 3, 4, 5, 6]
    *_, made = on_gpu.compare(Compare("A patient aged 50 has thirst. What is it?", run.id, sampling=tiny.GREEDY))
    assert made.finished
