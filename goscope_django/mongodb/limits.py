"""A bound on how long a piece of code may wait for the server."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pymongo


def within(seconds: float) -> AbstractContextManager[None]:
    """All that is sent inside (in either colour) ends within ``seconds``, at worst with an error. Can only shorten."""
    return pymongo.timeout(max(seconds, 0.001))
