"""Small files in the folder of a private ``mongod``: what is read and written there, and never through a link.

Rule of this package: no file under one of our names is opened but by these functions and ``file_lock``. A link in its
place is an ``OSError`` that names it: it may lead to a file of another program, or of another user.
"""

from __future__ import annotations

import os
from pathlib import Path

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for ``os.open``: a link is an error, and a pipe is not waited for."""


def read(path: Path) -> str:
    """Return the text in a file. Raises ``OSError``."""
    with os.fdopen(os.open(path, os.O_RDONLY | NO_LINK), encoding="utf-8", errors="replace") as file:
        return file.read()


def write(path: Path, text: str = "") -> None:
    """Make the file hold this text, and be changed now. Raises ``OSError``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_LINK, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.utime(path, follow_symlinks=False)
