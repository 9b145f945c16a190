"""Waiting for a lock: each lock has one line in each process, and only the first waiter of a line asks the server.

A waiter is a thread's or a task's; both stand in the same line. Rules of this file:

* The first in line reads every ``POLL`` seconds, with jitter, and never sleeps past the end of the holder's lease. It
  tries to acquire only when a read says that the lock is free. The others send nothing.
* Who has held the lock for long will as a rule hold it for about as long again. So it is read less often the longer it
  has been held, up to every ``SLOWEST`` seconds, and less often where the server is slow to answer.
* A lock that is given back in this process goes to the first in line at once, which then tries without reading. After
  ``STREAK`` such turns it lets the other processes have a try.
* While this very process holds the lock, the first in line reads every ``OWN`` seconds only.
* Whoever leaves the line, in whatever way, leaves nothing behind and makes way for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, Literal, Protocol, TypeVar

from goscope_django.core.flow import Flow, invoke
from goscope_django.core.forking import at_fork
from goscope_django.mongodb.figures import Wait
from goscope_django.process import counters
from goscope_django.process.kept_lease import now

T = TypeVar("T")

POLL: Final = 0.027
"""Seconds between two reads of the first in line: with the read itself at most 40 commands a second."""
SLOWEST: Final = 0.2
"""Seconds between two reads of a lock that has been held for long."""
SHARE: Final = 20
"""A hold that has lasted for so many intervals is read no more often than that."""
SLOW: Final = 4
"""So many times as long as a read took passes before the next one, up to a second."""
SHARED_BY: Final = 4
"""So many lines of a process are read at the full rate; with more of them each is read less often."""
OWN: Final = 0.25
"""Seconds between two reads while the lock is held in this process."""
STREAK: Final = 10

Signal = Literal["first", "released", "yield"]


def contend(
    place: Hashable,
    waiter: Waiter,
    seconds: float,
    attempt: Callable[[float], Flow[T | None]],
    standing: Callable[[], Flow[tuple[float, float]]],
    before_waiting: Callable[[], None] = lambda: None,
) -> Flow[T | None]:
    """Get the lock at ``place`` within ``seconds`` (0: one attempt; infinity: in any case), or ``None``.

    ``attempt``, given the seconds that are left, tries to acquire it. ``standing`` asks for how many seconds somebody
    holds it at most, 0 meaning that it is free, and for how many it has been held. ``before_waiting`` raises if waiting
    is in vain.
    """
    end = now() + seconds
    if seconds <= 0 or not waiting(place):
        found = yield from attempt(seconds)
        if found is not None or seconds <= 0:
            return found
    before_waiting()
    key, began = _key(place), now()
    counters.locks.add(key, counters.CONTENDED)
    _join(place, waiter)
    try:
        while True:
            first, signal, held_here, lines = _state(place, waiter)
            left = end - now()
            pause: float | None = None
            if first and signal == "yield" and left > 0:
                yield from invoke(waiter.wait, min(left, _interval(lines)))
                continue
            if first:
                rest, age, asked = 0.0, 0.0, now()
                if signal != "released":
                    rest, age = yield from standing()
                took = now() - asked
                if rest <= 0:
                    found = yield from attempt(left)
                    if found is not None:
                        return found
                    rest = math.inf
                pause = min(rest, max(OWN if held_here else 0.0, _interval(lines, age, took)))
            left = end - now()
            if left <= 0:
                return None
            if left < math.inf:
                pause = left if pause is None else min(pause, left)
            yield from invoke(waiter.wait, pause)
    finally:
        _leave(place, waiter)
        counters.locks.note(key, counters.WAIT, now() - began)


class Waiter(Protocol):
    """Somebody who waits."""

    signal: Signal | None
    """Why it was woken."""

    def wake(self) -> None:
        """From any thread."""

    def calm(self) -> None:
        """Forget that it was woken."""

    def wait(self, seconds: float | None) -> Any:
        """Sleep for ``seconds``, or less if woken. A coroutine where a task waits."""


class ThreadWaiter:
    """A thread that waits."""

    def __init__(self) -> None:
        self.signal: Signal | None = None
        self._event = threading.Event()

    def wake(self) -> None:
        self._event.set()

    def calm(self) -> None:
        self._event.clear()

    def wait(self, seconds: float | None) -> None:
        self._event.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))


class TaskWaiter:
    """A task that waits."""

    def __init__(self) -> None:
        self.signal: Signal | None = None
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    def calm(self) -> None:
        self._event.clear()

    async def wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class _Line:
    __slots__ = ("since", "streak", "waiters")

    def __init__(self) -> None:
        self.since = now()
        self.waiters: deque[Waiter] = deque()
        self.streak = 0


_lines: dict[Hashable, _Line] = {}
_held: dict[Hashable, weakref.ref[object]] = {}
_dropped: deque[tuple[Hashable, weakref.ref[object]]] = deque()
"""Places whose handles are gone: the lock was left to its lease, and nobody says ``left``."""
_lock = threading.Lock()


def _signal(line: _Line, signal: Signal) -> None:
    first = line.waiters[0]
    # What says more stays: a release must not be forgotten for a change of place.
    if not (signal == "first" and first.signal == "released"):
        first.signal = signal
    first.wake()


def held(place: Hashable, handle: object) -> None:
    """The lock at ``place`` was taken by this process, as ``handle``."""
    with _lock:
        while _dropped:
            before, reference = _dropped.popleft()
            if _held.get(before) is reference:
                del _held[before]
        # Whoever collects it may have the lock: so it is only noted here.
        _held[place] = weakref.ref(handle, lambda reference: _dropped.append((place, reference)))


def left(place: Hashable, handle: object, *, free: bool) -> None:
    """``handle`` no longer holds the lock at ``place``; ``free`` if it gave it back."""
    with _lock:
        if (holder := _held.get(place)) is not None and holder() in (handle, None):
            del _held[place]
        line = _lines.get(place)
        if line is None:
            return
        line.streak += 1
        if free and line.streak <= STREAK:
            _signal(line, "released")
        else:
            line.streak = 0
            _signal(line, "yield")


def holder_at(place: Hashable) -> object:
    """The handle by which this process holds the lock at ``place``; ``None`` if it does not."""
    with _lock:
        found = _held.get(place)
    return None if found is None else found()


def waiting(place: Hashable) -> int:
    """How many of this process wait for the lock at ``place``."""
    with _lock:
        line = _lines.get(place)
        return len(line.waiters) if line is not None else 0


def waits() -> list[Wait]:
    """What callers of this process wait for, and since when: for the figures."""
    with _lock:
        lines = [(place, len(line.waiters), line.since) for place, line in _lines.items()]
    return [("lock", _key(place), count, now() - since) for place, count, since in lines]


def _key(place: Hashable) -> str:
    """The key of the lock at ``place``: the last part of it; see ``Lock.where``."""
    return str(place[-1] if isinstance(place, tuple) else place)


def _join(place: Hashable, waiter: Waiter) -> None:
    with _lock:
        line = _lines.get(place)
        if line is None:
            line = _lines[place] = _Line()
        line.waiters.append(waiter)


def _leave(place: Hashable, waiter: Waiter) -> None:
    with _lock:
        line = _lines.get(place)
        if line is None or waiter not in line.waiters:
            return
        was_first = line.waiters[0] is waiter
        line.waiters.remove(waiter)
        if not line.waiters:
            del _lines[place]
        elif was_first:
            # A release that this waiter was told of, and can't use any more, is passed on.
            _signal(line, "released" if waiter.signal == "released" else "first")


def _state(place: Hashable, waiter: Waiter) -> tuple[bool, Signal | None, bool, int]:
    """Whether ``waiter`` is first, why it was woken, whether the lock is held here, and how many lines there are."""
    with _lock:
        waiter.calm()
        signal, waiter.signal = waiter.signal, None
        holder = _held.get(place)
        held_here = holder is not None and holder() is not None
        return _lines[place].waiters[0] is waiter, signal, held_here, len(_lines)


def _interval(lines: int, age: float = 0.0, took: float = 0.0) -> float:
    """Seconds until the next read, where the lock has been held for ``age`` seconds and the last read took ``took``."""
    fair = POLL * max(1.0, lines / SHARED_BY)
    return max(fair, min(SLOWEST, age / SHARE), min(1.0, took * SLOW)) * random.uniform(0.9, 1.1)


def _forget_parent() -> None:
    global _lock
    _lock = threading.Lock()
    _lines.clear()
    _held.clear()
    _dropped.clear()


counters.announce(waits)
at_fork(child=_forget_parent)
