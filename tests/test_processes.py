"""Processes by the names that are kept of them on disk."""

import os
import subprocess
import sys

import psutil

from deepdoctor.processes import is_alive


def test_a_process_that_ended_and_was_not_awaited_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        found = [ended.pid, psutil.Process(ended.pid).create_time()]
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE
        assert not is_alive(found)
