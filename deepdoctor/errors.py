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


class Stopped(DeepDoctorError):
    """The user asked for the work to stop before there was anything to keep."""


class AccessError(DeepDoctorError):
    """The visitor may not do this here. The message says who may, and how to get the right."""


class StudyError(DeepDoctorError):
    """A study is missing, damaged, or in a state that does not allow what was asked."""
