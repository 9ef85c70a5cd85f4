"""The refresh: which conditions it teaches, how much of what it shows is about them, and that it learns."""

from argparse import Namespace
from collections import Counter
from dataclasses import replace

import torch

from deepdoctor.nano.build import new_model
from deepdoctor.nano.corpus import document, tokenizer_texts
from deepdoctor.nano.knowledge import load_conditions
from deepdoctor.nano.refresh import changed_since, emphasised, teach
from deepdoctor.nano.tokenizer import train_tokenizer

CONDITIONS = load_conditions()
KNOWN = {condition.name: condition.fingerprint for condition in CONDITIONS}


def test_only_conditions_whose_facts_changed_are_taught_again():
    assert changed_since(KNOWN, CONDITIONS) == []
    first, second, third, *rest = CONDITIONS
    mended = replace(first, treatment="something else")
    cited = replace(second, source="another book")
    new = replace(third, name="a new condition")
    assert changed_since(KNOWN, [mended, cited, new, *rest]) == [mended, new]


def test_about_half_of_what_is_shown_is_about_them():
    for many in (1, 5, 30):
        changed = CONDITIONS[:many]
        shown = emphasised(CONDITIONS, changed)
        names = {condition.name for condition in changed}
        documents = [document(index, shown, seed=1)[0].question for index in range(300)]
        share = sum(Counter(condition.name for condition in shown)[name] for name in names) / len(shown)
        assert 0.4 <= share <= 0.6
        assert len(set(documents)) > 250
    assert emphasised(CONDITIONS, CONDITIONS) == CONDITIONS * 2


def test_a_model_learns_what_it_is_shown(capsys):
    tokenizer = train_tokenizer(tokenizer_texts(40, 1), vocabulary=600)
    torch.manual_seed(1)
    model = new_model(tokenizer)
    arguments = Namespace(steps=6, batch=2, rate=1.5e-3, seed=1, device="cpu", dataset_voice=0.0, processes=1)
    training = teach(model, tokenizer, CONDITIONS[:1], arguments, started=0.0)
    first = float(capsys.readouterr().out.split("loss ")[1].split()[0])
    assert training.loss < first - 0.5
