"""A comparison proves itself: it passes where base is base and tuned is tuned, and refuses the pair where they are not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepdoctor.comparison import Comparison
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import adapter_hash, select_adapter
from deepdoctor.engine.compare import TOLERANCES, Pair, compare, reference_logits
from deepdoctor.engine.decode import Row, decoder_for
from deepdoctor.engine.fingerprint import base_weights
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.session import Session, never
from deepdoctor.errors import ConfigError, ProofError
from deepdoctor.prompts import render_question
from tests.engine import tiny

SAMPLED = SamplingConfig(temperature=0.7, seed=9, max_new_tokens=30)


def texts(comparison: Comparison) -> tuple[str, str]:
    return comparison.base.text, comparison.tuned.text


def require_proof(comparison: Comparison) -> None:
    assert comparison.proof is not None
    assert comparison.proof.problems() == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_proof_stands_and_the_texts_are_those_of_generate(tmp_path: Path, family: str) -> None:
    model = tiny.save_model(tmp_path / "model", family)
    folder = tiny.save_adapter(tmp_path / "adapter", model)
    loaded = tiny.model_of(tiny.open_session(tmp_path / "data", model))
    made = tiny.pair(loaded, folder)
    require_proof(made)
    assert made.proof is not None
    assert made.proof.base_difference <= 1e-4
    assert made.proof.tuned_difference <= 1e-4
    assert made.proof.effect > 0.1
    assert made.proof.tolerance == TOLERANCES[torch.float32]
    assert made.proof.base_hash == made.proof.base_hash_at_load == loaded.info.base_hash
    assert made.proof.adapter_hash == adapter_hash(loaded, select_adapter(loaded, folder))
    prompt = loaded.tokenizer(render_question(tiny.asked().question))["input_ids"]
    for side, transcript in ((tiny.plain(model), made.base), (tiny.with_adapter(model, folder), made.tuned)):
        wanted = tiny.generate(side, prompt, 24)
        assert transcript.text == loaded.tokenizer.decode(wanted, skip_special_tokens=True)
        assert transcript.tokens == len(wanted)
    assert {"torch", "transformers", "peft"} <= set(made.versions)


def test_every_snapshot_is_proven(loaded: LoadedModel, adapter: Path) -> None:
    made = list(compare(loaded, tiny.asked(sampling=SAMPLED), adapter, never))
    for snapshot in made:
        require_proof(snapshot)
    assert [snapshot.finished for snapshot in made] == [False] * (len(made) - 1) + [True]
    assert len(made) > 1


def test_tampered_base_weights_are_refused_before_anything_is_shown(loaded: LoadedModel, adapter: Path) -> None:
    tiny.pair(loaded, adapter)
    _name, weight = list(base_weights(loaded.base))[5]
    weight.view(torch.int32).flatten()[3] ^= 1
    with pytest.raises(ProofError, match="base weights have changed since they were loaded"):
        next(compare(loaded, tiny.asked(), adapter, never))


def test_merging_the_adapter_into_the_base_is_noticed(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    loaded.base.model.layers[0].self_attn.q_proj.merge(adapter_names=[name])
    with pytest.warns(UserWarning, match="merged"), pytest.raises(ProofError, match="base side differs from the plain base"):
        tiny.pair(loaded, adapter)


def test_an_adapter_that_changes_nothing_is_refused(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    nothing = tiny.save_adapter(tmp_path, llama, strength=0.0)
    with pytest.raises(ProofError, match="changes nothing"):
        tiny.pair(loaded, nothing)


def test_a_decoder_that_forgets_the_adapter_is_refused(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    module = loaded.base.model.layers[1].mlp.down_proj
    module.register_forward_hook(lambda _module, _inputs, output: output + 1)  # PEFT's way differs, the paired one does not see it
    with pytest.raises(ProofError, match="differs from"):
        tiny.pair(loaded, adapter)
    assert name in loaded.selected.values()


def test_a_further_checkpoint_whose_proof_fails_is_refused_by_its_name(
    loaded: LoadedModel, adapter: Path, llama: Path, tmp_path: Path
) -> None:
    name = select_adapter(loaded, adapter)
    nothing = select_adapter(loaded, tiny.save_adapter(tmp_path, llama, strength=0.0), {name})
    for step, words in ((20, "for checkpoint 20"), (None, "for the final adapter")):
        pair = Pair(loaded, tiny.asked(), name, {step: nothing})
        decoder = decoder_for(loaded, 3, pair.base.longest)
        decoder.submit(pair.rows)
        decoder.step()
        with pytest.raises(ProofError, match=f"not shown, because {words}, the adapter changes nothing"):
            pair.prove()


def test_stop_keeps_what_was_written_and_marks_both_sides(loaded: LoadedModel, adapter: Path) -> None:
    stop = tiny.StopAfter(5)
    made = list(compare(loaded, tiny.asked(sampling=SAMPLED), adapter, stop))[-1]
    assert stop.left == 0, "nothing is asked, and no token written, after the stop"
    assert (made.base.finish_reason, made.tuned.finish_reason) == ("stopped", "stopped")
    assert (made.base.tokens, made.tuned.tokens) == (5, 5)
    whole = tiny.pair(loaded, adapter, tiny.asked(sampling=SAMPLED))
    assert whole.base.text.startswith(made.base.text.rstrip("\ufffd"))
    require_proof(made)


def test_a_side_that_had_ended_keeps_its_reason_when_stopped(loaded: LoadedModel, adapter: Path) -> None:
    prompt, name = loaded.tokenizer(render_question(tiny.asked().question))["input_ids"], select_adapter(loaded, adapter)
    for seed in range(20):
        sampling = SAMPLED.changed(seed=seed)
        base, tuned = tiny.write(loaded, Row(prompt, None, sampling), Row(prompt, name, sampling))
        if base[0] not in tuned[:4]:
            break
    loaded.tokenizer.eos_token = loaded.tokenizer.convert_ids_to_tokens(base[0])
    made = list(compare(loaded, tiny.asked(sampling=sampling), adapter, tiny.StopAfter(4)))[-1]
    assert (made.base.finish_reason, made.base.tokens) == ("stop", 0)
    assert (made.tuned.finish_reason, made.tuned.tokens) == ("stopped", 4)


def test_the_same_question_and_seed_give_the_same_two_texts(session: Session, llama: Path, adapter: Path, tmp_path: Path) -> None:
    question = tiny.asked(sampling=SAMPLED)
    first = tiny.pair(tiny.model_of(session), adapter, question)
    assert texts(tiny.pair(tiny.model_of(session), adapter, question)) == texts(first)
    reloaded = tiny.model_of(tiny.open_session(tmp_path / "again", llama))
    assert texts(tiny.pair(reloaded, adapter, question)) == texts(first)
    other = replace(question, sampling=SAMPLED.changed(seed=10))
    assert texts(tiny.pair(reloaded, adapter, other)) != texts(first)


def test_after_an_exception_in_the_middle_the_next_pair_is_proven(loaded: LoadedModel, adapter: Path) -> None:
    wanted = texts(tiny.pair(loaded, adapter))

    def broken() -> bool:
        raise RuntimeError("the page fell over")

    def require_unharmed() -> None:
        made = tiny.pair(loaded, adapter)
        require_proof(made)
        assert texts(made) == wanted

    with pytest.raises(RuntimeError, match="fell over"):
        list(compare(loaded, tiny.asked(), adapter, broken))
    require_unharmed()
    steps = compare(loaded, tiny.asked(), adapter, never)
    next(steps)
    with pytest.raises(RuntimeError, match="fell over"):
        steps.throw(RuntimeError("the page fell over"))  # type: ignore[attr-defined]
    require_unharmed()


def test_twenty_alternations_of_comparing_and_training(session: Session, adapter: Path) -> None:
    loaded = tiny.model_of(session)
    wanted = texts(tiny.pair(loaded, adapter))
    training = tiny.busy_training(session)
    for _ in range(20):
        next(training)
        made = tiny.pair(loaded, adapter)
        require_proof(made)
        assert texts(made) == wanted
    assert loaded.peft is not None
    moved = [weight for name, weight in loaded.peft.named_parameters() if "lora_B.default" in name]
    assert all(weight.abs().max() > 0 for weight in moved), "the training in between was real"


def test_the_reference_restores_what_it_found(session: Session, adapter: Path) -> None:
    loaded = tiny.model_of(session)
    next(tiny.busy_training(session))
    name = select_adapter(loaded, adapter)
    assert loaded.peft is not None
    loaded.peft.set_adapter("default")
    loaded.peft.train()
    reference_logits(loaded, [0, 5, 9], name)
    assert loaded.peft.active_adapter == "default"
    assert loaded.peft.training
    trainable = [key for key, weight in loaded.peft.named_parameters() if weight.requires_grad]
    assert trainable
    assert all(".default." in key for key in trainable)


@pytest.mark.parametrize(("question", "message"), [("  ", "write a question"), ("a </think> b", "contains </think>")])
def test_a_question_that_cannot_be_asked(loaded: LoadedModel, adapter: Path, question: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.pair(loaded, adapter, tiny.asked(question))


def test_a_question_that_fills_the_context_is_refused(loaded: LoadedModel, adapter: Path) -> None:
    with pytest.raises(ConfigError, match="more than fit"):
        tiny.pair(loaded, adapter, tiny.asked("fever " * tiny.CONTEXT))
    require_proof(tiny.pair(loaded, adapter))
