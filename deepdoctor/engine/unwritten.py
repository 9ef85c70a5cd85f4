"""How runs and studies ended, where the disk refused to take it: kept, and written once there is room. Torch-free."""

import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from deepdoctor.errors import DeepDoctorError
from deepdoctor.runs import Run
from deepdoctor.studies.study import Study

TRY_EVERY = 2.0


class End(NamedTuple):
    """What is to be written into a status, and the status it was found in."""

    of: Run | Study
    found: dict[str, Any]
    changes: dict[str, Any]


class Unwritten:
    """Writes how runs and studies ended. It never raises: what cannot be written is kept for `again`."""

    def __init__(self, every: float = TRY_EVERY) -> None:
        self.every = every
        self._kept: list[End] = []
        self._next = 0.0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._kept)

    @property
    def told(self) -> str:
        """What is still to be written, in words; "" if nothing is."""
        with self._lock:
            ends = list(self._kept)
        with suppress(DeepDoctorError):
            return " ".join(f"{end.of.name}: {end.changes['message']} The disk refuses to keep this; it is tried again." for end in ends)
        return ""

    def write(self, of: Run | Study, state: str, message: str, **also: Any) -> None:
        """Write into the status of a run or study that it ended like this, and of a run into its log."""
        with suppress(DeepDoctorError), self._lock:  # one whose folder is gone or damaged ends without
            self._write(End(of, of.status, {"state": state, "message": message, **also}))

    def again(self) -> None:
        """Try once more, at most every few seconds; what has got another status meanwhile is left alone."""
        with self._lock:
            if not self._kept or time.monotonic() < self._next:
                return
            ends, self._kept = self._kept, []
            for end in ends:
                with suppress(DeepDoctorError):
                    if end.of.status == end.found:
                        self._write(end)

    def _write(self, end: End) -> None:
        try:
            end.of.set_status(**end.changes)
        except OSError:
            self._kept.append(end)
            self._next = time.monotonic() + self.every
            return
        if isinstance(end.of, Run):
            with suppress(OSError):
                end.of.log(f"{end.changes['state'].capitalize()}: {end.changes['message']}")
