"""The near cache of a cache object, for tests that look into it."""

from __future__ import annotations

import time
from typing import Any

from goscope_django.cache.near import Near


def near_of(cache: Any) -> Near:
    """The near cache of ``cache``."""
    cache._backing.resolve()
    found: Near | None = cache._backing.near
    assert found is not None
    return found


def opened(cache: Any) -> Near:
    """The same, once its stream is open and has proved something."""
    near, deadline = near_of(cache), time.monotonic() + 30
    while near.stream.proof == float("-inf"):
        assert time.monotonic() < deadline, "no stream was opened"
        near.stream.used()
        time.sleep(0.005)
    return near
