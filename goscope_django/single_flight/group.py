"""The callers of one process that want the same flight. One of them talks to the server, the others wait for it.

Rules of this file:

* A key has at most one *contender* in a process: a thread or a task that leads the flight or looks for its result. All
  other callers are *waiters*, threads and tasks alike; they send nothing to the server.
* A contender that ends without an answer (its time is up, its task was cancelled) passes its part on to a waiter.
* A caller that comes when the answer is already being published does not get that answer: see ``close``.
* Nothing here blocks while it holds the lock, and a forked child starts without callers.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from goscope_django.core.flow import Flow, call
from goscope_django.core.forking import at_fork
from goscope_django.mongodb.figures import Wait
from goscope_django.mongodb.single_flight.values import Entered
from goscope_django.process import counters

Place = tuple[int, str]
"""A flight in this process: which store, and the key."""

FLOOR: Final = 0.02
FAR: Final = 0.3
RATE: Final = 10.0
"""Commands per second and waiting caller."""


class Signal(Enum):
    """What a waiter may get instead of an answer."""

    AGAIN = "begin anew: the answer is not for you"
    PROMOTED = "you are the contender now"


@dataclass(eq=False, slots=True)
class Waiter:
    """One caller that waits. ``joined`` is monotonic, ``loop`` the event loop of a task."""

    loop: asyncio.AbstractEventLoop | None = None
    future: Future[Any] = field(default_factory=Future)
    joined: float = field(default_factory=time.monotonic)

    def tell(self, answer: object) -> bool:
        """Give it its answer; ``False`` if it no longer waits."""
        if (self.loop is not None and self.loop.is_closed()) or not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(answer)
        return True

    def result(self, deadline: float) -> Any:
        """Wait for the answer. Raises ``TimeoutError`` at ``deadline`` (monotonic)."""
        return self.future.result(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))

    async def aresult(self, deadline: float) -> Any:
        """Async version of ``result``."""
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await asyncio.wrap_future(self.future)


@dataclass(eq=False, slots=True)
class Entry:
    """The callers of one key in this process. ``flight`` is what an earlier contender learnt of it."""

    key: Place
    waiters: list[Waiter] = field(default_factory=list)
    flight: Entered | None = None

    def callers(self) -> int:
        """How many callers wait, the contender included."""
        return len(self.waiters) + 1

    def known_to(self, waiter: Waiter) -> int | None:
        """The token of a flight for which ``waiter`` certainly waited, if there is one."""
        return self.flight.token if self.flight is not None and waiter.joined <= self.flight.proven else None


class Group:
    """All entries of one process."""

    def __init__(self) -> None:
        self._lock: threading.Lock
        self._entries: dict[Place, Entry]
        self._undecided: dict[Place, int]
        self.clear()

    def clear(self) -> None:
        """Begin without callers, as a forked child does: none of its parent's threads run in it."""
        self._lock, self._entries, self._undecided = threading.Lock(), {}, {}

    def enter(self, key: Place, loop: asyncio.AbstractEventLoop | None = None) -> tuple[Entry, Waiter | None]:
        """Become the contender of ``key`` (no waiter), or a waiter. A task gives its ``loop``."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry(key)
                return entry, None
            waiter = Waiter(loop)
            entry.waiters.append(waiter)
            return entry, waiter

    def close(self, entry: Entry) -> None:
        """Callers that come from now on do not join ``entry``. To be called before its answer is published."""
        with self._lock:
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]

    def settle(self, entry: Entry, answer: object, served: Callable[[float], bool] | None = None) -> None:
        """Give all waiters ``answer``. Those for whom ``served(joined)`` is false begin again."""
        self.close(entry)
        with self._lock:
            waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            waiter.tell(answer if served is None or served(waiter.joined) else Signal.AGAIN)

    def leave(self, entry: Entry) -> None:
        """The contender ends without an answer: the next waiter takes its place."""
        while True:
            with self._lock:
                if not entry.waiters:
                    if self._entries.get(entry.key) is entry:
                        del self._entries[entry.key]
                    return
                waiter = entry.waiters.pop(0)
            if waiter.tell(Signal.PROMOTED):
                return

    def conclude(self, entry: Entry, flight: Entered, answer: object | None) -> None:
        """The leader has ended ``flight``: give all waiters its answer, or let the next one take its place."""
        self.close(entry)
        if answer is not None:
            self.settle(entry, answer)
        else:
            entry.flight = replace(flight, proven=time.monotonic())  # all of them joined before this moment
            self.leave(entry)

    def give_up(self, entry: Entry, waiter: Waiter) -> Any:
        """``waiter`` stops waiting. Returns its answer if that has come meanwhile, else ``None``."""
        if waiter.future.cancel():
            with self._lock:
                if waiter in entry.waiters:
                    entry.waiters.remove(waiter)
            return None
        return waiter.future.result()

    def answer(self, entry: Entry, waiter: Waiter, deadline: float) -> Flow[Any]:
        """The answer that ``waiter`` gets until ``deadline`` (monotonic), or ``None``."""
        try:
            return (yield from call(waiter.result, waiter.aresult, deadline))
        except TimeoutError:
            return self._late(entry, waiter)
        except BaseException:
            self._late(entry, waiter)
            raise

    def _late(self, entry: Entry, waiter: Waiter) -> Any:
        answer = self.give_up(entry, waiter)
        if answer is not Signal.PROMOTED:
            return answer
        self.leave(entry)
        return None

    # A result that waits for the end of a transaction: a caller on the same thread must not wait for it.

    def undecided(self, key: Place) -> bool:
        """Whether this thread has a result of ``key`` that waits for the end of a transaction."""
        return self._undecided.get(key) == threading.get_ident()

    def decide_later(self, key: Place) -> Callable[[], None]:
        """Note that this thread has one. Calling what is returned takes the note back."""
        thread = threading.get_ident()
        with self._lock:
            self._undecided[key] = thread

        def forget() -> None:
            with self._lock:
                if self._undecided.get(key) == thread:
                    del self._undecided[key]

        return forget

    def waits(self) -> list[Wait]:
        """For the figures: what callers of this process wait for, how many do, and since when."""
        with self._lock:
            lines = [(one.key[1], [waiter.joined for waiter in one.waiters]) for one in self._entries.values()]
        now = time.monotonic()
        return [("flight", key, len(joined), now - min(joined)) for key, joined in lines if joined]


def pause(waited: float, flying: float, sent: int, callers: int, expected: float | None) -> float:
    """Seconds until the server is asked again.

    ``waited`` is how long the caller has waited, ``flying`` how long the flight has been in the air, ``sent`` how many
    commands were sent, ``callers`` how many wait here, ``expected`` how long such a flight took before, if known (all
    times in seconds). We may send ``RATE`` commands a second and caller: most of them when the result is expected, or
    evenly spread if we don't know when.
    """
    rate = RATE * callers
    if expected is not None and flying < 0.9 * expected:
        chosen = min(0.95 * expected - flying, FAR)
    elif expected is not None and sent < rate * waited:
        chosen = FLOOR
    elif expected is None and sent <= 2:
        chosen = FLOOR * sent
    else:
        chosen = min((sent + 1) / rate - waited, 1.5 / rate)
    return max(FLOOR, chosen) * random.uniform(0.85, 1.15)


group = Group()
counters.announce(group.waits)
at_fork(child=group.clear)
