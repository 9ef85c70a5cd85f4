"""A full disk without one: runs whose status cannot be written, and processes that can write to no file, or to none beyond a size."""

import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepdoctor.engine.client import EngineClient
from deepdoctor.runs import Run, Runs

needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of another process")


class RefusedRun(Run):
    """A run that keeps no status while `<data>/full` is there."""

    def set_status(self, **changes: Any) -> None:
        """The status, or no space for it."""
        if (self.path.parents[1] / "full").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        super().set_status(**changes)


class RefusedRuns(Runs):
    """Runs on such a disk."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.full = data_dir / "full"
        self.full.touch()

    def list(self) -> list[Run]:
        """All of them."""
        return [RefusedRun(run.path) for run in super().list()]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk, writing more than `size` bytes into a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_room(client: EngineClient) -> Iterator[None]:
    """The engine process can meanwhile write to no file, its log among them; pipes go on."""
    engine = psutil.Process(client.pid)
    before = engine.rlimit(psutil.RLIMIT_FSIZE)
    engine.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        if engine.is_running():
            engine.rlimit(psutil.RLIMIT_FSIZE, before)
