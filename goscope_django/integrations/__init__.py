"""Helpers for other packages, one module each. A module imports its package; nothing else imports the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(package: str, install: str) -> Iterator[None]:
    """Put around the imports of ``package``: if it is missing, the ``ModuleNotFoundError`` says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed; pip install {install!r}", name=error.name
        ) from error
