"""Leases kept alive: one thread renews all leases of a process, one task those of an event loop.

What could not be given back is tried again by another thread or task, so that no renewal waits for it.

``keep`` and ``akeep`` take a lease that was granted and renew it until it is stopped. Rules of this file:

* A lease is renewed at a third of its length. What is due soon goes along, with one command for each kind.
* A lease ends here at a deadline that was taken *before* the renewal was sent. So its holder learns that it is lost
  even if the renewer hangs or the server can't be reached: whoever asks looks at the clock.
* A failed renewal is not yet a loss: it is tried again until the deadline, each attempt with a time limit of its own.
* A renewal never shortens a lease, and it is stopped before its document is released.
* What an event loop had to give back when it ended is given back by the process's thread, on the sync client.
* A forked child has none of its parent's leases: they belong to the parent.
* The clock goes on while the machine sleeps, and does not jump when somebody sets the time.

After Redisson's watchdog (a third of the lease) and the faults that users of it and its peers report.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.core.forking import at_fork
from goscope_django.exceptions import GoscopeError
from goscope_django.mongodb.driver import loops
from goscope_django.process.kept_lease import Extendable, GivenBack, Lost, Renewable, Renewal, now

__all__ = ["Extendable", "GivenBack", "Lost", "Renewable", "Renewal", "akeep", "give_back_later", "keep", "now"]

logger = logging.getLogger("goscope.renewal")
RETRY: Final = 0.5
"""Seconds until a renewal that failed is tried again, at most."""
SHORTEST: Final = 0.1
"""Seconds that an attempt gets at least."""
LONGEST: Final = 10.0
BATCH: Final = 1_000
_IDLE: Final = 30.0
_BRIEFLY: Final = 1.0
"""Seconds without work after which a renewer's thread ends; the second for what is given back, which is rare."""
_LONGEST_SLEEP: Final = 3_600.0
"""Seconds; threads can't be told to sleep for centuries."""


def keep(
    renewable: Renewable | Extendable,
    started: float,
    on_lost: Callable[[], object] | None = None,
    *,
    renew: bool = True,
) -> Renewal:
    """Keep a lease alive on the process's renewal thread; with ``renew=False`` only watch its deadline.

    ``started`` is ``time.monotonic()`` from before the command was sent that granted it. ``on_lost`` is called once if
    the lease is lost. Sends nothing itself.
    """
    renewal = _renewal(renewable, started, on_lost, renew)
    # A lock backend of the user's may hang for as long as it likes: it has a thread of its own.
    _thread(renewable.lane).add(renewal)
    return renewal


def akeep(
    renewable: Renewable | Extendable,
    started: float,
    on_lost: Callable[[], object] | None = None,
    *,
    renew: bool = True,
) -> Renewal:
    """Async version of ``keep``: the running event loop's renewal task keeps the lease alive."""
    renewal = _renewal(renewable, started, on_lost, renew)
    loop, lane = asyncio.get_running_loop(), renewable.lane
    tasks = _tasks.get(loop)
    if tasks is None:
        tasks = _tasks[loop] = {}
    if lane not in tasks:
        tasks[lane] = _Task(loop, lane)
    tasks[lane].add(renewal)
    return renewal


def give_back_later(what: GivenBack, over: Callable[[], object] | None = None) -> Flow[None]:
    """Try in the background to give ``what`` back: first in half a second, then again and again until its lease ends.

    ``over`` is called when it is given back or its lease has ended. In a task the running event loop does it; when that
    ends, the process's thread goes on.
    """
    kept: Renewal = yield from call(keep, akeep, what, time.monotonic(), over)
    kept.plan(_retry(kept))


def _renewal(
    renewable: Renewable | Extendable, started: float, on_lost: Callable[[], object] | None, renew: bool
) -> Renewal:
    # Callers take the time with time.monotonic(); only the age counts.
    return Renewal(renewable, now() - (time.monotonic() - started), on_lost, renew=renew)


