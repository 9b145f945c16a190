"""What operators ask about a server: whether it answers, its topology, version, clock, indexes and what it can do.

Rule of this file: reads only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pymongo.errors import (
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant
from goscope_django.mongodb.document.failures import MISSING_RIGHTS, VERSIONS, means
from goscope_django.mongodb.document.indexes import IndexState, check
from goscope_django.mongodb.driver import capabilities
from goscope_django.mongodb.driver.capabilities import Finding

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
    """A server as seen now. ``clock_offset`` is how many seconds this process's clock is ahead of the server's.

    ``indexes`` is empty if the user may not list them; then ``findings`` says so.
    """

    topology: Topology
    set_name: str | None
    primary: str | None
    members: tuple[str, ...]
    version: str
    clock_offset: float
    indexes: tuple[IndexState, ...]
    findings: tuple[Finding, ...] = ()
    arbiters: tuple[str, ...] = ()


def _version(wire: int | None) -> Flow[str]:
    """The server's version; without the last number where it may not be asked for."""
    try:
        build = yield from ask("", "command", "buildInfo")
    except OperationFailure:  # it is outside of the Stable API
        return VERSIONS.get(wire or 0, "?")
    return str(build.get("version", "?"))


def _indexes(clock: Clock) -> Flow[tuple[IndexState, ...]]:
    """Their states; none if the user may not list them."""
    try:
        return tuple((yield from check(clock)))
    except OperationFailure as error:
        if not means(error, MISSING_RIGHTS):
            raise
        return ()


def view(clock: Clock, database: str, indexes: tuple[IndexState, ...] = ()) -> Flow[ServerView]:
    """Three commands and one for each collection, unless ``indexes`` are known. At first contact three more.

    Raises ``MissingRights`` for a user who may not read anything in ``database``.
    """
    hello = yield from ask("", "command", "hello")
    found, wire = instant(hello.get("localTime")), hello.get("maxWireVersion")
    moment = found or datetime.now(UTC)
    offset = (datetime.now(UTC) - moment).total_seconds()
    version = yield from _version(wire)
    lacking = yield from capabilities.rights(clock, database)
    indexes = indexes or (yield from _indexes(clock))
    topology: Topology = "standalone"
    if hello.get("setName"):
        topology = "replica set"
    elif hello.get("msg") == "isdbgrid":
        topology = "sharded"
    findings = [capabilities.ended(wire, version, moment.date()), lacking]
    if topology == "standalone":
        findings.append(capabilities.STANDALONE)
    else:
        findings.append((yield from capabilities.change_streams(clock)))
    try:
        findings.append((yield from capabilities.fitness(clock)))
    except OperationFailure as error:
        if lacking is None:
            findings.append(capabilities.not_told(error, database))
    if not indexes and lacking is None:
        findings.append(capabilities.unlisted(database))
    return ServerView(
        topology=topology,
        set_name=hello.get("setName"),
        primary=hello.get("primary") or hello.get("me"),
        members=tuple(hello.get("hosts", ())),
        version=version,
        clock_offset=offset,
        indexes=indexes,
        findings=tuple(one for one in findings if one is not None),
        arbiters=tuple(hello.get("arbiters", ())),
    )


def mock_view(clock: Clock, database: str = "") -> Flow[ServerView]:
    """The same for mongomock, which has no server to ask."""
    indexes = yield from check(clock)
    return ServerView("mongomock", None, None, (), "mongomock", 0.0, tuple(indexes))
