"""Processes by the names that are kept of them on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deepdoctor.processes import is_alive, this_process

needs_ticks = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process started without a clock")


@needs_ticks
def test_a_clock_that_is_set_does_not_make_a_living_process_look_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, started = this_process(), psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _self: started - 3600)
    assert is_alive(kept)


def test_a_later_process_with_the_same_number_is_another_one() -> None:
    pid, started, *boot = this_process()
    assert is_alive([pid, started, *boot])
    assert isinstance(started, int | float)
    assert not is_alive([pid, started - 1, *boot])


@needs_ticks
def test_a_process_of_before_the_machine_was_started_again_is_not_alive() -> None:
    pid, started, boot = this_process()
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert not is_alive([pid, started, "00000000-0000-0000-0000-000000000000"])


def test_what_earlier_versions_kept_is_read() -> None:
    pid, started = os.getpid(), psutil.Process().create_time()
    assert is_alive([pid, started])
    assert not is_alive([pid, started - 1])


def test_a_process_that_ended_is_not_alive_even_if_it_was_not_awaited() -> None:
    told = "import json; from deepdoctor.processes import this_process; print(json.dumps(this_process()))"
    with subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True) as ended:
        assert ended.stdout is not None
        earlier = [ended.pid, psutil.Process(ended.pid).create_time()]
        kept = json.loads(ended.stdout.read())
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE
        assert (kept[0], is_alive(kept), is_alive(earlier)) == (ended.pid, False, False)
    assert (is_alive(kept), is_alive(earlier)) == (False, False)
