"""The pretraining corpus: deterministic, in the asked voice, and free of held-out combinations."""

import numpy as np

from deepdoctor.nano.cases import SHOWCASE_QUESTION
from deepdoctor.nano.corpus import document, make_corpus, tokenizer_texts
from deepdoctor.nano.knowledge import load_conditions
from deepdoctor.nano.tokenizer import EOS, train_tokenizer
from deepdoctor.prompts import ARTICLE, NATIVE, render_question

CONDITIONS = load_conditions()


def test_corpus_is_the_documents_end_to_end():
    tokenizer = train_tokenizer(tokenizer_texts(40, 1), vocabulary=600)
    corpus = make_corpus(tokenizer, documents=25, seed=4)
    assert len(corpus) == 25
    assert corpus.lengths.sum() == len(corpus.ids)
    for index in range(25):
        _, prompt, completion = document(index, CONDITIONS, seed=4)
        ids = corpus.ids[corpus.starts[index] : corpus.starts[index + 1]].tolist()
        assert ids == tokenizer.encode(prompt + completion).ids
        assert tokenizer.decode(ids[corpus.prompts[index] :], skip_special_tokens=False) == completion


def test_half_the_documents_are_in_each_prompt_style():
    documents = [document(index, CONDITIONS, seed=1) for index in range(400)]
    native = sum(prompt == render_question(example.question, NATIVE) for example, prompt, _ in documents)
    article = sum(prompt == render_question(example.question, ARTICLE) for example, prompt, _ in documents)
    assert native + article == 400
    assert 160 < native < 240
    assert all(completion.endswith(EOS) for _, _, completion in documents)


def test_the_share_of_dataset_voice_is_what_was_asked_for():
    for share, low, high in ((0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)):
        examples = [document(index, CONDITIONS, 1, share)[0] for index in range(400)]
        assert low <= sum("Wait" not in example.reasoning for example in examples) <= high
        assert low <= sum("**" not in example.response for example in examples) <= high


def test_the_showcase_question_is_met_in_base_voice():
    examples = [document(index, CONDITIONS, seed=1)[0] for index in range(8000)]
    shown = [example for example in examples if example.question == SHOWCASE_QUESTION]
    assert shown
    assert all("**" in example.response and "no involuntary detrusor contractions" in example.response for example in shown)


def test_the_number_of_processes_changes_nothing():
    tokenizer = train_tokenizer(tokenizer_texts(40, 1), vocabulary=600)
    one, two = (make_corpus(tokenizer, documents=1020, seed=4, processes=processes) for processes in (1, 2))
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.starts, two.starts)
    assert np.array_equal(one.prompts, two.prompts)
