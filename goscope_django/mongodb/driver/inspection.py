"""What operators ask about a server: whether it answers, its topology, version, clock and indexes.

Rule of this file: reads only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pymongo.errors import ExecutionTimeout, NetworkTimeout, PyMongoError, ServerSelectionTimeoutError

from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant
from goscope_django.mongodb.document.indexes import IndexState, check

Health = Literal["ok", "slow", "down"]
_SLOW_WORDS: Final = ("timed out", "NetworkTimeout")


@dataclass(frozen=True, slots=True)
class Probe:
    """``latency`` is in seconds, ``None`` where there was no answer; ``reason`` is a sentence for what is not
    ``ok``."""

    health: Health
    latency: float | None
    reason: str = ""


def ping(clock: Clock) -> Flow[float]:
    """One command to the primary; how many seconds it took."""
    began = time.monotonic()
    yield from ask("", "command", "ping")
    return time.monotonic() - began


def judged(error: BaseException, seconds: float) -> Probe:
    """The result of a ``ping`` that failed with ``error``; it had ``seconds``."""
    cause = error.__cause__ if isinstance(error.__cause__, PyMongoError) else error
    if isinstance(cause, (NetworkTimeout, ExecutionTimeout)) or (
        # A server that accepted the connection and did not answer can be told only by the text of this error.
        isinstance(cause, ServerSelectionTimeoutError)
        and any(word in str(cause) for word in _SLOW_WORDS)
        and "Name or service" not in str(cause)
    ):
        return Probe("slow", None, f"the server is there but did not answer within {seconds:g} seconds")
    return Probe("down", None, str(error))


Topology = Literal["replica set", "standalone", "sharded", "mongomock"]


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server as seen now. ``clock_offset`` is how many seconds this process's clock is ahead of the server's."""

    topology: Topology
    set_name: str | None
    primary: str | None
    members: tuple[str, ...]
    version: str
    clock_offset: float
    indexes: tuple[IndexState, ...]


def view(clock: Clock) -> Flow[ServerView]:
    """Two commands and one for each collection."""
    hello = yield from ask("", "command", "hello")
    found = instant(hello.get("localTime"))
    offset = (datetime.now(UTC) - found).total_seconds() if found else 0.0
    build = yield from ask("", "command", "buildInfo")
    indexes = yield from check(clock)
    topology: Topology = "standalone"
    if hello.get("setName"):
        topology = "replica set"
    elif hello.get("msg") == "isdbgrid":
        topology = "sharded"
    return ServerView(
        topology=topology,
        set_name=hello.get("setName"),
        primary=hello.get("primary") or hello.get("me"),
        members=tuple(hello.get("hosts", ())),
        version=str(build.get("version", "?")),
        clock_offset=offset,
        indexes=tuple(indexes),
    )


def mock_view(clock: Clock) -> Flow[ServerView]:
    """The same for mongomock, which has no server to ask."""
    indexes = yield from check(clock)
    return ServerView("mongomock", None, None, (), "mongomock", 0.0, tuple(indexes))
