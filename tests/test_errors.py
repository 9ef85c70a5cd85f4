"""The error family: every error has a message for the user and survives the pipe between engine and page."""

import pickle

import pytest

from deepdoctor import errors
from deepdoctor.errors import ConfigError, DeepDoctorError

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DeepDoctorError)]


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_one_of_the_family_and_survives_the_pipe(kind: type[DeepDoctorError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("Choose another file.")))
    assert type(sent) is kind
    assert isinstance(sent, DeepDoctorError)
    assert str(sent) == "Choose another file."
    assert kind.__doc__


def test_a_config_error_keeps_its_field_across_the_pipe() -> None:
    sent = pickle.loads(pickle.dumps(ConfigError("Steps: too many.", field="max_steps")))
    assert (str(sent), sent.field) == ("Steps: too many.", "max_steps")


def test_the_field_is_optional() -> None:
    assert ConfigError("The configuration does not fit together.").field is None