def _batches(due: list[Renewal]) -> list[list[Renewal]]:
    """What one command each can renew: of one kind, a thousand or a megabyte of keys at most."""
    groups: dict[object, list[Renewal]] = {}
    for one in due:
        groups.setdefault(one.renewable.kind, []).append(one)
    batches = []
    for group in groups.values():
        batch: list[Renewal] = []
        size = 0
        for one in group:
            size += len(one.renewable.key)
            if batch and (len(batch) >= BATCH or size > 1_000_000):
                batches.append(batch)
                batch, size = [], len(one.renewable.key)
            batch.append(one)
        batches.append(batch)
    return batches


def _failed(group: list[Renewal], error: Exception) -> None:
    if _closing or sys.is_finalizing():
        return
    level = logging.DEBUG if all(one.failures for one in group) else logging.WARNING
    unexpected = None if isinstance(error, GoscopeError) else error
    what = "given back" if isinstance(group[0].renewable, GivenBack) else "renewed"
    logger.log(level, "%d leases could not be %s yet: %s", len(group), what, error, exc_info=unexpected)


def _retry(one: Renewal) -> float:
    return min(RETRY, one.renewable.milliseconds / 10_000)


def _settle(group: list[Renewal], started: float, held: frozenset[str] | None) -> None:
    """Take note of a batch sent at ``started``; ``held`` are the claims that it renewed, ``None`` if it failed."""
    for one in group:
        one.sending = False
        if held is None:
            one.failures += 1
            one.due = now() + _retry(one)
            one.check()
        elif one.renewable.claim in held:
            one.failures = 0
            one.renewed(started)
            one.check()
        else:
            one.lose()


