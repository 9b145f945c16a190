"""What a circuit breaker and its operators write to ``go_goscope_circuit``.

Rules of this file:

* Every recording and every admission is one pipeline update that judges the document as it is by then, moves included;
  what a caller believed takes part only as the generation that it was admitted under. A mismatch changes nothing.
* A probe is a lease inside the document: an id (random) and a deadline by server time. What a probe reports counts only
  while its lease lasts; places whose lease has ended are given out again in the update that admits the next one.
* Whether an update made a move is told from the random id in the document's history, so exactly one process emits it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pymongo
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from goscope_django.core.flow import Emit, Flow, Query, ask, perform
from goscope_django.mongodb.circuits.document import (
    CLOSED,
    FAILURE_COUNT,
    GENERATION,
    HALF_OPEN,
    OPEN,
    UNFORCED,
    all_of,
    elapsed,
    info,
    joined,
    just,
    kept,
    last_move,
    move,
)
from goscope_django.mongodb.circuits.states import CIRCUITS
from goscope_django.mongodb.circuits.table import COMMANDS, MOVES, CircuitInfo, Command
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import (
    COUNTABLE,
    Expression,
    array,
    conditions,
    countable,
    literal,
    named,
    or_null,
    prefix_range,
)
from goscope_django.mongodb.document.lease import new_claim, upsert
from goscope_django.mongodb.driver.store import Store

P = ParamSpec("P")
T = TypeVar("T")
LIMIT: Final = 2.0
"""Seconds that a call waits for the store at most, before its breaker goes on without."""

FIELDS: Final = dict.fromkeys(
    (
        *("key", "state", "failureCount", "lastFailureTime", "lastSuccessTime", "updatedAt", "generation", "openedAt"),
        *("resetTimeout", "probes", "successes", "override", "history"),
    ),
    True,
)
_STATE_FIELDS: Final = {name: True for name in FIELDS if name != "history"}

_EVENTS: Final = {"open": "circuit_opened", "half-open": "circuit_half_opened", "closed": "circuit_closed"}


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as it was at ``now`` by server time; ``document`` is ``None`` where there is none."""

    document: dict[str, Any] | None
    now: datetime | None


