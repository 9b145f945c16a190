"""What is read from and written to ``go_goscope_circuit`` for breakers and operators.

Every operation is one command.

Rules of this file:

* Each write is one pipeline update that judges the document as the server has it then, and makes the move in the same
  update. The caller's knowledge counts only as the generation under which a call was admitted. If that is no longer the
  document's, nothing changes.
* A probe is a lease inside the document: a random id and a deadline by server time. A probe's outcome counts only while
  its lease lasts, and in the generation that admitted it. Its place is taken until it ends or its lease does, also
  over moves of the circuit. The update that admits the next probe also frees the places whose lease has ended.
* An update that moves the circuit writes a random id into the history. Whoever finds its own id there made the move, so
  exactly one process tells of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from goscope_django.core.flow import Emit, Flow, Query, ask, perform
from goscope_django.core.reasons import Reason
from goscope_django.mongodb.circuits.document import (
    CIRCUITS,
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
    kept,
    last_move,
    move,
    running,
    why,
    without,
)
from goscope_django.mongodb.circuits.table import COMMANDS, MOVES, CircuitInfo, Command
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import (
    COUNTABLE,
    Expression,
    array,
    conditions,
    countable,
    just,
    literal,
    named,
    or_null,
    prefix_range,
)
from goscope_django.mongodb.document.lease import new_claim, timed, upsert
from goscope_django.mongodb.document.reading import named_by_text
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.store import Store

P = ParamSpec("P")
T = TypeVar("T")
Stages = list[dict[str, Any]]
LIMIT: Final = 2.0
"""Seconds that a call waits for the store at most. After that its breaker goes on without the store."""

EXACT: Final = 100
"""Failures of which a circuit's document keeps the very times."""

BATCH: Final = 10_000
"""Circuits that one command reads at most."""

STATE_FIELDS: Final = dict.fromkeys(
    (
        "key",
        "state",
        "failureCount",
        "lastFailureTime",
        "lastSuccessTime",
        "updatedAt",
        "generation",
        "openedAt",
        "resetTimeout",
        "probes",
        "successes",
        "override",
    ),
    True,
)
WHY_FIELDS: Final = {**STATE_FIELDS, "openedBy": True, "lastFailure": True}
FIELDS: Final = {**WHY_FIELDS, "history": True}

