"""One call of a shared function. Decides what an outcome means to this caller, and what the other callers get.

Rule of this file: nothing here waits or talks to the server.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import connections

from goscope_django import runtime
from goscope_django.exceptions import GoscopeError, StoreError
from goscope_django.http import requests, responses
from goscope_django.http.requests import Caller, Used
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.single_flight.flows import FLIGHTS, MAX_BODY
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import Entered, Terms
from goscope_django.process import counters
from goscope_django.process.kept_lease import Renewable
from goscope_django.process.outage import Outage
from goscope_django.single_flight import errors
from goscope_django.single_flight.group import Entry, pause

logger = logging.getLogger("goscope.single_flight")
HEADER: Final = "X-Single-Flight"
_providers: WeakKeyDictionary[MongoDBAdapter, MongoDBFlightProvider] = WeakKeyDictionary()
_took: dict[str, float] = {}
"""Seconds that each function took lately."""


class Bypass:
    """This caller gets nothing from the flight: it runs the function itself."""


BYPASS: Final = Bypass()


@dataclass(frozen=True, slots=True)
class Variant:
    """The response depends on headers that this caller sent with other values.

    There may be another flight, of callers that sent the same as this one.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Landed:
    """The outcome of a flight as data. ``kind`` is ``response``, ``value``, ``error`` or ``unshared``."""

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
    key: str
    provider: MongoDBFlightProvider
    terms: Terms
    deadline: float
    outage: Outage
    ignore: bool

    @property
    def place(self) -> tuple[int, str]:
        """What this process's callers of one flight have in common."""
        return id(self.provider), self.key

    def variant(self, variant: Variant) -> Plan:
        """The plan for the flight of the callers that sent the same headers as this one."""
        values = requests.header_values(self.request, variant.names)
        return replace(self, key=f"{self.key}:{requests.identity(*variant.names, *values)}")

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

    def accept(self, answer: Any) -> Any:
        """What to return for ``answer``: its value, ``BYPASS`` or a ``Variant``. Raises what the leader raised."""
        if isinstance(answer, StoreError):
            if not self.ignore:
                raise type(answer)(str(answer)) from answer
            return BYPASS
        if not isinstance(answer, Landed):
            return BYPASS
        _took[self.name] = answer.took
        if answer.kind == "unshared":
            return BYPASS
        try:
            found = self._opened(answer)
        except (GoscopeError, KeyError, TypeError, ValueError, IndexError) as error:
            logger.warning("the result of flight %r can't be used, so the function runs again: %s", self.key, error)
            return BYPASS
        if isinstance(found, Variant):
            return found
        counters.count("flights_joined")
        counters.count("flights_saved_ms", round(answer.took * 1_000))
        if answer.kind == "error":
            found.add_note(f"raised by the leader of the flight {self.key!r}")
            raise found
        return found

    def _opened(self, landed: Landed) -> Any:
        if landed.kind == "error":
            return errors.unpack(landed.value)
        if landed.kind == "value":
            return runtime.codec().decode(self.provider.stored(self.key), copy.deepcopy(landed.value))
        names = tuple(landed.value["vary"])
        if names and requests.identity(*requests.header_values(self.request, names)) != landed.value["varied"]:
            return Variant(names)
        response = responses.unpack(landed.value["response"])
        session = getattr(requests.plain(self.request), "session", None)
        if landed.value["used"] and session is not None:
            session.accessed = True  # so that Django says Vary: Cookie, as it does for the leader
        response.headers[HEADER] = "follower"
        return response

    # For the leader

    def land(self, result: Any, used: Used | None, took: float) -> Landed:
        """The outcome of a call that returned ``result``."""
        _took[self.name] = took
        try:
            if used is not None and self.caller is not None and responses.is_response(result):
                return self._landed_response(result, self.caller, used, took)
            if self._bound(used):
                return Landed("unshared", None, took)
            stored = runtime.codec().encode(self.provider.stored(self.key), result)
            # A copy: what the function gave is its caller's, to change at once.
            return Landed("value", copy.deepcopy(stored), took)
        except Exception as error:  # noqa: BLE001 - whatever encoding or pickling the user's objects may raise
            logger.warning("what %s returns can't be shared: %s", self.name, error)
            return Landed("unshared", None, took)

    def _landed_response(self, response: Any, caller: Caller, used: Used, took: float) -> Landed:
        why = responses.why_private(self.request, response, caller, used)
        packed = responses.pack(response) if why is None else {}
        if why is None and responses.size(packed) > MAX_BODY:
            why = "size"
        if why is not None:
            logger.debug("the response of %s is not shared: %s", self.name, why)
            return Landed("unshared", None, took)
        names = responses.vary_on(response)
        if responses.found_out(caller, used):
            # Everybody may send the same Authorization, as to a site that is not public yet.
            names = tuple(sorted({"cookie", *names, *responses.credential_headers(self.request)}))
        varied = requests.identity(*requests.header_values(self.request, names))
        value = {"response": packed, "vary": list(names), "varied": varied, "used": used.either}
        return Landed("response", value, took)

    def _bound(self, used: Used | None) -> bool:
        """Whether an exception, or a result that is no response, may be meant for this caller alone."""
        if used is None or self.caller is None:
            return False
        bound = responses.why_bound(self.request, self.caller, used)
        return bool(bound or (responses.found_out(self.caller, used) and responses.credential_headers(self.request)))

    def failed(self, error: Exception, used: Used | None, took: float) -> Landed:
        """The outcome of a call that raised ``error``."""
        counters.count("flights_led")
        if self._bound(used):
            return Landed("unshared", None, took)
        return Landed("error", errors.pack(error), took)

    def doomed(self, landed: Landed) -> bool:
        """Whether it is a failure whose transaction will be rolled back anyhow: then there is no commit to wait for."""
        failure = landed.kind == "response" and landed.value["response"]["status"] >= 400
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
        logger.warning("the result of flight %r can't be stored, so it is not shared: %s", self.key, said)
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


def marked(result: Any, role: str, plan: Plan | None) -> Any:
    """``result``, with a header that says what part its caller had. Counts it."""
    if plan is not None:
        counters.count("flights_led" if role == "leader" else "flights_bypassed")
    if responses.is_response(result):
        result.headers[HEADER] = role
    return result
