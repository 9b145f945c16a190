"""The near cache of a cache object, for tests that look into it."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from goscope_django.cache.near import Near
from goscope_django.core.flow import Query
from goscope_django.mongodb.cache.stream import ChangeStream
from goscope_django.mongodb.driver import written


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


def asked(flow: Generator[Any, Any, Any], answer: Any = None, primary: object = "primary") -> Query[Any]:
    """Go on with a flow that is run by hand, to the next query that is sent. ``StopIteration`` where there is none."""
    query = flow.send(answer)
    while True:
        assert isinstance(query, Query)
        if query.method != "known_primary":
            return query
        query = flow.send(primary)


class OpenStream(ChangeStream):
    """One that is open and proves all."""

    def __init__(self) -> None:
        super().__init__(lambda: None, "cache:")  # type: ignore[arg-type, return-value]
        self.generation, self.proof, self.served = 1, float("inf"), "primary"

    def used(self) -> None:
        pass


def forget_those_with_open_streams() -> None:
    """Near caches on an ``OpenStream`` are told of no more writes."""
    written.listeners = tuple(
        one for one in written.listeners if not isinstance(getattr(one, "stream", None), OpenStream)
    )
