"""Faults that are planted in the product, to prove that the checkers find them. ``plant(name)`` is for a whole process.

Each is a mistake that packages like this one have made, or that a change might bring.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo import WriteConcern
from pymongo.errors import ConnectionFailure, PyMongoError

from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import StoreUnavailable
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.checkpoints import tasks
from goscope_django.mongodb.circuits import flows as circuits
from goscope_django.mongodb.document import lease
from goscope_django.mongodb.document.clock import Clock, ServerClock
from goscope_django.mongodb.driver.direct import Direct
from goscope_django.mongodb.driver.execute import SyncExecutor, _Executor
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.idempotency.flows import IdempotencyFlows, claim_key
from goscope_django.mongodb.locks.flows import LockFlows
from goscope_django.mongodb.single_flight.flows import FlightFlows

Patch = Callable[[Any, str, Any], None]
skew = timedelta(0)
"""What the clock of the client that acts is wrong by, where no library makes it wrong."""
acting = 0
"""The client that acts, where several are in one process."""


def client_clock(patch: Patch) -> None:
    """The client's clock decides what has expired, not the server's."""

    def now(self: Clock) -> Any:
        return datetime.now(UTC) + skew

    patch(ServerClock, "now", now)
    patch(ServerClock, "after", lambda self, milliseconds: now(self) + timedelta(milliseconds=milliseconds))
    patch(ServerClock, "before", lambda self, milliseconds: now(self) - timedelta(milliseconds=milliseconds))
    patch(ServerClock, "live", lambda self, field="expiresAt": {"$gt": [f"${field}", now(self)]})
    patch(ServerClock, "passed", lambda self, field="expiresAt": {"$lte": [f"${field}", now(self)]})


def release_without_predicate(patch: Patch) -> None:
    """A release removes whatever stands under the key."""

    def release(self: LockFlows, clock: Clock, key: str, *_: Any) -> Flow[bool]:
        return bool((yield from ask("go_goscope_locks", "delete_one", {"_id": self.prefix + key})).deleted_count)

    patch(LockFlows, "release", release)


def unconfirmed_writes(patch: Patch) -> None:
    """A write is acknowledged as soon as the primary has it in memory (``w=1``)."""
    collection = _Executor.collection
    patch(
        _Executor, "collection", lambda self, name: collection(self, name).with_options(write_concern=WriteConcern(1))
    )


def local_tokens(patch: Patch) -> None:
    """Each process counts its tokens itself."""
    numbers = defaultdict[int, Iterator[int]](lambda: itertools.count(1_000 - 100 * acting))
    patch(lease.Lease, "next_token", lambda self, clock: {"$literal": next(numbers[acting])})


def wall_clock_tokens(patch: Patch) -> None:
    """A token is the time of day, which a server that takes over may have earlier."""
    wall = ServerClock()
    wall.cluster_time = False
    token = ServerClock.token
    patch(ServerClock, "token", lambda self: token(wall))


def probe_without_lease(patch: Patch) -> None:
    """A probe is granted without a look at those that run."""
    patch(circuits, "running", lambda clock: [])


def completion_without_token(patch: Patch) -> None:
    """Whoever has worked completes the claim, whosever it is by now."""
    patch(IdempotencyFlows, "_claimed", lambda self, clock, full, *_: {"key": claim_key(full)})


def save_without_lease(patch: Patch) -> None:
    """A task's state is saved without a look at who runs the task."""

    class Careless(lease.Lease):
        def mine(self, clock: Clock, **identity: Any) -> dict[str, Any]:
            return {name: value for name, value in identity.items() if name != "claim"}

    patch(tasks, "LEASE", Careless(holder="claim", deadline="leaseUntil"))


def unnumbered_retry(patch: Patch) -> None:
    """A write of the cache is sent again without the number by which the server would know it."""

    def repeated(self: Direct, command: dict[str, Any], outcome: Callable[[Any], Any]) -> Flow[Any]:
        command.update(self._write_concern)
        try:
            return outcome((yield from ask("", "command", command, codec_options=self._codec)))
        except ConnectionFailure:
            return outcome((yield from ask("", "command", command, codec_options=self._codec)))

    patch(Direct, "_write", repeated)


def copies_at_hand(patch: Patch) -> None:
    """A process goes on serving the value that it has read once."""
    read, get = dict[str, Any](), CacheFlows.get

    def remembered(self: CacheFlows, clock: Clock, key: str) -> Flow[Any]:
        if key not in read:
            read[key] = yield from get(self, clock, key)
        return read[key]

    patch(CacheFlows, "get", remembered)


def old_results(patch: Patch) -> None:
    """A flight's result is given to whoever comes while it is kept, as a cache would."""
    enter = FlightFlows.enter

    def served(self: FlightFlows, clock: Clock, key: str, terms: Any, since: int | None, *more: Any) -> Any:
        return enter(self, clock, key, terms, since or 1, *more)

    patch(FlightFlows, "enter", served)


def replayed_once(patch: Patch) -> None:
    """A result is removed when it has been replayed."""
    begin = IdempotencyFlows.begin

    def consumed(self: IdempotencyFlows, clock: Clock, key: str, *more: Any) -> Flow[Any]:
        claim = yield from begin(self, clock, key, *more)
        if claim.outcome == "completed":
            yield from ask("go_goscope_idempotency", "delete_many", {"key": self.full(key)})
        return claim

    patch(IdempotencyFlows, "begin", consumed)


def projection_taken_for_granted(patch: Patch) -> None:
    """The answer to a retry has no projection, and so no time; that is not thought of."""

    def without(clock: Clock, found: Any) -> Flow[Any]:
        yield from ()
        return found

    patch(lease, "with_time", without)
    patch(ServerClock, "read_stamp", lambda self, document: document["now"])


def broken_for_good(patch: Patch) -> None:
    """After the first failure a process does not try again."""
    broken, execute = list[bool](), SyncExecutor.__call__

    def once(self: SyncExecutor, command: Any) -> Any:
        try:
            if broken:
                raise StoreUnavailable("it was not there before")
            return execute(self, command)
        except PyMongoError:
            broken.append(True)
            raise

    patch(SyncExecutor, "__call__", once)


def certain_failures(patch: Patch) -> None:
    """What may have happened is told not to have happened."""
    run = Store.run

    def told(self: Store, *args: Any, **kwargs: Any) -> Any:
        try:
            return run(self, *args, **kwargs)
        except Exception as error:
            raise StoreUnavailable("nothing was changed") from error

    patch(Store, "run", told)


FAULTS: Final[dict[str, Callable[[Patch], None]]] = {
    fault.__name__: fault
    for fault in (
        client_clock,
        release_without_predicate,
        unconfirmed_writes,
        local_tokens,
        wall_clock_tokens,
        probe_without_lease,
        completion_without_token,
        save_without_lease,
        unnumbered_retry,
        copies_at_hand,
        old_results,
        replayed_once,
        projection_taken_for_granted,
        broken_for_good,
        certain_failures,
    )
}


def plant(name: str, patch: Patch = setattr) -> None:
    """Plant the fault of that name in this process."""
    FAULTS[name](patch)
