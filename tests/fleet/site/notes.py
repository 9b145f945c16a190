"""What happened in the fleet, as lines of JSON in one file that all processes append to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def path() -> Path:
    return Path(os.environ["SITE_FOLDER"]) / "notes.jsonl"


def note(what: str, **details: Any) -> None:
    """Write a line down. Short lines that are appended in one call don't mix."""
    line = json.dumps({"what": what, "pid": os.getpid(), "time": time.time(), **details}) + "\n"
    descriptor = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
