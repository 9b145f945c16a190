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
    """End this process when ``make`` is gone. Killed by SIGKILL, it can't tell the server that it started."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
