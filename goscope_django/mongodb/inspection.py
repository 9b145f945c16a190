"""What an operator wants to know of a server: topology, version, clock, indexes.

Rule of this file: reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from goscope_django.mongodb.expressions import Clock, instant
from goscope_django.mongodb.flow import Flow, ask
from goscope_django.mongodb.indexes import IndexState, check

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
    """The same of mongomock, which has no server to ask."""
    indexes = yield from check(clock)
    return ServerView("mongomock", None, None, (), "mongomock", 0.0, tuple(indexes))
