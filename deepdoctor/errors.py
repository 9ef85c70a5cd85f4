"""The error family: whatever goes wrong in a way the user can mend is one of these, and its message is what the user reads."""


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
    "answering": "Lower the longest answer, or ask again when fewer comparisons are being written.",
    "exporting": "Export without the merged model, or free some memory first.",
    "preparing": "Lower the study's longest answer; what is written stays, and preparing goes on from there.",
    "loading": "Choose a smaller model, or 4 bits.",
    "training": "Lower the batch size or the longest row, or choose 4-bit precision.",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the GPU's (as torch tells it) or the machine's (for which torch has no error of its own)."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    return isinstance(error, MemoryError) or of_torch


def told(error: Exception, work: str = "answering") -> DeepDoctorError:
    """Any error in words for the user; of memory that ran out with what to do about it. `work`: what was being done, see OUT_OF_MEMORY."""
    if isinstance(error, DeepDoctorError):
        return error
    if is_out_of_memory(error):
        return EngineError(f"Out of memory while {work}. {OUT_OF_MEMORY[work]}")
    return EngineError(f"{type(error).__name__}: {error}. Details are in engine.log in the data folder.")


class Stopped(DeepDoctorError):
    """The user asked for the work to stop before there was anything to keep."""


class AccessError(DeepDoctorError):
    """The visitor may not do this here. The message says who may, and how to get the right."""


class StudyError(DeepDoctorError):
    """A study is missing, damaged, or in a state that does not allow what was asked."""
