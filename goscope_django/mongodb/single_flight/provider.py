"""The provider of flights: each method is one operation of ``flows``, sync and async."""

from __future__ import annotations

from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.single_flight.flows import FlightFlows, Pace, Published
from goscope_django.mongodb.single_flight.values import Entered, Terms


class MongoDBFlightProvider:
    """Flights on one store. One round trip each unless said."""

    def __init__(self, store: Store, *, key_prefix: str = "") -> None:
        self.store = store
        self.flows = FlightFlows(key_prefix)

    def stored(self, key: str) -> str:
        """The stored key. A result's pickle is signed with it, and the lease is renewed by it."""
        return self.flows.prefix + key

    def enter(self, key: str, terms: Terms, since: int | None, pace: Pace, deadline: float) -> Entered:
        """Lead the flight or wait for its result: see ``FlightFlows.enter``. One round trip for each look."""
        return self.store.run(self.flows.enter, key, terms, since, pace, deadline)

    async def aenter(self, key: str, terms: Terms, since: int | None, pace: Pace, deadline: float) -> Entered:
        """Async version of ``enter``."""
        return await self.store.arun(self.flows.enter, key, terms, since, pace, deadline)

    def publish(self, key: str, flight: Entered, kind: str, value: object, took: float, terms: Terms) -> Published:
        """Give ``value`` to the waiting callers. ``lost`` if another leads by now, ``too large`` if it does not fit."""
        return self.store.run(self.flows.publish, key, flight, kind, value, took, terms)

    async def apublish(
        self, key: str, flight: Entered, kind: str, value: object, took: float, terms: Terms
    ) -> Published:
        """Async version of ``publish``."""
        return await self.store.arun(self.flows.publish, key, flight, kind, value, took, terms)

    def abort(self, key: str, flight: Entered, terms: Terms) -> bool:
        """Give the lead back without a result: one that waits takes over. ``False`` if another leads by now."""
        return self.store.run(self.flows.abort, key, flight.claim or "", terms)

    async def aabort(self, key: str, flight: Entered, terms: Terms) -> bool:
        """Async version of ``abort``."""
        return await self.store.arun(self.flows.abort, key, flight.claim or "", terms)
