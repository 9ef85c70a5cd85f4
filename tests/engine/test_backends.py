"""The ways to load a base model, as far as they do without a GPU."""

from types import SimpleNamespace

import pytest

from deepdoctor.engine.backends import Transformers, Unsloth


def of_length(told: int) -> SimpleNamespace:
    """A model as Unsloth marks it: what it was told of stands on the inner one, which cuts off what is longer."""
    return SimpleNamespace(model=SimpleNamespace(max_seq_length=told))


def test_unsloth_is_told_of_a_longer_text_only_while_it_reads_that() -> None:
    model, found = of_length(8192), []

    def read() -> None:
        with Unsloth().reading(model, 9000):
            found.append(model.model.max_seq_length)
            raise MemoryError

    with pytest.raises(MemoryError):
        read()
    assert [*found, model.model.max_seq_length] == [9000, 8192]


@pytest.mark.parametrize("tokens", [1, 8192])
def test_a_text_that_fits_changes_nothing(tokens: int) -> None:
    model = of_length(8192)
    with Unsloth().reading(model, tokens):
        assert model.model.max_seq_length == 8192


def test_a_model_that_cuts_nothing_off_is_left_alone() -> None:
    model = SimpleNamespace(model=SimpleNamespace())
    for backend in (Unsloth(), Transformers()):
        with backend.reading(model, 9000):
            assert not vars(model.model)
