"""Models that paired decoding does not know: written by transformers' own forward, base first, then tuned, with the same proof."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Phi3Config

from deepdoctor.config import DatasetConfig, SamplingConfig
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.compare import Pair
from deepdoctor.engine.decode import Decoder, Row, decode, decoder_for
from deepdoctor.engine.evaluate import evaluate
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.model import LoadedModel, find
from deepdoctor.engine.one_by_one import OneByOne
from deepdoctor.engine.pairs import Pairs
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.room import found_again
from deepdoctor.engine.session import Session
from deepdoctor.errors import ConfigError
from tests.engine import tiny
from tests.engine.test_evaluate import encoded, plain_loss
from tests.studies.prepared import created

PROMPTS = [[0, 5, 9, 17, 300, 41, 8, 77], [12], [0, 250, 31, 8, 99, 14, 3, 7, 7, 7, 20, 61, 5]]
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
KINDS: dict[str, Any] = {
    "mistral": (MistralConfig, {"sliding_window": 8, "head_dim": 8}),
    "gemma2": (Gemma2Config, {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 5.0}),
    "phi3": (Phi3Config, {}),
}


def save(folder: Path, kind: str) -> Path:
    """A random model of a kind that paired decoding does not know."""
    if kind == "qwen2 with a window":
        return tiny.save_model(folder, "qwen2", **WINDOW)
    config, changes = KINDS[kind]
    tiny.save_model(folder)
    torch.manual_seed(0)
    size = {"vocab_size": tiny.trained_tokenizer().get_vocab_size(), "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config(**{**tiny.SHAPE, **size, **changes}))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


def adapt(folder: Path, model: Path, names: list[str], seed: int = 1) -> Path:
    """A random adapter on the linear modules of those names."""
    torch.manual_seed(seed)
    peft = get_peft_model(tiny.plain(model), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*KINDS, "qwen2 with a window"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LoadedModel]:
    """Of one kind: the model's folder, an adapter's folder, and the model loaded by a session."""
    folder = tmp_path_factory.mktemp("model")
    model = save(folder / "model", str(request.param))
    loaded = tiny.model_of(tiny.open_session(folder / "data", model))
    return model, adapt(folder / "adapter", model, list(loaded.info.projections)), loaded


@pytest.fixture
def mistral(tmp_path: Path) -> tuple[Session, Path]:
    """A session with a tiny Mistral that never ends by itself, and an adapter for it."""
    model = save(tmp_path / "model", "mistral")
    session = tiny.open_session(tmp_path / "data", model)
    return session, adapt(tmp_path / "adapter", model, list(tiny.model_of(session).info.projections))


def test_it_is_loaded_and_says_why_it_is_not_decoded_in_pairs(family: tuple[Path, Path, LoadedModel]) -> None:
    model, _, loaded = family
    kind = json.loads((model / "config.json").read_text())["model_type"]
    wanted = "attends through a sliding window" if kind == "qwen2" else f"a {kind} model is not of a family"
    assert wanted in loaded.info.decoding
    assert isinstance(decoder_for(loaded, 2, 64), OneByOne)
    linear = {name.rpartition(".")[2] for name, each in tiny.plain(model).model.layers[0].named_modules() if type(each) is torch.nn.Linear}
    assert set(loaded.info.projections) == linear


def test_greedy_tokens_are_those_of_generate(family: tuple[Path, Path, LoadedModel]) -> None:
    model, adapter, loaded = family
    name = select_adapter(loaded, adapter)
    written = tiny.write(loaded, *(Row(prompt, side, tiny.GREEDY) for prompt in PROMPTS for side in (None, name)))
    base, tuned = tiny.plain(model), tiny.with_adapter(model, adapter)
    assert written == [tiny.generate(side, prompt, 24) for prompt in PROMPTS for side in (base, tuned)]
    assert written[0] != written[1]
    greedy = tiny.GREEDY.changed(repetition_penalty=1.4)
    again = tiny.write(loaded, *(Row(prompt, side, greedy) for prompt in PROMPTS for side in (None, name)))
    assert again == [tiny.generate(side, prompt, 24, repetition_penalty=1.4) for prompt in PROMPTS for side in (base, tuned)]
    assert base_hash(loaded.base) == loaded.info.base_hash


def test_held_out_losses_are_those_of_the_plain_model(family: tuple[Path, Path, LoadedModel]) -> None:
    model, adapter, loaded = family
    name, rows = select_adapter(loaded, adapter), encoded(loaded, 11)
    for side, plain in ((None, tiny.plain(model)), (name, tiny.with_adapter(model, adapter))):
        found = evaluate(loaded, rows, side)
        assert found["held_out_loss"] == pytest.approx(plain_loss(plain, rows, ("reasoning", "response")), abs=2e-5)
        assert found["held_out_response_loss"] == pytest.approx(plain_loss(plain, rows, ("response",)), abs=2e-5)


def test_drawn_tokens_are_those_that_pairs_would_draw(loaded: LoadedModel, adapter: Path) -> None:
    """On a model that both know, the same seed and settings give the same text either way."""
    name = select_adapter(loaded, adapter)
    kinds: list[dict[str, float]] = [{}, {"top_k": 9, "temperature": 1.5}, {"repetition_penalty": 1.3}, {"min_p": 0.1, "top_p": 1.0}]
    samplings = [SamplingConfig.of({"temperature": 0.9, "seed": seed, "max_new_tokens": 24, **kind}) for seed, kind in enumerate(kinds)]

    def rows() -> list[Row]:
        return [Row(PROMPTS[0], side, sampling) for sampling in samplings for side in (None, name)]

    alone = []
    for row in rows():
        decoder = OneByOne(loaded, 2, 64)
        decoder.submit([row])
        while decoder.step():
            pass
        alone.append(row.tokens)
    assert alone == tiny.write(loaded, *rows())
    assert len({tuple(tokens) for tokens in alone}) > 4


def test_a_model_that_made_room_is_found_again_as_it_was(mistral: tuple[Session, Path]) -> None:
    loaded = tiny.model_of(mistral[0])
    assert loaded.info.decoding
    assert found_again(loaded) == find(loaded.config)


def test_the_proof_comes_first_then_base_then_tuned(mistral: tuple[Session, Path]) -> None:
    session, adapter = mistral
    pairs = Pairs(tiny.model_of(session))
    name = select_adapter(pairs.loaded, adapter)
    asked = [Pair(pairs.loaded, tiny.asked(f"What is thirst {number}?"), name) for number in range(2)]
    for pair in asked:
        pairs.submit(pair)
    lengths, places, ended = [], [], []
    while pairs.writing or pairs.waiting:
        ended += pairs.step()
        if not lengths:
            asked[0].prove()
            assert asked[0].proof is not None
            assert asked[0].proof.problems() == []
        lengths.append([len(row.tokens) for pair in asked for row in pair.rows])
        places.append(pairs.place(asked[1]))
    assert all(before[1] == 0 or before[0] == lengths[-1][0] for before in lengths), "tuned begins when base has ended"
    assert all(before[2] == 0 or before[1] == lengths[-1][1] for before in lengths)
    assert places[0] == 0, "the second waits and knows its place"
    assert places[-1] == -1
    assert ended == asked
    for pair in asked:
        alone = [tiny.write(pairs.loaded, Row(row.prompt, row.adapter, row.sampling))[0] for row in pair.rows]
        assert [row.tokens for row in pair.rows] == alone
        assert {row.shared for row in pair.rows} == {1}


def test_more_texts_than_usual_wait_until_they_are_alone_and_begin_then(mistral: tuple[Session, Path], tmp_path: Path) -> None:
    session, adapter = mistral
    pairs = Pairs(tiny.model_of(session))
    name = select_adapter(pairs.loaded, adapter)
    other = select_adapter(pairs.loaded, adapt(tmp_path / "other", tmp_path / "model", list(pairs.loaded.info.projections), seed=2))
    first = Pair(pairs.loaded, tiny.asked("What is thirst?"), name)
    second = Pair(pairs.loaded, tiny.asked("What is fever?"), name, {20: other, 40: name, 60: other})
    for pair in (first, second):
        pairs.submit(pair)
    pairs.step()
    assert pairs.place(second) == 0
    while pairs.writing or pairs.waiting:
        pairs.step()
    second.prove()
    made = second.snapshot()
    made.require_proven()
    assert [each.step for each in made.further if each.proof] == [20, 40, 60]
    assert [row.tokens for row in second.rows] == [
        tiny.write(pairs.loaded, Row(row.prompt, row.adapter, row.sampling))[0] for row in second.rows
    ]
    assert made.further[0].written.text != made.further[1].written.text == made.tuned.text


def test_a_stop_in_the_middle_keeps_what_there_is_and_lets_the_next_begin(mistral: tuple[Session, Path]) -> None:
    session, adapter = mistral
    pairs = Pairs(tiny.model_of(session))
    name = select_adapter(pairs.loaded, adapter)
    first, second = (Pair(pairs.loaded, tiny.asked(f"What is thirst {number}?"), name) for number in range(2))
    pairs.submit(first)
    pairs.submit(second)
    for _ in range(5):
        pairs.step()
    written = len(first.base.tokens)
    assert written > 0
    pairs.drop(first)
    assert (first.base.finish, first.tuned.finish, len(first.base.tokens), first.tuned.tokens) == ("stopped", "stopped", written, [])
    while pairs.writing or pairs.waiting:
        pairs.step()
    assert second.finished
    assert "stopped" not in {row.finish for row in second.rows}


def test_it_trains_with_probes_and_is_compared_then(mistral: tuple[Session, Path], dataset: DatasetConfig) -> None:
    session, _ = mistral
    watched = session.finetune(tiny.new_run(session, dataset, max_steps=4, eval_steps=1, probe_steps=2).id)
    quiet = session.finetune(tiny.new_run(session, dataset, max_steps=4).id)
    assert tiny.losses(watched) == tiny.losses(quiet), "probes and evaluations leave the training alone"
    held_out = tiny.losses(watched, "held_out_loss")
    assert held_out[4] < held_out[0]
    assert [row["step"] for row in watched.probes()] == [0, 2, 4]
    *_, made = session.compare(Compare("A patient aged 50 has thirst. What is it?", watched.id, sampling=tiny.GREEDY))
    assert made.finished
    assert made.proof is not None
    assert made.proof.problems() == []
    assert made.rows_at_once == 1
    study = created(session.data_dir, 2, run=watched.id, native_arm=True, sampling=tiny.GREEDY.changed(max_new_tokens=5).model_dump())
    assert session.prepare(study.id).state == "open"
    loaded = tiny.model_of(session)
    assert loaded.peft is not None
    assert TRAINED in loaded.peft.peft_config


def test_what_does_not_fit_is_refused(mistral: tuple[Session, Path]) -> None:
    loaded = tiny.model_of(mistral[0])
    with pytest.raises(ConfigError, match=rf"{tiny.CONTEXT} tokens, 1 more than fit"):
        next(decode(loaded, [Row([5] * tiny.CONTEXT, None, tiny.GREEDY)]))


def test_known_models_are_decoded_in_pairs(loaded: LoadedModel) -> None:
    assert loaded.info.decoding == ""
    assert isinstance(decoder_for(loaded, 2, 64), Decoder)
