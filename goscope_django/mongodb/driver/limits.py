"""Limits on how long anybody waits for the server. All are in seconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

import pymongo

TIME_LIMIT: Final = 10.0
"""Seconds for one coordinating command, its retries and the choice of a server included, at most."""

LEAST_TIME_LIMIT: Final = 2.0
"""For such a command at least, even if ``serverSelectionTimeoutMS`` is less: its answer takes time as well."""

RANGE_LIMIT: Final = 3_600.0
"""Seconds for one command that removes a range of keys, which takes the server about 20 for each million."""


def time_limit(database: Any) -> float:
    """Seconds for one coordinating command: no longer than the client waits for a server, within the two bounds."""
    patience: float = database.client.options.server_selection_timeout
    return min(TIME_LIMIT, max(LEAST_TIME_LIMIT, patience))


def within(seconds: float) -> AbstractContextManager[None]:
    """What is sent in this block, sync or async, ends within ``seconds``, if need be by an error. Never extends."""
    return pymongo.timeout(max(seconds, 0.001))
