"""The tokenizer: the R1 distills' tokens, BOS exactly once, and the same ids whichever library reads the folder."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deepdoctor.nano.corpus import tokenizer_texts
from deepdoctor.nano.tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer
from deepdoctor.prompts import NATIVE, STYLES, render_completion, render_question

TEXTS = ("Ätna, 38.5 °C\n\n**Why**\n- α β", "a  b\tc", "It's 140 mmHg.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small trained tokenizer, saved as the model's is."""
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(tokenizer_texts(40, 1), vocabulary=600), path)
    return path


@pytest.fixture
def light(folder):
    """The folder's tokenizer as the tokenizers library reads it."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def full(folder):
    """The folder's tokenizer as transformers reads it."""
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_have_their_ids(light, full):
    assert [light.token_to_id(token) for token in (BOS, EOS, PAD)] == [0, 1, 2]
    assert [full.bos_token_id, full.eos_token_id, full.pad_token_id] == [0, 1, 2]
    assert full.model_max_length == 2048
    assert light.get_vocab_size() == len(full) == 600


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_both_libraries_give_the_same_ids_with_bos_once(light, full, style):
    for text in TEXTS:
        rendered = render_question(text, style) + render_completion(text, text, EOS, style)
        ids = light.encode(rendered).ids
        assert ids == full(rendered)["input_ids"]
        assert [ids.count(0), ids[0], ids.count(1), ids[-1]] == [1, 0, 1, 1]
        assert light.decode(ids, skip_special_tokens=False) == BOS + rendered


def test_thinking_markers_are_one_token_and_survive_decoding(light, full):
    for token in ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"):
        assert len(light.encode(token, add_special_tokens=False).ids) == 1
    ids = full(render_completion("So.", "Yes.", EOS))["input_ids"]
    assert full.decode(ids, skip_special_tokens=True) == "\nSo.\n</think>\nYes."


def test_the_chat_template_gives_the_native_prompt(full):
    text = full.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True)
    assert text == BOS + render_question("Why?", NATIVE)


def test_the_chat_template_drops_the_thought_of_earlier_turns(full):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Hmm.\n</think>Because."}]
    assert full.apply_chat_template(turns, tokenize=False) == f"{BOS}<｜User｜>Why?<｜Assistant｜>Because.{EOS}"