class _Book:
    """The leases of one renewer, and when it will look at them next."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: set[Renewal] = set()
        self.planned = -math.inf
        self.first_deadline = math.inf

    def add(self, renewal: Renewal) -> bool:
        """``True`` if the renewer would look too late."""
        with self.lock:
            self.entries.add(renewal)
            return renewal.next < self.planned

    def discard(self, renewal: Renewal) -> bool:
        """``True`` if nothing is left."""
        with self.lock:
            self.entries.discard(renewal)
            return not self.entries

    def take_due(self) -> tuple[list[list[Renewal]], float | None]:
        """What is to be sent now, and else for how long there is nothing to do (``None``: until something is added)."""
        with self.lock:
            self.entries = {one for one in self.entries if one.active}
            entries = list(self.entries)
            # Whatever is added from here on may be due before the moment that is worked out below.
            self.planned = math.inf
        entries = [one for one in entries if one.check()]
        moment = now()
        due: list[Renewal] = []
        if any(one.next <= moment for one in entries):
            # What is due soon goes along: a batch costs one command, however long.
            soon = [one for one in entries if one.due <= moment + min(1.0, one.renewable.milliseconds / 20_000)]
            due = [one for one in soon if one.send()]
        with self.lock:
            self.first_deadline = min((one.deadline for one in self.entries), default=math.inf)
            self.planned = -math.inf if due else min((one.next for one in self.entries), default=math.inf)
            pause = None if self.planned == math.inf else max(0.0, self.planned - now())
        return _batches(due), pause

    def limit(self, group: list[Renewal]) -> float:
        """Seconds for an attempt: there is time for another before the deadline, and no deadline passes unnoticed."""
        moment = now()
        half = (min(one.deadline for one in group) - moment) / 2
        return max(SHORTEST, min(half, self.first_deadline - moment, LONGEST))


def _renew_due(book: _Book) -> Flow[tuple[bool, float | None]]:
    """Renew what is due. Whether anything was sent, and else for how many seconds there is nothing to do."""
    groups, pause = book.take_due()
    for group in groups:
        started, held = now(), None
        try:
            held = yield from _renew(group, book.limit(group))
        except Exception as error:  # noqa: BLE001 - whatever it was: tried again
            _failed(group, error)
        _settle(group, started, held)
    return bool(groups), pause


def _renew(group: list[Renewal], seconds: float) -> Flow[frozenset[str]]:
    batch = [one.renewable for one in group]
    return call(lambda: batch[0].renew(batch, seconds), lambda: batch[0].arenew(batch, seconds))


class _Thread:
    """A renewer of the process."""

    def __init__(self, lane: str) -> None:
        self.name = f"goscope-{lane}"
        self.idle = _BRIEFLY if lane == GivenBack.lane else _IDLE
        self.book = _Book()
        self.wake = threading.Event()
        self.thread: threading.Thread | None = None

    def add(self, renewal: Renewal) -> None:
        renewal.renewer = self
        if self.book.add(renewal):
            self.wake.set()
        with self.book.lock:
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self.work, name=self.name, daemon=True)
                try:
                    self.thread.start()
                except RuntimeError:  # the interpreter ends: the lease does with it, at its deadline at the latest
                    self.thread = None

    def hurry(self, renewal: Renewal) -> None:
        if self.book.add(renewal):
            self.wake.set()

    def discard(self, renewal: Renewal) -> None:
        self.book.discard(renewal)

    def work(self) -> None:
        while not _closing:
            self.wake.clear()
            sent, pause = carry_out(_renew_due(self.book))
            if (
                not sent
                and not self.wake.wait(self.idle if pause is None else min(pause, _LONGEST_SLEEP))
                and pause is None
            ):
                with self.book.lock:
                    if not self.book.entries:
                        self.thread = None
                        return


class _Task:
    """An event loop's renewer. Ends when there is nothing left, so that no loop is closed with a task pending."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lane: str) -> None:
        self.loop = loop
        self.lane = lane
        self.book = _Book()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def add(self, renewal: Renewal) -> None:
        renewal.renewer = self
        if self.book.add(renewal):
            self.wake.set()
        if self.task is None or self.task.done():
            self.task = self.loop.create_task(self.work(), name=f"goscope-{self.lane}")

    def hurry(self, renewal: Renewal) -> None:
        if self.book.add(renewal):
            self._rouse()

    def discard(self, renewal: Renewal) -> None:
        if self.book.discard(renewal):
            self._rouse()

    def _rouse(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.wake.set)

    async def work(self) -> None:
        try:
            while True:
                self.wake.clear()
                sent, pause = await acarry_out(_renew_due(self.book))
                if not sent:
                    if pause is None:
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()
        finally:
            self.hand_over()
            tasks = _tasks.get(self.loop, {})
            if tasks.get(self.lane) is self:
                del tasks[self.lane]
                if not tasks:
                    del _tasks[self.loop]

    def hand_over(self) -> None:
        """Nothing more is done here: what was to be given back is given to the process's thread."""
        for one in list(self.book.entries):
            one.sending = False
            if self.lane == GivenBack.lane and one.active:
                self.book.discard(one)
                _thread(self.lane).add(one)

    async def end(self) -> None:
        """The loop ends."""
        task = self.task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        self.hand_over()  # a task that never began has not


def _thread(lane: str) -> _Thread:
    found = _threads.get(lane)
    return found if found is not None else _threads.setdefault(lane, _Thread(lane))


async def _loop_ends(*_: object) -> None:
    found = _tasks.get(asyncio.get_running_loop(), {}).get(GivenBack.lane)
    if found is not None:
        await found.end()


_threads: dict[str, _Thread] = {}
_tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Task]] = WeakKeyDictionary()
_closing = False


def _forget_parent() -> None:
    _threads.clear()
    _tasks.clear()


@atexit.register
def _close() -> None:
    global _closing
    _closing = True
    for thread in _threads.values():
        thread.wake.set()


at_fork(child=_forget_parent)
loops.on_loop_end(_loop_ends)
