"""Stopping a process for a while, so that it surely does nothing from then on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def freeze(pid: int) -> None:
    """SIGSTOP ``pid`` and return when each of its threads has stopped: the signal alone takes its time to arrive."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while not _stopped(pid):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.005)


def _stopped(pid: int) -> bool:
    states = []
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(status.read_text().rpartition(")")[2].split()[0])
        except OSError:  # the thread has ended meanwhile
            continue
    return all(state in "TtZX" for state in states)