_EVENTS: Final = {"open": "circuit_opened", "half-open": "circuit_half_opened", "closed": "circuit_closed"}


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as it was at ``now`` by server time. Both are ``None`` if there is no document."""

    document: dict[str, Any] | None
    now: datetime | None


class CircuitFlows:
    """The operations on the circuits of one prefix, as flows. Each is one command."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}circuit:"

    # ---- for calls ----

    def read(self, clock: Clock, names: Sequence[str]) -> Flow[dict[str, Reading]]:
        """The documents of ``names``, those that exist."""
        shown = {**STATE_FIELDS, "_id": False, **clock.stamp()}
        rows: list[dict[str, Any]] = []
        # One command, unless they are very many: a command has its limits, and so has the answer.
        for start in range(0, len(names), BATCH):
            keys = [self.prefix + name for name in names[start : start + BATCH]]
            test: dict[str, Any] = {"key": keys[0] if len(keys) == 1 else {"$in": keys}}
            rows += yield from ask(CIRCUITS, "find", test, shown, batch_size=len(keys) + 1)
        return {row["key"][len(self.prefix) :]: self._reading(clock, row) for row in named_by_text(rows)}

    def admit(
        self, clock: Clock, name: str, claim: str, reset: int, most: int, lease: int, holder: str | None = None
    ) -> Flow[Reading]:
        """Grant ``claim`` a probe of ``lease`` milliseconds if the circuit allows one.

        It does if fewer than ``most`` probes run and it is half-open, or open since ``reset`` milliseconds. If this is
        cancelled, the place that may have been granted is given back.
        """

        def make() -> Stages:
            live = running(clock)
            free = all_of(UNFORCED, {"$lt": [{"$size": [live]}, most]})
            due, room = all_of(OPEN, free, elapsed(clock, reset)), all_of(HALF_OPEN, free)
            probe = just({"id": claim, "until": clock.after(lease), "holder": literal(holder)})
            changes = move(clock, due, MOVES["open", "probe_granted"], claim)
            granted = {"$or": [due, room]}
            changes["probes"] = {"$cond": [granted, joined(live, probe), array("probes")]}
            changes["updatedAt"] = {"$cond": [granted, clock.now(), or_null("updatedAt")]}
            return [{"$set": changes}]

        try:
            return (yield from self.update(clock, name, make, claim))
        except (GeneratorExit, PyMongoError):
            raise  # a place that was granted without an answer is free again when its lease ends
        except BaseException:
            with contextlib.suppress(PyMongoError):
                yield from self.give_back(clock, name, claim)
            raise

    def succeeded(self, clock: Clock, name: str, generation: int) -> Flow[Reading]:
        """Forget the failures of the closed circuit; nothing is written if there are none."""
        test = {
            "state": {"$nin": ["open", "half-open"]},
            "generation": generation or {"$in": [0, None]},
            "override": None,
            "failureCount": {"$gt": 0},
        }

        def make() -> Stages:
            now = clock.now()
            return [{"$set": {"failureCount": 0, "failures": [], "lastSuccessTime": now, "updatedAt": now}}]

        return (yield from self.update(clock, name, make, test=test))

    def failed(
        self,
        clock: Clock,
        name: str,
        generation: int,
        threshold: int,
        window: int,
        reset: int,
        reason: Reason | None = None,
    ) -> Flow[Reading]:
        """Record a failure of a call that was admitted to the closed circuit under ``generation``, and its ``reason``.

        Opens the circuit if the failures of the last ``window`` milliseconds are ``threshold``. The first ``EXACT`` of
        them are listed with their times. More of them count as if they came together in a hundredth of the window, at
        its beginning: a long list would make each failure dearer than the one before.
        """
        turn, test = new_claim(), all_of(CLOSED, {"$eq": [GENERATION, generation]}, UNFORCED)

        def make() -> Stages:
            now, listed = clock.now(), {"$sum": "$failures.n"}
            ours = {"$lte": [listed, FAILURE_COUNT]}  # else somebody closed the circuit, and our list is void
            others = {"$subtract": [FAILURE_COUNT, {"$cond": [ours, listed, 0]}]}
            known = joined(
                {"$cond": [ours, array("failures"), []]}, just({"at": or_null("lastFailureTime"), "n": others})
            )
            recent = {"$and": [{"$gt": ["$$x.at", clock.before(window)]}, {"$gt": ["$$x.n", 0]}]}
            size, slot = {"$size": "$failures"}, clock.slot(max(1, window // EXACT))
            rest = {"$cond": [{"$lt": [size, EXACT]}, "$failures", kept("failures", {"$ne": ["$$x.at", slot]})]}
            this = {
                "at": {"$cond": [{"$lt": [size, EXACT - 1]}, now, slot]},
                "n": {"$subtract": ["$failureCount", listed]},
            }
            counted = {
                "state": "closed",
                "lastFailureTime": now,
                "lastFailure": why(clock, reason),
                "updatedAt": now,
            }
            full = all_of(test, {"$gte": [FAILURE_COUNT, threshold]})
            return [
                {"$set": {"failures": {"$cond": [test, known, array("failures")]}}},
                {"$set": {"failures": {"$cond": [test, kept("failures", recent), "$failures"]}}},
                {"$set": conditions(test, {"failureCount": {"$add": [listed, 1]}, "failures": rest})},
                {"$set": {"failures": {"$cond": [test, joined("$failures", just(this)), "$failures"]}}},
                {"$set": conditions(test, counted)},
                {
                    "$set": move(
                        clock, full, MOVES["closed", "threshold"], turn, resetTimeout=reset, openedBy=why(clock, reason)
                    )
                },
            ]

        return (yield from self.update(clock, name, make, turn, insert=not generation, retry_after=reset / 1_000))

    def probe_succeeded(self, clock: Clock, name: str, generation: int, claim: str, enough: int) -> Flow[Reading]:
        """Count a probe's success, and close the circuit if that makes ``enough``."""
        turn = new_claim()

        def make() -> Stages:
            mine, now = self._probe(clock, generation, claim), clock.now()
            successes = {"$add": [countable("successes"), 1]}
            done = all_of(mine, {"$gte": ["$successes", enough]})
            return [
                {"$set": conditions(mine, {"successes": successes, "lastSuccessTime": now, "updatedAt": now})},
                {"$set": move(clock, done, MOVES["half-open", "probes_succeeded"], turn)},
                {"$set": {"probes": without(claim)}},
            ]

        return (yield from self.update(clock, name, make, turn))

    def probe_failed(
        self, clock: Clock, name: str, generation: int, claim: str, reset: int, reason: Reason | None = None
    ) -> Flow[Reading]:
        """Open the circuit again, for this ``reason``."""
        turn = new_claim()

        def make() -> Stages:
            mine, now, count = self._probe(clock, generation, claim), clock.now(), {"$add": [FAILURE_COUNT, 1]}
            to = MOVES["half-open", "probe_failed"]
            told: dict[str, Any] = dict.fromkeys(("openedBy", "lastFailure"), why(clock, reason))
            opened = move(clock, mine, to, turn, resetTimeout=reset, failureCount=count, lastFailureTime=now, **told)
            return [{"$set": opened}, {"$set": {"probes": without(claim)}}]

        return (yield from self.update(clock, name, make, turn, retry_after=reset / 1_000))

    def give_back(self, clock: Clock, name: str, claim: str) -> Flow[Reading]:
        """Free a probe's place; its call was neither success nor failure."""

        def make() -> Stages:
            return [{"$set": {"probes": without(claim)}}]

        return (yield from self.update(clock, name, make, test={"probes.id": claim}))

    # ---- for operators ----

    def command(
        self, clock: Clock, name: str, command: Command, note: str, expected: int | None
    ) -> Flow[tuple[CircuitInfo, Reading] | None]:
        """Carry out ``command``; the circuit afterwards.

        ``None`` if the generation is not ``expected``, or if there is no circuit to reset.
        """
        claim, to = new_claim(), COMMANDS[command]
        # What is not a generation reads as 0.
        unmoved = {"$not": {"$gte": 1, "$lt": COUNTABLE}}
        test = {} if expected is None else {"generation": expected or unmoved}

        def make() -> Stages:
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
            return None  # a circuit that has not moved was expected, but it has
        return (info(name, found.document, found.now), found) if found.document and found.now else None

    def show(self, clock: Clock, name: str) -> Flow[CircuitInfo | None]:
        found = yield from ask(CIRCUITS, "find_one", {"key": self.prefix + name}, {**FIELDS, **clock.stamp()})
        return info(name, found, clock.read_stamp(found)) if found else None

    def list(self, clock: Clock) -> Flow[list[CircuitInfo]]:
        test = {"key": prefix_range(self.prefix)}
        found = yield from ask(CIRCUITS, "find", test, {**FIELDS, **clock.stamp()}, sort=[("key", 1)])
        return [info(one["key"][len(self.prefix) :], one, clock.read_stamp(one)) for one in named_by_text(found)]

    # ---- how each is done ----

    def update(
        self,
        clock: Clock,
        name: str,
        make: Callable[[], Stages],
        claim: str = "",
        test: dict[str, Any] | None = None,
        insert: bool = False,
        retry_after: float | None = None,
    ) -> Flow[Reading]:
        """Update a circuit by the stages that ``make`` returns; the document afterwards.

        Emits the move if the history ends with one of ``claim``, which this update made then. ``test`` is what the
        document must match besides; ``insert`` makes a missing one.
        """
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
                # Fields can't be excluded beside the stamp, and without an _id mongomock finds nothing.
                projection={"_id": True, **FIELDS, **clock.stamp()},
            )

        found = yield from timed(clock, upsert(clock, query))
        made = last_move(found, claim)
        if made is not None and made.get("from") != made.get("to"):
            details: dict[str, Any] = {"name": name}
            if made["to"] != "half-open":
                details["reason"] = made["reason"]
            if made["to"] == "open":
                details["retry_after"] = retry_after
            yield from perform(Emit(_EVENTS[made["to"]], **details))
        return self._reading(clock, found)

    def _reading(self, clock: Clock, document: dict[str, Any] | None) -> Reading:
        return Reading(document, clock.read_stamp(document) if document else None)

    def _probe(self, clock: Clock, generation: int, claim: str) -> Expression:
        """True if ``claim`` is a probe of this generation whose lease lasts."""
        own = kept("probes", all_of({"$eq": ["$$x.id", literal(claim)]}, {"$gt": ["$$x.until", clock.now()]}))
        return all_of(HALF_OPEN, UNFORCED, {"$eq": [GENERATION, generation]}, {"$gt": [{"$size": [own]}, 0]})


class CircuitStore:
    """Runs flows for calls, which can't wait long: each run ends within ``LIMIT`` seconds, at worst with an error."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a flow on this thread. Raises ``StoreError``."""
        with within(LIMIT):
            return self._store.run(operation, *args, **kwargs)

    async def arun(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Async version of ``run``."""
        with within(LIMIT):
            return await self._store.arun(operation, *args, **kwargs)
