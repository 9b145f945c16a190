"""Bounds on how long anybody waits for the server."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

import pymongo

TIME_LIMIT: Final = 10.0
"""Seconds for one coordinating command, its retries and the choice of a server included, at most."""

LEAST_TIME_LIMIT: Final = 2.0
"""What such a command gets even where ``serverSelectionTimeoutMS`` asks for less: its answer takes time, too."""

RANGE_LIMIT: Final = 3_600.0
"""Seconds for one command that removes a range of keys, which takes the server about 20 for each million."""


def time_limit(database: Any) -> float:
    """Seconds for one coordinating command: no longer than the client waits for a server, within the two bounds."""
    patience: float = database.client.options.server_selection_timeout
    return min(TIME_LIMIT, max(LEAST_TIME_LIMIT, patience))


def within(seconds: float) -> AbstractContextManager[None]:
    """All that is sent inside (in either colour) ends within ``seconds``, at worst with an error. Can only shorten."""
    return pymongo.timeout(max(seconds, 0.001))
