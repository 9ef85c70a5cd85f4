"""The error family: whatever goes wrong in a way the user can mend is one of these, and its message is what the user reads."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import suppress


class DeepDoctorError(Exception):
    """Base of all errors whose message is written for the user: what happened, and what to do."""


class ConfigError(DeepDoctorError):
    """A setting is unknown, out of bounds, or does not fit another one. `field` names the setting, if one is to blame."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class DatasetError(DeepDoctorError):
    """Rows could not be read, or are not usable for training. The message names row and column where there is one."""


class RunError(DeepDoctorError):
    """A run's folder is missing, damaged, or in a state that does not allow what was asked."""


class ModelError(DeepDoctorError):
    """A model or adapter could not be loaded, or does not fit."""


class ProofError(DeepDoctorError):
    """The proof that base is base and tuned is tuned does not hold; the pair must not be shown."""


class EngineError(DeepDoctorError):
    """The engine process is busy, stopped, or has died."""


OUT_OF_MEMORY = {
    "answering": "Shorten the question, lower the longest answer, or ask again when fewer comparisons are being written.",
    "exporting": "Export without the merged model, or free some memory first.",
    "preparing": "Lower the study's longest answer; what is written stays, and preparing goes on from there.",
    "loading": "Choose a smaller model, or 4 bits.",
    "training": "Lower the batch size or the longest row, or choose 4-bit precision.",
}

# a limit on the size of files or of what one user may keep ends a write as a full disk does
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# libraries that are not written in Python hand on the system's words only; PyTorch, when it saves, only that it stands at the wrong place,
# or that what it wrote cannot be closed
NO_ROOM = ("No space left on device", "] . unexpected pos ", "basic_ios::clear: iostream error")
FULL = "The disk that holds runs is full. Free some space, then"
# what to do then, by what was being done
AFTERWARDS = {
    "answering": "try again.",
    "exporting": "export again.",
    "preparing": "prepare the answers again to go on.",
    "loading": "load the model again.",
    "training": "resume the run.",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the GPU's (as torch tells it) or the machine's (for which torch has no error of its own)."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    return isinstance(error, MemoryError) or of_torch


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk had no room left: said by the error itself, or by one that led to it."""
    return any(
        (isinstance(each, OSError) and each.errno in DISK_FULL) or any(said in str(each) for said in NO_ROOM) for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def print_trace() -> None:
    """Print the traceback of the error being handled; where its log lies on a full disk, leave it out."""
    with suppress(OSError, ValueError):
        traceback.print_exc()


def told(error: Exception, work: str = "answering") -> DeepDoctorError:
    """Any error in words for the user; of memory or a disk that ran out with what to do. `work`: what was being done, see OUT_OF_MEMORY."""
    if isinstance(error, DeepDoctorError):
        return error
    if is_out_of_memory(error):
        return EngineError(f"Out of memory while {work}. {OUT_OF_MEMORY[work]}")
    if is_disk_full(error):
        return EngineError(f"{FULL} {AFTERWARDS[work]}")
    return EngineError(f"{type(error).__name__}: {error}. Details are in engine.log in the data folder.")


class Stopped(DeepDoctorError):
    """The user asked for the work to stop before there was anything to keep."""


class AccessError(DeepDoctorError):
    """The visitor may not do this here. The message says who may, and how to get the right."""


class StudyError(DeepDoctorError):
    """A study is missing, damaged, or in a state that does not allow what was asked."""
