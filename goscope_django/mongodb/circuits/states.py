"""``adapter.circuit_breaker``: the part of a circuit that other packages share, which is state, count and times.

Rules of this file: every recording is one pipeline update, so no failure is lost to a race. A recording that changes
the state is a move like those that breakers make: it gets a generation and an entry in the history.
"""

from __future__ import annotations

import re
from typing import Any

from goscope_django.contracts import CircuitBreakerState
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.circuits.document import CIRCUITS, FAILURE_COUNT, STATE, all_of, move, state_of, whole
from goscope_django.mongodb.circuits.flows import CircuitFlows, Reading, Stages
from goscope_django.mongodb.circuits.table import MOVES, Move
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, prefix_range
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.document.reading import named_by_text
from goscope_django.mongodb.driver.store import Store


class MongoDBCircuitBreakerStateProvider:
    """``adapter.circuit_breaker``; see ``contracts.CircuitBreakerStateProvider``. Every method is one round trip.

    Every change is atomic. ``key`` is the circuit's name. Every method raises ``StoreError`` if MongoDB fails or can't
    be reached, and ``InvalidType`` or ``InvalidValue`` for an argument that can't be used.
    """

    def __init__(self, store: Store, *, key_prefix: str = "") -> None:
        """``MongoDBAdapter`` makes it.

        :meta private:
        """
        self.store = store
        self.flows = StateFlows(key_prefix)

    def get_state(self, key: str) -> CircuitBreakerState | None:
        """The circuit's state, or ``None`` where nothing was ever recorded. Never changes it."""
        return self.store.run(self.flows.get_state, arguments.key(key))

    async def aget_state(self, key: str) -> CircuitBreakerState | None:
        """Async version of ``get_state``."""
        return await self.store.arun(self.flows.get_state, arguments.key(key))

    def set_state(self, key: str, state: CircuitBreakerState) -> None:
        """Overwrite the four shared fields with ``state`` in one update. Others' fields are kept."""
        self.store.run(self.flows.set_state, arguments.key(key), _valid(state))

    async def aset_state(self, key: str, state: CircuitBreakerState) -> None:
        """Async version of ``set_state``."""
        await self.store.arun(self.flows.set_state, arguments.key(key), _valid(state))

    def record_failure(self, key: str, max_failures: int) -> int:
        """Count a failure, and open the circuit when the count is ``max_failures``; the new count. Atomic."""
        return self.store.run(self.flows.record_failure, arguments.key(key), _limit(max_failures))

    async def arecord_failure(self, key: str, max_failures: int) -> int:
        """Async version of ``record_failure``."""
        return await self.store.arun(self.flows.record_failure, arguments.key(key), _limit(max_failures))

    def record_success(self, key: str) -> None:
        """Close the circuit and forget its failures. Atomic."""
        self.store.run(self.flows.record_success, arguments.key(key))

    async def arecord_success(self, key: str) -> None:
        """Async version of ``record_success``."""
        await self.store.arun(self.flows.record_success, arguments.key(key))

    def list(self, pattern: str | None = None) -> dict[str, CircuitBreakerState]:
        """States by key, of the circuits whose whole key matches the regular expression ``pattern``.

        The pattern is code, never a user's text: see ``contracts``.
        """
        return self.store.run(self.flows.list, arguments.pattern(pattern))

    async def alist(self, pattern: str | None = None) -> dict[str, CircuitBreakerState]:
        """Async version of ``list``."""
        return await self.store.arun(self.flows.list, arguments.pattern(pattern))

    def delete(self, key: str) -> bool:
        """Remove the circuit; ``True`` if there was one. Its next use starts closed."""
        return self.store.run(self.flows.delete, arguments.key(key))

    async def adelete(self, key: str) -> bool:
        """Async version of ``delete``."""
        return await self.store.arun(self.flows.delete, arguments.key(key))


class StateFlows:
    """The operations of one prefix, as flows. Each is one command."""

    def __init__(self, prefix: str) -> None:
        self._circuits = CircuitFlows(prefix)
        self.prefix = self._circuits.prefix

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
        found = yield from self._change(clock, key, counted, moved)
        return whole((found.document or {}).get("failureCount"))

    def record_success(self, clock: Clock, key: str) -> Flow[None]:
        moved = move(clock, {"$ne": [STATE, "closed"]}, Move("closed", "success"), new_claim())
        fields = {"state": "closed", "failureCount": 0, "failures": [], "lastSuccessTime": clock.now()}
        yield from self._change(clock, key, moved, fields)

    def list(self, clock: Clock, pattern: re.Pattern[str] | None) -> Flow[dict[str, CircuitBreakerState]]:
        found = yield from ask(CIRCUITS, "find", {"key": prefix_range(self.prefix)}, sort=[("key", 1)])
        named = ((one["key"][len(self.prefix) :], one) for one in named_by_text(found))
        return {key: shared(one) for key, one in named if pattern is None or pattern.fullmatch(key)}

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        removed = yield from ask(CIRCUITS, "delete_one", {"key": self.prefix + key})
        return bool(removed.deleted_count)

    def _change(self, clock: Clock, key: str, *stages: dict[str, Any]) -> Flow[Reading]:
        """Set each stage's fields (expressions) in the document, one stage after the other. It is made if missing."""

        def make() -> Stages:
            return [{"$set": fields} for fields in (*stages, {"updatedAt": clock.now()})]

        return (yield from self._circuits.update(clock, key, make, insert=True))


def shared(document: dict[str, Any]) -> CircuitBreakerState:
    """The shared part of a document. Anything that is not a state reads as closed."""
    return CircuitBreakerState(
        state=state_of(document),
        failure_count=whole(document.get("failureCount")),
        last_failure_time=instant(document.get("lastFailureTime")),
        last_success_time=instant(document.get("lastSuccessTime")),
    )


def _limit(max_failures: object) -> int:
    return arguments.count(max_failures, "max_failures")


def _valid(state: object) -> CircuitBreakerState:
    if not isinstance(state, CircuitBreakerState):
        raise InvalidType(f"state={state!r}: a CircuitBreakerState is needed")
    arguments.count(state.failure_count, "failure_count", least=0)
    return state
