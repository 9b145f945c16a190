"""Circuit states in ``go_goscope_circuit``, as other packages share them: state, count and times.

Every recording is one pipeline update, so that no failure is ever lost to a race. A recording that changes the state is
a move like those of a circuit breaker (``breakers``): it gets a generation and stands in the history.
"""

from __future__ import annotations

from typing import Any, Final

from pymongo import ReturnDocument

from goscope_django.contracts import CircuitBreakerState
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, Query, ask
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.circuits.document import FAILURE_COUNT, STATE, all_of, move, state_of, whole
from goscope_django.mongodb.circuits.table import MOVES, Move
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, named, prefix_range
from goscope_django.mongodb.document.lease import new_claim, upsert
from goscope_django.mongodb.driver.store import Store

CIRCUITS: Final = "go_goscope_circuit"


def shared(document: dict[str, Any]) -> CircuitBreakerState:
    """The shared part of a document. What another writer left odd reads as a closed circuit."""
    return CircuitBreakerState(
        state=state_of(document),
        failure_count=whole(document.get("failureCount")),
        last_failure_time=instant(document.get("lastFailureTime")),
        last_success_time=instant(document.get("lastSuccessTime")),
    )


class CircuitFlows:
    """The operations of one prefix, as flows."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}circuit:"

    def _change(self, clock: Clock, key: str, *stages: dict[str, Any]) -> Flow[dict[str, Any]]:
        """One command: each stage's fields (expressions) are set in the document, which is made if it is missing."""
        full = self.prefix + key
        first = named(full)
        update = [{"$set": fields} for fields in (first, *stages, {"updatedAt": clock.now()})]

        def query() -> Query[dict[str, Any]]:
            return Query(
                CIRCUITS,
                "find_one_and_update",
                {"key": full},
                update,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )

        found: dict[str, Any] = yield from upsert(clock, query)
        return found

    def get_state(self, clock: Clock, key: str) -> Flow[CircuitBreakerState | None]:
        found = yield from ask(CIRCUITS, "find_one", {"key": self.prefix + key})
        return shared(found) if found else None

    def set_state(self, clock: Clock, key: str, state: CircuitBreakerState) -> Flow[None]:
        opening: dict[str, Any] = {"openedAt": state.last_failure_time or clock.now()} if state.state == "open" else {}
        moved = move(clock, {"$ne": [STATE, state.state]}, Move(state.state, "set"), new_claim(), **opening)
        fields: dict[str, Any] = {
            "state": state.state,
            "failureCount": state.failure_count,
            "lastFailureTime": state.last_failure_time,
            "lastSuccessTime": state.last_success_time,
        }
        yield from self._change(clock, key, moved, fields)

    def record_failure(self, clock: Clock, key: str, max_failures: int) -> Flow[int]:
        counted = {"failureCount": {"$add": [FAILURE_COUNT, 1]}, "state": STATE, "lastFailureTime": clock.now()}
        full = all_of({"$ne": [STATE, "open"]}, {"$gte": [FAILURE_COUNT, max_failures]})
        moved = move(clock, full, MOVES["closed", "threshold"], new_claim())
        return whole((yield from self._change(clock, key, counted, moved))["failureCount"])

    def record_success(self, clock: Clock, key: str) -> Flow[None]:
        moved = move(clock, {"$ne": [STATE, "closed"]}, Move("closed", "success"), new_claim())
        fields = {"state": "closed", "failureCount": 0, "failures": [], "lastSuccessTime": clock.now()}
        yield from self._change(clock, key, moved, fields)

    def list(self, clock: Clock) -> Flow[dict[str, CircuitBreakerState]]:
        test = {"key": prefix_range(self.prefix)}
        found = yield from ask(CIRCUITS, "find", test, sort=[("key", 1)])
        return {one["key"][len(self.prefix) :]: shared(one) for one in found}

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        removed = yield from ask(CIRCUITS, "delete_one", {"key": self.prefix + key})
        return bool(removed.deleted_count)


def _valid(state: object) -> CircuitBreakerState:
    if not isinstance(state, CircuitBreakerState):
        raise InvalidType(f"state={state!r}: a CircuitBreakerState is needed")
    arguments.count(state.failure_count, "failure_count", least=0)
    return state


class MongoDBCircuitBreakerStateProvider:
    """``adapter.circuit_breaker``: see ``contracts.CircuitBreakerStateProvider``. Every method is one round trip."""

    def __init__(self, store: Store, *, key_prefix: str = "") -> None:
        self.store = store
        self.flows = CircuitFlows(key_prefix)

    def get_state(self, key: str) -> CircuitBreakerState | None:
        """The circuit's state, or ``None`` where nothing was ever recorded. Never changes it."""
        return self.store.run(self.flows.get_state, arguments.key(key))

    async def aget_state(self, key: str) -> CircuitBreakerState | None:
        """Asynchronous twin of ``get_state``."""
        return await self.store.arun(self.flows.get_state, arguments.key(key))

    def set_state(self, key: str, state: CircuitBreakerState) -> None:
        """Overwrite the four shared fields in one update. Others' fields are kept."""
        self.store.run(self.flows.set_state, arguments.key(key), _valid(state))

    async def aset_state(self, key: str, state: CircuitBreakerState) -> None:
        """Asynchronous twin of ``set_state``."""
        await self.store.arun(self.flows.set_state, arguments.key(key), _valid(state))

    def record_failure(self, key: str, max_failures: int) -> int:
        """Count a failure and open the circuit when the count reaches ``max_failures``; the new count. Atomic."""
        limit = arguments.count(max_failures, "max_failures")
        return self.store.run(self.flows.record_failure, arguments.key(key), limit)

    async def arecord_failure(self, key: str, max_failures: int) -> int:
        """Asynchronous twin of ``record_failure``."""
        limit = arguments.count(max_failures, "max_failures")
        return await self.store.arun(self.flows.record_failure, arguments.key(key), limit)

    def record_success(self, key: str) -> None:
        """Close the circuit and forget its failures. Atomic."""
        self.store.run(self.flows.record_success, arguments.key(key))

    async def arecord_success(self, key: str) -> None:
        """Asynchronous twin of ``record_success``."""
        await self.store.arun(self.flows.record_success, arguments.key(key))

    def list(self, pattern: str | None = None) -> dict[str, CircuitBreakerState]:
        """States by key, of the circuits whose whole key matches the regular expression ``pattern``."""
        test = arguments.pattern(pattern)
        found = self.store.run(self.flows.list)
        return {key: state for key, state in found.items() if test is None or test.fullmatch(key)}

    async def alist(self, pattern: str | None = None) -> dict[str, CircuitBreakerState]:
        """Asynchronous twin of ``list``."""
        test = arguments.pattern(pattern)
        found = await self.store.arun(self.flows.list)
        return {key: state for key, state in found.items() if test is None or test.fullmatch(key)}

    def delete(self, key: str) -> bool:
        """Remove the circuit; ``True`` if there was one. Its next use starts closed."""
        return self.store.run(self.flows.delete, arguments.key(key))

    async def adelete(self, key: str) -> bool:
        """Asynchronous twin of ``delete``."""
        return await self.store.arun(self.flows.delete, arguments.key(key))
