"""Examples as tokens: which token belongs to which part, and exactly which ones are trained on."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from deepdoctor.dataset import Example
from deepdoctor.errors import ConfigError
from deepdoctor.prompts import ARTICLE, STYLES, PromptStyle, render_completion, render_question
from deepdoctor.tokens import SUPERVISION, encode_example, encode_examples, encode_prompt

EXAMPLE = Example("What is 37 °C?", "  It is in\nCelsius. ", "Normal körper temperature: 37 °C 🙂.")
EOS = "<eos>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small byte-level tokenizer that adds a beginning-of-sequence token, as Llama's does."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<bos>", EOS, "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([render_question("What is the temperature?"), "It is normal."], trainer)
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))])
    return made


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, style: PromptStyle) -> None:
    text = render_question(EXAMPLE.question, style) + render_completion(EXAMPLE.reasoning, EXAMPLE.response, EOS, style)
    encoded = encode_example(EXAMPLE, tokenizer, EOS, style)
    assert encoded.ids == tokenizer.encode(text).ids
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == f"<bos>{text}"
    assert len(encoded.ids) == len(encoded.pieces) == len(encoded.supervised) == len(encoded.parts)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_training_continues_exactly_where_the_prompt_ends(tokenizer: Tokenizer, style: PromptStyle) -> None:
    prompt = encode_prompt(tokenizer, EXAMPLE.question, style)
    encoded = encode_example(EXAMPLE, tokenizer, EOS, style, "response_only")
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.supervised == [False] * len(prompt) + [True] * (len(encoded.ids) - len(prompt))


def test_there_is_one_beginning_and_one_end(tokenizer: Tokenizer) -> None:
    encoded = encode_example(EXAMPLE, tokenizer, EOS, ARTICLE)
    bos, eos = tokenizer.token_to_id("<bos>"), tokenizer.token_to_id(EOS)
    assert (encoded.ids.count(bos), encoded.ids.count(eos)) == (1, 1)
    assert (encoded.ids[0], encoded.ids[-1]) == (bos, eos)


def test_parts_follow_each_other_and_end_where_the_text_does(tokenizer: Tokenizer) -> None:
    encoded = encode_example(EXAMPLE, tokenizer, EOS, ARTICLE)
    order = [part for index, part in enumerate(encoded.parts) if index == 0 or part != encoded.parts[index - 1]]
    assert order == ["special", "prompt", "reasoning", "response"]
    reasoning = tokenizer.decode([i for i, part in zip(encoded.ids, encoded.parts, strict=True) if part == "reasoning"], False)
    response = tokenizer.decode([i for i, part in zip(encoded.ids, encoded.parts, strict=True) if part == "response"], False)
    assert reasoning == "\nIt is in\nCelsius.\n</think>\n"
    assert response == f"{EXAMPLE.response}{EOS}"


def test_lengths_add_up(tokenizer: Tokenizer) -> None:
    encoded = encode_example(EXAMPLE, tokenizer, EOS, ARTICLE)
    assert sum(encoded.lengths.values()) == len(encoded.ids)
    assert encoded.lengths["special"] == 1
    assert all(length > 0 for length in encoded.lengths.values())


def test_the_whole_text_is_supervised_as_in_the_article(tokenizer: Tokenizer) -> None:
    assert all(encode_example(EXAMPLE, tokenizer, EOS, ARTICLE).supervised)
    assert set(SUPERVISION) == {"whole_text", "response_only"}


def test_the_end_of_sequence_is_learned_either_way(tokenizer: Tokenizer) -> None:
    assert all(encode_example(EXAMPLE, tokenizer, EOS, ARTICLE, supervision).supervised[-1] for supervision in SUPERVISION)


def test_pieces_show_the_characters_and_name_what_has_none(tokenizer: Tokenizer) -> None:
    encoded = encode_example(Example("Why?", "Because.", "So."), tokenizer, EOS, ARTICLE)
    assert encoded.pieces[0] == "<bos>"
    assert encoded.pieces[-1] == EOS
    text = render_question("Why?") + render_completion("Because.", "So.", EOS)
    assert "".join(encoded.pieces[1:]) == text


def test_a_question_that_would_be_obeyed_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="</think>"):
        encode_example(Example("Is </think> bad?", "Yes.", "Yes."), tokenizer, EOS, ARTICLE)


@pytest.mark.parametrize("supervision", SUPERVISION)
def test_many_at_once_are_encoded_as_one_by_one(tokenizer: Tokenizer, supervision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepdoctor.tokens.BATCH", 2)
    examples = [EXAMPLE, Example("Why?", "Because.", "So."), Example("And then?", "x " * 40, " End. ")]
    many = encode_examples(examples, tokenizer, EOS, ARTICLE, supervision)
    single = [encode_example(example, tokenizer, EOS, ARTICLE, supervision) for example in examples]
    assert [vars(row) for row in many] == [{"ids": row.ids, "supervised": row.supervised, "parts": row.parts} for row in single]


def test_rows_are_neither_cut_nor_padded_by_a_tokenizer_that_does_both(tokenizer: Tokenizer) -> None:
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(8)
    cutting.enable_padding(length=4000)
    examples = [EXAMPLE, Example("Why?", "Because.", "So.")]
    assert encode_examples(examples, cutting, EOS, ARTICLE) == encode_examples(examples, tokenizer, EOS, ARTICLE)
    assert encode_example(EXAMPLE, cutting, EOS, ARTICLE) == encode_example(EXAMPLE, tokenizer, EOS, ARTICLE)
    assert cutting.truncation is not None
    assert cutting.padding is not None
