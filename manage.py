#!/usr/bin/env python3
"""Django's command line for the demo project."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    from django.core.management import execute_from_command_line

    from goscope_django.exceptions import GoscopeError

    try:
        execute_from_command_line(sys.argv)
    except GoscopeError as error:  # with FAIL_FAST: the server can't be reached, or there is no mongod
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