class BreakerFlows:
    """The operations of one prefix, as flows. Each is one command."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}circuit:"

    def _reading(self, clock: Clock, document: dict[str, Any] | None) -> Reading:
        return Reading(document, clock.read_stamp(document) if document else None)

    def update(
        self,
        clock: Clock,
        name: str,
        make: Callable[[], list[dict[str, Any]]],
        claim: str = "",
        test: dict[str, Any] | None = None,
        insert: bool = False,
        retry_after: float | None = None,
    ) -> Flow[Reading]:
        """Send the stages that ``make`` gives, and tell of the move that ``claim`` identifies if they made it."""
        full = self.prefix + name
        key = {"$set": named(full)}

        def query() -> Query[dict[str, Any] | None]:
            return Query(
                CIRCUITS,
                "find_one_and_update",
                {"key": full, **(test or {})},
                [key, *make()] if insert else make(),
                upsert=insert,
                return_document=ReturnDocument.AFTER,
                # Exclusions would not go with the stamp, and without an _id mongomock finds nothing.
                projection={"_id": True, **FIELDS, **clock.stamp()},
            )

        found = yield from upsert(clock, query)
        made = last_move(found, claim)
        if made is not None and made.get("from") != made.get("to"):
            details: dict[str, Any] = {"name": name}
            if made["to"] != "half-open":
                details["reason"] = made["reason"]
            if made["to"] == "open":
                details["retry_after"] = retry_after
            yield from perform(Emit(_EVENTS[made["to"]], **details))
        return self._reading(clock, found)

    def read(self, clock: Clock, names: Sequence[str]) -> Flow[dict[str, Reading]]:
        """The documents of ``names``, those that exist."""
        test = {"key": {"$in": [self.prefix + name for name in names]}}
        rows = yield from ask(CIRCUITS, "find", test, {**_STATE_FIELDS, "_id": False, **clock.stamp()})
        return {row["key"][len(self.prefix) :]: self._reading(clock, row) for row in rows}

    def failed(
        self,
        clock: Clock,
        name: str,
        generation: int,
        threshold: int,
        window: int,
        reset: int,
        claim: str,
        count: int = 1,
    ) -> Flow[Reading]:
        """Record failures of calls that were admitted to the closed circuit under ``generation``; open it if they are
        ``threshold`` with those of the last ``window`` milliseconds."""
        test = all_of(CLOSED, {"$eq": [GENERATION, generation]}, UNFORCED)

        def make() -> list[dict[str, Any]]:
            listed = {"$sum": "$failures.n"}
            ours = {"$lte": [listed, FAILURE_COUNT]}
            others = {"$subtract": [FAILURE_COUNT, {"$cond": [ours, listed, 0]}]}
            recent = {"$and": [{"$gt": ["$$x.at", clock.before(window)]}, {"$gt": ["$$x.n", 0]}]}
            known = joined(
                {"$cond": [ours, array("failures"), []]}, just({"at": or_null("lastFailureTime"), "n": others})
            )
            return [
                {"$set": {"failures": {"$cond": [test, known, array("failures")]}}},
                {
                    "$set": {
                        "failures": {
                            "$cond": [
                                test,
                                joined(kept("failures", recent), just({"at": clock.now(), "n": count})),
                                "$failures",
                            ]
                        }
                    }
                },
                {
                    "$set": conditions(
                        test,
                        {
                            "state": "closed",
                            "failureCount": {"$sum": "$failures.n"},
                            "lastFailureTime": clock.now(),
                            "updatedAt": clock.now(),
                        },
                    )
                },
                {
                    "$set": move(
                        clock,
                        all_of(test, {"$gte": [FAILURE_COUNT, threshold]}),
                        MOVES["closed", "threshold"],
                        claim,
                        resetTimeout=reset,
                    )
                },
            ]

        return (yield from self.update(clock, name, make, claim, insert=not generation, retry_after=reset / 1_000))

    def succeeded(self, clock: Clock, name: str, generation: int) -> Flow[Reading]:
        """Forget the failures of the closed circuit; nothing is written if there are none."""
        test = {
            "state": {"$nin": ["open", "half-open"]},
            "generation": generation or {"$in": [0, None]},
            "override": None,
            "failureCount": {"$gt": 0},
        }

        def make() -> list[dict[str, Any]]:
            now = clock.now()
            return [{"$set": {"failureCount": 0, "failures": [], "lastSuccessTime": now, "updatedAt": now}}]

        return (yield from self.update(clock, name, make, test=test))

    def admit(self, clock: Clock, name: str, claim: str, reset: int, most: int, lease: int) -> Flow[Reading]:
        """Grant ``claim`` a probe of ``lease`` milliseconds, if the circuit is open and ``reset`` milliseconds have
        passed, or if it is half-open and fewer than ``most`` probes run. Cancelled on its way it gives back what it may
        have got."""

        def make() -> list[dict[str, Any]]:
            due = all_of(OPEN, UNFORCED, elapsed(clock, reset))
            live = kept("probes", {"$gt": ["$$x.until", clock.now()]})
            room = all_of(HALF_OPEN, UNFORCED, {"$lt": [{"$size": [live]}, most]})
            probe = just({"id": claim, "until": clock.after(lease)})
            changes = move(clock, due, MOVES["open", "probe_granted"], claim)
            changes["probes"] = {"$cond": [due, probe, {"$cond": [room, joined(live, probe), array("probes")]}]}
            changes["updatedAt"] = {"$cond": [{"$or": [due, room]}, clock.now(), or_null("updatedAt")]}
            return [{"$set": changes}]

        try:
            return (yield from self.update(clock, name, make, claim))
        except (GeneratorExit, PyMongoError):
            raise  # a place that was taken without an answer is free again when its lease ends
        except BaseException:
            with contextlib.suppress(PyMongoError):
                yield from self.give_back(clock, name, claim)
            raise

    def _probe(self, clock: Clock, generation: int, claim: str) -> Expression:
        """True if ``claim`` is a probe of this generation whose lease lasts."""
        own = kept("probes", all_of({"$eq": ["$$x.id", literal(claim)]}, {"$gt": ["$$x.until", clock.now()]}))
        return all_of(HALF_OPEN, UNFORCED, {"$eq": [GENERATION, generation]}, {"$gt": [{"$size": [own]}, 0]})

    def probe_succeeded(self, clock: Clock, name: str, generation: int, claim: str, enough: int) -> Flow[Reading]:
        """Count a probe's success, and close the circuit if that makes ``enough``."""
        turn = new_claim()

        def make() -> list[dict[str, Any]]:
            mine, now = self._probe(clock, generation, claim), clock.now()
            successes = {"$add": [countable("successes"), 1]}
            done = all_of(mine, {"$gte": ["$successes", enough]})
            return [
                {"$set": conditions(mine, {"successes": successes, "lastSuccessTime": now, "updatedAt": now})},
                {"$set": move(clock, done, MOVES["half-open", "probes_succeeded"], turn)},
                {"$set": {"probes": kept("probes", {"$ne": ["$$x.id", literal(claim)]})}},
            ]

        return (yield from self.update(clock, name, make, turn))

    def probe_failed(self, clock: Clock, name: str, generation: int, claim: str, reset: int) -> Flow[Reading]:
        """Open the circuit again."""
        turn = new_claim()

        def make() -> list[dict[str, Any]]:
            return [
                {
                    "$set": move(
                        clock,
                        self._probe(clock, generation, claim),
                        MOVES["half-open", "probe_failed"],
                        turn,
                        resetTimeout=reset,
                        failureCount={"$add": [FAILURE_COUNT, 1]},
                        lastFailureTime=clock.now(),
                    )
                }
            ]

        return (yield from self.update(clock, name, make, turn, retry_after=reset / 1_000))

    def give_back(self, clock: Clock, name: str, claim: str) -> Flow[Reading]:
        """Free a probe's place: its call said nothing about the circuit."""

        def make() -> list[dict[str, Any]]:
            return [{"$set": {"probes": kept("probes", {"$ne": ["$$x.id", literal(claim)]})}}]

        return (yield from self.update(clock, name, make, test={"probes.id": claim}))


