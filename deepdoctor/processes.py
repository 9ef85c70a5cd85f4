"""What names a process on disk, and whether the one so named still runs."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
# place of the start among what /proc/<pid>/stat tells behind the name, which may hold anything
START = 19

Named = Sequence[float | str]


def this_process() -> list[float | str]:
    """What names this process on disk: its number, and its start, which tells it from a later one with the same number.

    On Linux the start is told in ticks since the machine was started, and with a name for that: when a clock is set, neither changes.
    Elsewhere it is a time.
    """
    pid = os.getpid()
    try:
        return [pid, *_since_boot(pid)]
    except OSError:
        return [pid, psutil.Process().create_time()]


def is_alive(process: Named | None) -> bool:
    """Whether a process named by `this_process` still runs; one that has ended and was not awaited does not."""
    if not process:
        return False
    try:
        pid, *start = process
        found = psutil.Process(int(pid))
        same = start == (_since_boot(found.pid) if len(start) == 2 else [found.create_time()])
        return same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, OSError, TypeError, ValueError):
        return False


def _since_boot(pid: int) -> list[float | str]:
    """When a process started, in ticks since the machine did, and what names the latter. Raises OSError where that is not told."""
    told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    return [int(told.split()[START]), BOOT.read_text(encoding="ascii").strip()]
