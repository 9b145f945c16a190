"""One call of a shared function. Decides what an outcome means to this caller, and what the other callers get.

Rule of this file: nothing here waits or talks to the server.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import connections

from goscope_django import runtime
from goscope_django.core.flow import Flow
from goscope_django.exceptions import StoreError, told
from goscope_django.http import requests, responses
from goscope_django.http.recording import Used
from goscope_django.http.requests import Caller
from goscope_django.http.values import Incomparable, is_ignored
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.single_flight.flows import FLIGHTS, MAX_BODY
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import Entered, Terms
from goscope_django.process import counters
from goscope_django.process.kept_lease import Renewable
from goscope_django.process.outage import Outage
from goscope_django.single_flight import errors
from goscope_django.single_flight.group import Entry, pause
from goscope_django.single_flight.memory import memory

logger = logging.getLogger("goscope.single_flight")
HEADER: Final = "X-Single-Flight"
MOST_READS: Final = 256
"""Names in a stored result. More were not stored by us."""
IN_EVERY_KEY: Final = frozenset(
    f"m:HTTP_{name.upper().replace('-', '_')}" for name in (*requests.NEGOTIATION, *requests.CONDITIONS)
)
"""What is part of each flight's key, so that its callers are alike in it anyhow."""
_providers: WeakKeyDictionary[MongoDBAdapter, MongoDBFlightProvider] = WeakKeyDictionary()
_took: dict[str, float] = {}
"""Seconds that each function took lately."""


class Bypass:
    """This caller gets nothing from the flight: it runs the function itself."""


BYPASS: Final = Bypass()


