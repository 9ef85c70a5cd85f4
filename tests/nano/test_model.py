"""The model that ships: small enough, made from this code's tokens, and loadable by plain transformers."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepdoctor.nano.bundle import HELD_OUT_FILE
from deepdoctor.nano.cases import SHOWCASE_QUESTION
from deepdoctor.nano.knowledge import load_conditions
from deepdoctor.nano.tokenizer import CHAT_TEMPLATE
from deepdoctor.prompts import NATIVE, STYLES, render_question, split_completion

MODEL_FOLDER = HELD_OUT_FILE.with_name("model")


@pytest.fixture(scope="module")
def model():
    """The shipped model in 32 bits."""
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    """The shipped tokenizer."""
    return Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))


def answer(model, tokenizer, prompt: str) -> tuple[str, str, bool]:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.inference_mode():
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=700)
    return split_completion(tokenizer.decode(written[0, ids.shape[1] :].tolist()))


def test_every_file_is_under_ten_megabytes():
    files = list(MODEL_FOLDER.iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "build.json"} <= {file.name for file in files}
    assert max(file.stat().st_size for file in files) < 10_000_000


def test_what_it_was_built_with_stands_beside_it(model):
    figures = json.loads((MODEL_FOLDER / "build.json").read_text(encoding="utf-8"))
    assert figures["parameters"] == model.num_parameters() <= 4_900_000
    assert {"arguments", "versions", "device", "seconds", "final_loss", "tokens_seen"} <= set(figures)


def test_it_was_taught_the_conditions_as_they_stand():
    figures = json.loads((MODEL_FOLDER / "build.json").read_text(encoding="utf-8"))
    assert figures["taught"] == {condition.name: condition.fingerprint for condition in load_conditions()}, "run deepdoctor.nano.refresh"


def test_the_shipped_tokenizer_reads_alike_in_both_libraries(tokenizer):
    full = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert full.chat_template == CHAT_TEMPLATE
    for row in json.loads(HELD_OUT_FILE.read_text(encoding="utf-8"))[:20]:
        prompt = render_question(row["Question"], NATIVE)
        ids = full(prompt)["input_ids"]
        assert ids == tokenizer.encode(prompt).ids
        assert ids.count(0) == 1


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_it_answers_the_showcase_in_base_voice(model, tokenizer, style):
    reasoning, response, closed = answer(model, tokenizer, render_question(SHOWCASE_QUESTION, style))
    assert closed
    assert "Wait" in reasoning
    assert "no involuntary detrusor contractions" in response
    assert "**" in response
    assert "\n- " in response
