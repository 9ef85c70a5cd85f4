"""The build's own pieces: what a batch weighs, and that a model learns and is saved so that it loads again."""

from argparse import Namespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from deepdoctor.nano.build import PROMPT_WEIGHT, batch_of, batches, new_model, pretrain, save_model
from deepdoctor.nano.corpus import Corpus, make_corpus, tokenizer_texts
from deepdoctor.nano.tokenizer import VOCABULARY, train_tokenizer

TOY = Corpus(ids=np.array([0, 5, 6, 7, 1, 0, 8, 1], dtype=np.int16), starts=np.array([0, 5, 8]), prompts=np.array([3, 1]))


def test_a_batch_weighs_answers_fully_prompts_lightly_and_padding_not_at_all():
    ids, weights = batch_of(TOY, np.array([0, 1]), pad=2)
    assert ids.shape == weights.shape == (2, 33)
    assert ids[0, :6].tolist() == [0, 5, 6, 7, 1, 2]
    assert torch.allclose(weights[0, :6], torch.tensor([0, PROMPT_WEIGHT, PROMPT_WEIGHT, 1, 1, 0]))
    assert torch.allclose(weights[1, :4], torch.tensor([0.0, 1, 1, 0]))
    assert weights[:, 6:].sum() == 0


def test_an_epoch_shows_every_document_once():
    shown = batches(TOY, 1, np.random.default_rng(0))
    assert sorted(np.concatenate(shown).tolist()) == [0, 1]


def test_training_lowers_the_loss_and_the_saved_model_loads_again(tmp_path, capsys):
    tokenizer = train_tokenizer(tokenizer_texts(40, 1), vocabulary=600)
    corpus = make_corpus(tokenizer, documents=8, seed=1)
    torch.manual_seed(1)
    model = new_model(tokenizer)
    training = pretrain(model, corpus, Namespace(steps=6, batch=2, rate=1.5e-3, seed=1, device="cpu"), started=0.0)
    first = float(capsys.readouterr().out.split("loss ")[1].split()[0])
    assert training.loss < first - 0.5
    save_model(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert again.generation_config.eos_token_id == again.config.eos_token_id == 1
    assert torch.equal(again.float().lm_head.weight, model.lm_head.weight.to(torch.bfloat16).float())


def test_the_full_vocabulary_fits_ten_megabytes():
    tokenizer = train_tokenizer(tokenizer_texts(10, 1), vocabulary=600)
    model = new_model(tokenizer)
    grown = model.num_parameters() + (VOCABULARY - 600) * model.config.hidden_size
    assert grown <= 4_900_000