@dataclass(frozen=True, slots=True)
class Variant:
    """The outcome depends on something in which this caller differs.

    There may be another flight, of callers that are like this one.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Landed:
    """The outcome of a flight as data. ``kind`` is ``response``, ``value``, ``error`` or ``unshared``.

    ``value`` is what was stored. Of a view it is a document with ``reads``, the names of what the view read,
    ``digest``, a hash of the values, and ``is``, the outcome itself. Of a plain function it is the outcome.
    """

    kind: str
    value: Any
    took: float


def flights() -> MongoDBFlightProvider:
    """The flights of this project's adapter."""
    adapter = runtime.adapter()
    found = _providers.get(adapter)
    if found is None:
        found = MongoDBFlightProvider(adapter.store, key_prefix=adapter.key_prefix)
        found = _providers.setdefault(adapter, found)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One call. ``deadline`` is monotonic."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    request: Any
    caller: Caller | None
    name: str
    base: str
    key: str
    keyed: bool
    ignored: frozenset[str]
    provider: MongoDBFlightProvider
    terms: Terms
    deadline: float
    outage: Outage
    ignore: bool

    @property
    def place(self) -> tuple[int, str]:
        """What this process's callers of one flight have in common."""
        return id(self.provider), self.key

    def apart(self, names: Iterable[str] = ()) -> Flow[Plan]:
        """A flow: the plan for the flight of the callers like this one in ``names`` and in what the view read lately.

        Callers are kept together where that can't be compared: then the flight's own reads decide.
        """
        every = sorted({*names, *memory.names(self.name)}) if self.request is not None else []
        if not every:
            return self
        try:
            mine = yield from requests.read(self.request, self.base, every, self.ignored)
        except Incomparable:
            return self
        return replace(self, key=f"{self.base}:{mine}")

    def matches(self, landed: Landed) -> Flow[Variant | bool]:
        """A flow: whether this caller is like the leader in all that its view read; else a ``Variant`` or ``False``."""
        try:
            reads = tuple(_names(landed.value))
            if len(reads) > MOST_READS:
                return False
            if not reads:
                return True
            leaders = landed.value["digest"]
            mine = yield from requests.read(self.request, self.key, reads, self.ignored)
        except (Incomparable, KeyError, TypeError, ValueError, AttributeError):
            return False
        memory.learn(self.name, reads)
        return True if mine == leaders else Variant(reads)

    def renewable(self, flight: Entered) -> Renewable:
        """What to renew while this process leads."""
        stored = self.provider.stored(self.key)
        return Renewable(self.provider.store, FLIGHTS, stored, flight.claim or "", self.terms.lease, name="_id")

    def pace(self, entry: Entry) -> Callable[[float, float, int], float]:
        """When to look for the result."""
        expected, longest = _took.get(self.name), self.terms.linger / 3_000

        def pace(waited: float, flying: float, sent: int) -> float:
            return min(longest, pause(waited, flying, sent, entry.callers(), expected))

        return pace

    # For a caller that waited

    def accept(self, answer: Any, matching: Variant | bool = True) -> Any:
        """What to return for ``answer``: its value, ``BYPASS`` or a ``Variant``. Raises what the leader raised.

        ``matching`` is what ``matches`` gave.
        """
        if isinstance(answer, StoreError):
            if not self.ignore:
                raise type(answer)(str(answer)) from answer
            return BYPASS
        if not isinstance(answer, Landed):
            return BYPASS
        _took[self.name] = answer.took
        if answer.kind == "unshared" or matching is False:
            return BYPASS
        if isinstance(matching, Variant):
            return matching
        try:
            found = self._opened(answer.kind, answer.value)
        except Exception as error:  # noqa: BLE001 - whatever somebody has planted there
            logger.warning(
                "the result of flight %r can't be used, so the function runs again: %s", self.key, told(error)
            )
            return BYPASS
        counters.count("flights_joined")
        counters.count("flights_saved_ms", round(answer.took * 1_000))
        if answer.kind == "error":
            found.add_note(f"raised by the leader of the flight {self.key!r}")
            raise found
        return found

    def _opened(self, kind: str, value: Any) -> Any:
        names: list[str] = []
        either = False
        if self.request is not None:
            names, either, value = _names(value), bool(value.get("used")), value["is"]
        if kind == "error":
            found: Any = errors.unpack(value)
        elif kind == "value":
            found = runtime.codec().of(FLIGHTS).decode(self.provider.stored(self.key), copy.deepcopy(value))
        elif kind == "response":
            found = responses.unpack(value)
            found.headers[HEADER] = "follower"
        else:
            raise ValueError(f"{kind!r:.40} is no kind of result")
        if self.request is not None:
            requests.adopt(self.request, names, either=either)
        return found

    # For the leader

    def land(self, result: Any, used: Used | None, took: float) -> Flow[Landed]:
        """A flow: the outcome of a call that returned ``result``."""
        _took[self.name] = took
        counters.flights.note(self.name, counters.TIME, took)
        try:
            if used is None or self.caller is None:
                return Landed("value", self._stored(result), took)
            response = responses.is_response(result)
            if response:
                why = responses.why_private(self.request, result, self.caller, used)
            else:
                why = responses.why_bound(self.request, self.caller, used)
            if why is not None:
                return self._unshared(why, took)
            seen = yield from self._reads(used, responses.vary_on(result) if response else ())
            value = responses.pack(result) if response else self._stored(result)
            if response and responses.size(value) > MAX_BODY:
                return self._unshared("size", took)
            return Landed("response" if response else "value", {"is": value, **seen}, took)
        except Incomparable as error:
            return self._unshared(f"{error.args[0]} can't be compared", took)
        except Exception as error:  # noqa: BLE001 - whatever encoding or pickling the user's objects may raise
            logger.warning("what %s returns can't be shared: %s", self.name, told(error))
            return Landed("unshared", None, took)

    def _stored(self, result: Any) -> Any:
        # A copy: what the function gave is its caller's, to change at once.
        return copy.deepcopy(runtime.codec().of(FLIGHTS).encode(self.provider.stored(self.key), result))

    def _unshared(self, why: str, took: float) -> Landed:
        memory.unshared(self.name, why)
        return Landed("unshared", None, took)

    def _reads(self, used: Used, vary: Iterable[str] = ()) -> Flow[dict[str, Any]]:
        """A flow: what the view read, with a hash of the values. Raises ``Incomparable``."""
        left_out = IN_EVERY_KEY | ({"body", "GET"} if self.keyed else {"m:QUERY_STRING", "s:query_string"})
        if self.caller is not None and self.caller.user is not None and not self.caller.given:
            left_out |= {"user"}
        names = {name for name in used.reads - left_out if not is_ignored(name, self.ignored)}
        names |= {f"m:HTTP_{name.upper().replace('-', '_')}" for name in vary}
        memory.learn(self.name, names)
        mine = yield from requests.read(self.request, self.key, names, self.ignored, used)
        return {"reads": sorted(names), "digest": mine, "used": used.either}

    def failed(self, error: Exception, used: Used | None, took: float) -> Flow[Landed]:
        """A flow: the outcome of a call that raised ``error``."""
        counters.count("flights_led")
        counters.flights.note(self.name, counters.TIME, took)
        if used is None or self.caller is None:
            return Landed("error", errors.pack(error), took)
        why = responses.why_bound(self.request, self.caller, used)
        if why is None and responses.refuses(error) and not self.caller.known:
            why = "refused"
        if why is not None:
            return self._unshared(why, took)
        try:
            seen = yield from self._reads(used)
        except Incomparable as found:
            return self._unshared(f"{found.args[0]} can't be compared", took)
        return Landed("error", {"is": errors.pack(error), **seen}, took)

    def doomed(self, landed: Landed) -> bool:
        """Whether it is a failure whose transaction will be rolled back anyhow: then there is no commit to wait for."""
        failure = landed.kind == "response" and landed.value["is"]["status"] >= 400
        return failure and any(
            one.in_atomic_block and one.needs_rollback for one in connections.all(initialized_only=True)
        )

    def published(self, said: object, landed: Landed) -> Landed:
        """What this process's waiters get. ``said``: what publishing ``landed`` returned or raised."""
        if said == "published":
            return landed
        if said == "lost":
            logger.warning(
                "flight %r was lost while its function ran; another one leads, this result is dropped", self.key
            )
            return landed
        why = told(said) if isinstance(said, BaseException) else said
        logger.warning("the result of flight %r can't be stored, so it is not shared: %s", self.key, why)
        return Landed("unshared", None, landed.took)

    # While MongoDB can't be reached

    def skips(self) -> bool:
        """Whether MongoDB is known to be out of reach, and that is to be ignored."""
        return self.ignore and self.outage.skips()

    def without_server(self, error: StoreError) -> Bypass:
        """MongoDB could not be reached: go on without it, or raise ``error``."""
        if not self.ignore:
            raise error
        self.outage.failed(error)
        return BYPASS

    def not_published(self, error: StoreError) -> None:
        """The outcome could not be published: other processes wait for the end of the lease."""
        if self.ignore:
            self.outage.failed(error)
        logger.warning("the end of flight %r could not be told: %s", self.key, error)


def _names(value: Any) -> list[str]:
    """The names in what a leader published. Raises ``TypeError`` or ``KeyError`` for what no leader publishes."""
    names = value["reads"]
    if type(names) is not list or not all(type(name) is str for name in names):
        raise TypeError("not the names that a view read")
    return names


def marked(result: Any, role: str, plan: Plan | None) -> Any:
    """``result``, with a header that says what part its caller had. Counts it."""
    if plan is not None:
        counters.count("flights_led" if role == "leader" else "flights_bypassed")
    if responses.is_response(result):
        result.headers[HEADER] = role
    return result