class OperatorFlows(BreakerFlows):
    """The operations of one prefix, as flows. Each is one command."""

    def command(
        self, clock: Clock, name: str, command: Command, note: str, expected: int | None
    ) -> Flow[tuple[CircuitInfo, Reading] | None]:
        """Carry out ``command``: what came of it. ``None`` if the generation is not ``expected``, or nothing is there
        to reset."""
        claim, to = new_claim(), COMMANDS[command]
        # Whatever is no generation reads as 0.
        unmoved = {"$not": {"$gte": 1, "$lt": COUNTABLE}}
        test = {} if expected is None else {"generation": expected or unmoved}

        def make() -> list[dict[str, Any]]:
            said = {"state": to.to, "reason": literal(note), "at": clock.now()}
            return [
                {"$set": move(clock, True, to, claim, note=note)},
                {"$set": {"override": {"$cond": [command == "reset", None, said]}}},
            ]

        insert = command != "reset" and not expected
        try:
            found = yield from self.update(clock, name, make, claim, test=test, insert=insert)
        except DuplicateKeyError:
            if expected is None:
                raise
            return None  # asked for a circuit that has not moved yet, but it has
        return (info(name, found.document, found.now), found) if found.document and found.now else None

    def show(self, clock: Clock, name: str) -> Flow[CircuitInfo | None]:
        found = yield from ask(CIRCUITS, "find_one", {"key": self.prefix + name}, {**FIELDS, **clock.stamp()})
        return info(name, found, clock.read_stamp(found)) if found else None

    def list(self, clock: Clock) -> Flow[list[CircuitInfo]]:
        test = {"key": prefix_range(self.prefix)}
        found = yield from ask(CIRCUITS, "find", test, {**FIELDS, **clock.stamp()}, sort=[("key", 1)])
        return [info(one["key"][len(self.prefix) :], one, clock.read_stamp(one)) for one in found]


class BreakerStore:
    """Runs a prefix's flows for breakers, which can't wait long: ``LIMIT`` bounds every one of them."""

    def __init__(self, store: Store, *, key_prefix: str = "") -> None:
        self.store = store
        self.flows = BreakerFlows(key_prefix)

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a flow on this thread. Raises ``StoreError``."""
        with pymongo.timeout(LIMIT):
            return self.store.run(operation, *args, **kwargs)

    async def arun(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Asynchronous twin of ``run``."""
        with pymongo.timeout(LIMIT):
            return await self.store.arun(operation, *args, **kwargs)
