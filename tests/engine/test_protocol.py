"""Requests that could not be answered are refused where they are made."""

import pytest

from deepdoctor.engine.adapters import SELECTED_AT_MOST
from deepdoctor.engine.protocol import ALSO_AT_MOST, LONGEST_QUESTION, Compare
from deepdoctor.errors import ConfigError


def test_as_many_checkpoints_can_be_asked_as_adapters_stay_attached() -> None:
    asked = Compare("Why?", "run", None, also=tuple(range(ALSO_AT_MOST)))
    assert len({asked.step, *asked.also}) == SELECTED_AT_MOST
    assert Compare("Why?", "run").also == ()


@pytest.mark.parametrize(
    ("step", "also", "words"),
    [
        (None, (1, 2, 3, 4), "At most 3 further checkpoints"),
        (20, (20,), "must be another one than the tuned side"),
        (None, (20, None), "must be another one than the tuned side"),
        (None, (20, 20), "each is named once"),
    ],
)
def test_too_many_checkpoints_or_one_twice_are_refused(step: int | None, also: tuple[int | None, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Compare("Why?", "run", step, also=also)


def test_a_question_that_no_model_could_read_is_refused() -> None:
    assert Compare("?" * LONGEST_QUESTION, "run").run == "run"
    with pytest.raises(ConfigError, match=r"The question has 100,001 characters, and at most 100,000 can be asked\.") as caught:
        Compare("?" * (LONGEST_QUESTION + 1), "run")
    assert caught.value.field == "question"
