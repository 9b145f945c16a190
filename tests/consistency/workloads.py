"""What clients do: a step of one feature at a time, for sync and async alike, each call recorded.

A step is a flow (``core.flow``), so it is written once. Keys change every few seconds, so that no history of one grows
too long to be checked; keys of locks, counters and circuits stay.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.core.cache import caches

from goscope_django import runtime
from goscope_django.checkpoints import TaskAlreadyRunning, TaskLost, checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.circuits.breaker import _entered as entered_circuits
from goscope_django.core.flow import Flow, Pause, call
from goscope_django.exceptions import CircuitOpen, IdempotencyError, LockLost, LockNotAcquired
from goscope_django.idempotency import idempotent
from goscope_django.locks import lock
from goscope_django.single_flight import single_flight
from tests.consistency.history import Recorder

FLIGHT_LEASE: Final = 2.0
ONCE_LEASE: Final = 2.0
PROBE_LEASE: Final = 1.0
COUNTERS: Final = ("cache:0", "cache:1", "failures:0")
_values = itertools.count(1)


class BodyFailedError(Exception):
    """What the bodies of calls and tasks raise."""


def fresh(recorder: Recorder) -> str:
    """A value that nobody else writes."""
    return f"{recorder.client}-{next(_values)}"


def bucket(seconds: float) -> int:
    """A number that is the same in all processes, and another one after so many seconds."""
    return int(time.monotonic() // seconds)


Run = tuple[Recorder, str, str, str, float]
"""For the bodies of flights and idempotent functions: recorder, kind, call, mode and how long it takes."""


def _began(key: str, run: Run) -> str:
    recorder, kind, number, mode, _ = run
    lease = FLIGHT_LEASE if kind == "flight" else ONCE_LEASE
    return recorder.begin(f"{kind}.run", key, {"call": number, "ttl": lease * 1_000, "mode": mode})


def _body(key: str, run: Run, ran: list[str]) -> str:
    ran.append(_began(key, run))
    time.sleep(run[4])
    run[0].end(ran[0], "ok", ran[0])
    return ran[0]


async def _abody(key: str, run: Run, ran: list[str]) -> str:
    ran.append(_began(key, run))
    await asyncio.sleep(run[4])
    run[0].end(ran[0], "ok", ran[0])
    return ran[0]


_fly: dict[str, Any] = {
    "timeout": FLIGHT_LEASE,
    "blocking_timeout": 20,
    "key": "{key}",
    "on_error": "raise",
    "name": "consistency",
}
fly, afly = single_flight(**_fly)(_body), single_flight(**_fly)(_abody)
_once: dict[str, Any] = {
    "lease": ONCE_LEASE,
    "key": "{key}",
    "fingerprint": False,
    "on_conflict": "wait",
    "blocking_timeout": 5,
    "name": "consistency",
}
once, aonce = idempotent(**_once)(_body), idempotent(**_once)(_abody)


class Workloads:
    """The steps of one thread or task. ``mode`` is ``sync`` or ``async``."""

    def __init__(self, recorder: Recorder, dice: random.Random, mode: str) -> None:
        self.recorder = recorder
        self.dice = dice
        self.mode = mode
        self.adapter = runtime.adapter()
        self.steps: dict[str, Callable[[], Flow[None]]] = {
            "locks": self.locks,
            "sections": self.sections,
            "counts": self.counts,
            "registers": self.registers,
            "claims": self.claims,
            "once": self.once,
            "flights": self.flights,
            "probes": self.probes,
            "tasks": self.tasks,
        }

    def run(self, more: Callable[[], bool]) -> Flow[None]:
        """One step after another while ``more()``. Each feature has its turn before one comes again."""
        for name in self._turns():
            if not more():
                return
            yield from self.steps[name]()
            yield Pause(self.dice.uniform(0.0, 0.04))

    def _turns(self) -> Iterator[str]:
        while True:
            yield from self.dice.sample(list(self.steps), len(self.steps))

    def _call(self, name: str, key: str, flow: Flow[Any], *args: Any, **kwargs: Any) -> Flow[Any]:
        return self.recorder.call(name, key, flow, *args, **kwargs, mode=self.mode)

    def _work(self, longest: float) -> Pause:
        """Short as a rule, and sometimes longer than a lease."""
        return Pause(self.dice.uniform(0.0, longest if self.dice.random() < 0.1 else 0.05))

    # Locks

    def locks(self) -> Flow[None]:
        """``adapter.lock``: taken, perhaps extended, mostly given back."""
        key, ttl = (
            f"{self.dice.choice(('lock', 'lock', 'hand'))}:{self.dice.randrange(2)}",
            self.dice.choice((300, 2_000)),
        )
        locks = self.adapter.lock
        flow = call(locks.acquire, locks.aacquire, key, ttl)
        taken = yield from self._call("lock.take", key, flow, lambda one: one and {"token": one.token}, ttl=ttl)
        if taken.value is None:
            return
        handle = taken.value
        yield self._work(0.6)
        if self.dice.random() < 0.3:
            flow = call(handle.extend, handle.aextend, ttl)
            yield from self._call("lock.renew", key, flow, hold=taken.number, ttl=ttl)
        if self.dice.random() < 0.9:
            yield from self._call("lock.give", key, call(handle.release, handle.arelease), hold=taken.number)

    def sections(self) -> Flow[None]:
        """``lock()``: a block, whose lock is renewed behind it."""
        key, lease = f"section:{self.dice.randrange(2)}", self.dice.choice((0.6, 2.0))
        block = lock(key, lease, blocking_timeout=self.dice.choice((0, 0.5)))
        enter = call(block.__enter__, block.__aenter__)
        refused: dict[type[BaseException], Any] = {LockNotAcquired: None}
        taken = yield from self._call(
            "section.take", key, enter, lambda one: {"token": one.token}, refused, ttl=lease * 1_000
        )
        if taken.value is None:
            return
        yield self._work(1.0)
        leave = call(block.__exit__, block.__aexit__, None, None, None)
        yield from self._call("section.give", key, leave, lambda _: True, {LockLost: False}, hold=taken.number)

    # Counters and registers

    def counts(self) -> Flow[None]:
        """``incr`` of the cache, and failures of a circuit."""
        key = self.dice.choice(COUNTERS)
        if key.startswith("cache"):
            cache: Any = caches["default"]
            flow = call(cache.incr, cache.aincr, key)
        else:
            circuits = self.adapter.circuit_breaker
            flow = call(circuits.record_failure, circuits.arecord_failure, key, 10**9)
        yield from self._call("count.add", key, flow)

    def registers(self) -> Flow[None]:
        """``set``, ``get``, ``add`` and ``delete`` of the cache, under linearizable read concern."""
        cache: Any = caches["linear"]
        key, value = f"reg:{bucket(2)}:{self.dice.randrange(2)}", fresh(self.recorder)
        for _ in range(3):
            verb = self.dice.choice(("get", "get", "set", "add", "delete"))
            if verb == "get":
                yield from self._call("reg.read", key, call(cache.get, cache.aget, key))
            elif verb == "set":
                yield from self._call("reg.write", key, call(cache.set, cache.aset, key, value, None), value=value)
            elif verb == "add":
                yield from self._call("reg.add", key, call(cache.add, cache.aadd, key, value, None), value=value)
            else:
                yield from self._call("reg.delete", key, call(cache.delete, cache.adelete, key))
            value = fresh(self.recorder)

    # Claims

    def claims(self) -> Flow[None]:
        """``adapter.idempotency``: begun, perhaps extended, completed, abandoned or left."""
        key, lease, store = (
            f"key:{bucket(2)}:{self.dice.randrange(2)}",
            self.dice.choice((300, 2_000)),
            self.adapter.idempotency,
        )
        flow = call(store.begin, store.abegin, key, 86_400_000, None, lease)
        taken = yield from self._call("claim.take", key, flow, _claimed, ttl=lease)
        if not taken.ok or taken.value.outcome != "started":
            return
        token, hold = taken.value.token, {"hold": taken.number}
        yield self._work(0.6)
        if self.dice.random() < 0.3:
            flow = call(store.extend, store.aextend, key, token, lease)
            yield from self._call("claim.renew", key, flow, **hold, ttl=lease)
        how = self.dice.random()
        if how < 0.5:
            flow = call(store.abandon, store.aabandon, key, token)
            yield from self._call("claim.give", key, flow, **hold)
        elif how < 0.85:
            value = fresh(self.recorder)
            flow = call(store.complete, store.acomplete, key, token, value)
            yield from self._call("claim.give", key, flow, **hold, value=value)

    def once(self) -> Flow[None]:
        """``@idempotent`` on a function."""
        key, ran = f"once:{bucket(0.5)}:{self.dice.randrange(2)}", list[str]()
        number = self.recorder.begin("once.call", key, {"mode": self.mode})
        flow = call(once, aonce, key, (self.recorder, "once", number, self.mode, self._work(2.5).seconds), ran)
        yield from self.recorder.finish(number, flow, lambda run: [run, bool(ran)], {IdempotencyError: None})

    def flights(self) -> Flow[None]:
        """``@single_flight`` on a function."""
        key = f"flight:{self.dice.randrange(2)}"
        number = self.recorder.begin("flight.call", key, {"mode": self.mode})
        flow = call(fly, afly, key, (self.recorder, "flight", number, self.mode, self._work(2.5).seconds), list[str]())
        yield from self.recorder.finish(number, flow)

    # Circuits and tasks

    def probes(self) -> Flow[None]:
        """A breaker whose calls mostly fail, so that most of what runs are probes."""
        most = self.dice.choice((1, 2))
        key = f"probe:{most}"
        breaker = CircuitBreaker(
            key, failure_threshold=1, reset_timeout=0.1, half_open_max_calls=most, probe_timeout=PROBE_LEASE
        )
        enter = call(breaker.__enter__, breaker.__aenter__)
        given: dict[str, Any] = {"ttl": PROBE_LEASE * 1_000, "most": most}
        taken = yield from self._call("probe.take", key, enter, _probing, {CircuitOpen: None}, **given)
        if taken.value is None:
            return
        yield self._work(1.5)
        failed = self.dice.random() < 0.9
        ended = (BodyFailedError, BodyFailedError(), None) if failed else (None, None, None)
        leave = call(breaker.__exit__, breaker.__aexit__, *ended)
        yield from self._call("probe.give", key, leave, hold=taken.number)

    def tasks(self) -> Flow[None]:
        """``checkpointed``: a state that is counted up, and left for the next runner."""
        key, lease = f"task:{bucket(5)}", 1.0
        block = checkpointed(key, lease=lease, keep=3, max_attempts=None, on_sigterm=False)
        enter = call(block.__enter__, block.__aenter__)
        refused: dict[type[BaseException], Any] = {TaskAlreadyRunning: None, TaskLost: None}
        taken = yield from self._call("task.take", key, enter, _handed, refused, ttl=lease * 1_000)
        if taken.value is None:
            return
        task = taken.value
        first = 1 + (task.data["n"] if task.data else 0)
        lost: dict[type[BaseException], Any] = {TaskLost: False}
        for number in range(first, first + self.dice.randrange(4)):
            yield self._work(1.5)
            value = fresh(self.recorder)
            save = call(task.save, task.asave, {"n": number, "value": value})
            said: dict[str, Any] = {"hold": taken.number, "ttl": lease * 1_000, "n": number, "value": value}
            saved = yield from self._call("task.renew", key, save, lambda _: True, lost, **said)
            if not saved.ok or saved.value is False:
                break
        # After an error of the body's own, leaving does not say whether the task was still held.
        leave = call(block.__exit__, block.__aexit__, BodyFailedError, BodyFailedError(), None)
        yield from self._call("task.give", key, leave, hold=taken.number)

    # At the end

    def last(self, keys: dict[str, list[str]]) -> Flow[None]:
        """Read what is there when all is over; ``keys`` are those that were used, by kind."""
        cache: Any = caches["linear"]
        store, circuits = self.adapter.idempotency, self.adapter.circuit_breaker
        for key in keys.get("count", ()):
            flow = call(cache.get, cache.aget, key)
            if not key.startswith("cache"):
                flow = call(circuits.get_state, circuits.aget_state, key)
            yield from self._call("count.read", key, flow, lambda found: getattr(found, "failure_count", found) or 0)
        for key in keys.get("claim", ()):
            flow = call(store.get, store.aget, key)
            yield from self._call("claim.read", key, flow, lambda found: found and ["completed", found.value])
        for key in keys.get("reg", ()):
            yield from self._call("reg.read", key, call(cache.get, cache.aget, key))
        for key in keys.get("task", ()):
            block = checkpointed(key, lease=30, max_attempts=None, on_sigterm=False)
            yield from self._call("task.take", key, call(block.__enter__, block.__aenter__), _handed, ttl=30_000)
            yield from call(block.__exit__, block.__aexit__, BodyFailedError, BodyFailedError(), None)


def _claimed(claim: Any) -> Any:
    if claim.outcome == "started":
        return {"token": claim.token}
    return [claim.outcome, claim.value]


def _probing(breaker: Any) -> Any:
    """The probe, if the fleet's circuit has granted one; not where this process goes on without the store."""
    snapshot = entered_circuits.get()[-1][1]
    return {"probe": snapshot.probe} if snapshot.probe is not None and snapshot.local is None else None


def _handed(task: Any) -> Any:
    data = task.data or {"n": 0, "value": None}
    return {"token": task.token, **data}
