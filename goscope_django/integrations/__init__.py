"""Thin helpers for other packages. Each imports its package when it is imported itself, and nobody else imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(package: str, install: str) -> Iterator[None]:
    """Around the imports of ``package``: where it is missing, the ``ModuleNotFoundError`` says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed; pip install {install!r}", name=error.name
        ) from error
