"""What names a process on disk, and whether the one so named still runs."""

from collections.abc import Sequence

import psutil


def this_process() -> list[float]:
    """What names this process on disk: its number, and its start time, which tells it from a later one with the same number."""
    process = psutil.Process()
    return [process.pid, process.create_time()]


def is_alive(process: Sequence[float] | None) -> bool:
    """Whether a process named by `this_process` still runs; one that has ended and was not awaited does not."""
    if not process:
        return False
    try:
        pid, created = process
        found = psutil.Process(int(pid))
        return found.create_time() == created and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, TypeError, ValueError):
        return False
