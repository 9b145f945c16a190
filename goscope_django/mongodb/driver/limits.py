"""Limits on how long anybody waits for the server. All are in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import pymongo

TIME_LIMIT: Final = 10.0
"""Seconds for one coordinating command, its retries and the choice of a server included, at most."""

LEAST_TIME_LIMIT: Final = 2.0
"""For such a command at least, even if ``serverSelectionTimeoutMS`` is less: its answer takes time as well."""

RANGE_LIMIT: Final = 3_600.0
"""Seconds for one command that removes a range of keys, which takes the server about 20 for each million, or that makes
an index of the cache."""


def time_limit(database: Any) -> float:
    """Seconds for one coordinating command: no longer than the client waits for a server, within the two bounds."""
    patience: float = database.client.options.server_selection_timeout
    return min(TIME_LIMIT, max(LEAST_TIME_LIMIT, patience))


@contextmanager
def within(seconds: float, *, urgent: bool = False) -> Iterator[None]:
    """What is sent in this block, sync or async, ends within ``seconds``, if need be by an error. Never extends.

    What is ``urgent`` goes before those who wait for one of this process's connections.
    """
    seconds = max(seconds, 0.001)
    bound = _end.set(min(_end.get(), time.monotonic() + seconds))
    first = _urgent.set(urgent or _urgent.get())
    try:
        with pymongo.timeout(seconds):
            yield
    finally:
        _urgent.reset(first)
        _end.reset(bound)


_end: Final[ContextVar[float]] = ContextVar("goscope_end", default=float("inf"))
_urgent: Final[ContextVar[bool]] = ContextVar("goscope_urgent", default=False)


def end() -> float:
    """When (monotonic) the innermost ``within`` ends; infinity outside of one."""
    return _end.get()


def urgent() -> bool:
    """Whether what is sent here goes before those who wait for a connection."""
    return _urgent.get()
