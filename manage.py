#!/usr/bin/env python3
"""Django's command line for the demo project."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    parent = os.environ.pop("DEMO_PARENT", "")
    if parent:
        threading.Thread(target=_end_with, args=[int(parent)], name="demo-parent", daemon=True).start()
    from django.core.management import execute_from_command_line

    from goscope_django.exceptions import GoscopeError

    try:
        execute_from_command_line(sys.argv)
    except GoscopeError as error:  # with FAIL_FAST: the server can't be reached, or there is no mongod
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def _end_with(parent: int) -> None:
    """End this process when ``make`` is gone. Killed by SIGKILL, it can't tell the server that it started.

    On SIGHUP it only stops to catch that signal, and waits for this process: a terminal would tell both.
    """
    before = _caught(parent, signal.SIGHUP)
    while os.getppid() == parent and _caught(parent, signal.SIGHUP) == before:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _caught(pid: int, number: int) -> bool:
    """Whether a process catches a signal, where the system tells."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            mask = next(line for line in status if line.startswith("SigCgt:")).split()[1]
    except (OSError, StopIteration):
        return False
    return bool(int(mask, 16) >> (number - 1) & 1)


if __name__ == "__main__":
    main()
