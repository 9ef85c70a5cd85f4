"""The error family: every error has a message for the user and survives the pipe between engine and page."""

import errno
import io
import pickle
import sys

import pytest

from deepdoctor import errors
from deepdoctor.errors import AFTERWARDS, OUT_OF_MEMORY, ConfigError, DeepDoctorError, is_disk_full, is_out_of_memory, print_trace, told

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


@pytest.mark.parametrize("work", OUT_OF_MEMORY)
def test_memory_that_ran_out_is_told_by_what_was_being_done(work: str) -> None:
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 MiB.")
    of_cpu = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    )
    for each in (error, MemoryError(), of_cpu):
        assert is_out_of_memory(each)
        assert str(told(each, work)) == f"Out of memory while {work}. {OUT_OF_MEMORY[work]}"
    assert not is_out_of_memory(RuntimeError("CUDA error: out of luck"))


@pytest.mark.parametrize("work", AFTERWARDS)
def test_a_full_disk_is_told_with_what_to_do_whoever_says_it(work: str) -> None:
    behind = RuntimeError("Not saved")
    behind.__context__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    foreign = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    saving = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    closing = RuntimeError("basic_ios::clear: iostream error")
    for each in (OSError(errno.ENOSPC, "No space left on device"), behind, foreign, saving, closing):
        assert is_disk_full(each)
        assert str(told(each, work)) == f"The disk that holds runs is full. Free some space, then {AFTERWARDS[work]}"
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_a_traceback_that_cannot_be_printed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    try:
        raise ValueError("no")
    except ValueError:
        print_trace()


def test_words_for_the_user_stay_and_others_get_their_kind_and_where_to_look() -> None:
    mine = ConfigError("Steps: too many.", field="max_steps")
    assert told(mine) is mine
    assert str(told(ValueError("no"))) == "ValueError: no. Details are in engine.log in the data folder."


def test_the_field_is_optional() -> None:
    assert ConfigError("The configuration does not fit together.").field is None
