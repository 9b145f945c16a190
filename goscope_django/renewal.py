"""Leases kept alive: one thread for all of a process's leases, one task for all of an event loop's.

Rules of this file:

* A lease is renewed at a third of its length, all that are due with one command for each kind. The lease ends locally at a
  monotonic deadline that was taken *before* the renewal was sent, so that a holder knows of its loss even if the renewer
  starves or the server is gone.
* A failed renewal is not yet a loss: it is tried again until the deadline.
* A renewal is stopped before its document is released, so that nothing revives what was given back.
* A forked child has none of its parent's leases: they belong to the parent.

After Redisson's watchdog (a third of the lease) and the faults its users report (``research``: L7 to L9).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from goscope_django.exceptions import GoscopeError
from goscope_django.mongodb.lease import Lease, renew_all
from goscope_django.mongodb.store import Store

logger = logging.getLogger("goscope.renewal")
RETRY: Final = 0.5
"""Seconds until a renewal that failed is tried again, at most."""


@dataclass(frozen=True, slots=True)
class Renewable:
    """What to renew: a leased document, found by ``name`` (``key`` or ``_id``) and held by ``claim``."""

    store: Store
    collection: str
    key: str
    claim: str
    milliseconds: int
    name: str = "key"
    lease: Lease = field(default_factory=Lease)

    @property
    def kind(self) -> tuple[int, str, str, Lease, int]:
        """Equal for what one command can renew together."""
        return (id(self.store), self.collection, self.name, self.lease, self.milliseconds)


class Renewal:
    """One lease that is kept alive until ``stop``. Usable from any thread.

    ``lost`` is set once the lease has ended or was taken over; ``on_lost`` is called once, on the renewer's thread or task.
    """

    __slots__ = ("_on_lost", "_stopped", "deadline", "due", "failures", "lost", "renewable")

    def __init__(self, renewable: Renewable, started: float, on_lost: Callable[[], object] | None) -> None:
        self.renewable = renewable
        self.lost = threading.Event()
        self.failures = 0
        self._on_lost = on_lost
        self._stopped = False
        self.renewed(started)

    def renewed(self, started: float) -> None:
        """The lease was granted or renewed by a command that was sent at ``started`` (monotonic seconds)."""
        seconds = self.renewable.milliseconds / 1_000
        self.deadline = started + seconds
        self.due = started + seconds / 3

    @property
    def active(self) -> bool:
        """Whether it is still to be renewed."""
        return not self._stopped and not self.lost.is_set()

    def lose(self) -> None:
        """Tell that the lease is gone."""
        if not self.active:
            return
        self.lost.set()
        if self._on_lost is not None:
            try:
                self._on_lost()
            except Exception:
                logger.exception("the callback for a lost lease failed")

    def check(self) -> bool:
        """Whether the lease is certainly still held: not lost, and its local deadline ahead."""
        if self.active and time.monotonic() >= self.deadline:
            self.lose()
        return not self.lost.is_set()

    def stop(self) -> None:
        """No more renewals. A renewal that is on its way changes nothing once the document is released."""
        self._stopped = True


def _by_kind(due: Iterable[Renewal]) -> list[list[Renewal]]:
    groups: dict[object, list[Renewal]] = {}
    for one in due:
        groups.setdefault(one.renewable.kind, []).append(one)
    return list(groups.values())


def _settle(group: list[Renewal], started: float, held: frozenset[str] | None) -> None:
    """Take note of a batch that was sent at ``started``; ``held`` are the claims that it renewed, ``None`` if it failed."""
    for one in group:
        if held is None:
            one.failures += 1
            one.due = time.monotonic() + min(RETRY, one.renewable.milliseconds / 10_000)
        elif one.renewable.claim in held:
            one.failures = 0
            one.renewed(started)
        else:
            one.lose()
    for one in group:
        one.check()


class _Book:
    """The leases of one renewer. All access is under ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: set[Renewal] = set()

    def take_due(self) -> tuple[list[list[Renewal]], float | None]:
        """What is due now, by kind, and how long to wait for the next one (``None``: nothing left)."""
        now = time.monotonic()
        with self.lock:
            self.entries = {one for one in self.entries if one.active}
            entries = list(self.entries)
        for one in entries:
            one.check()
        entries = [one for one in entries if one.active]
        # What is due within a moment goes along: a batch costs one command.
        due = [one for one in entries if one.due <= now + min(0.05, one.renewable.milliseconds / 20_000)]
        rest = [min(one.due, one.deadline) for one in entries if one not in due] if len(due) < len(entries) else []
        return _by_kind(due), (max(0.0, min(rest) - now) if rest else None) if not due else 0.0


class _Thread:
    """The process's renewer."""

    def __init__(self) -> None:
        self.book = _Book()
        self.wake = threading.Event()
        self.thread: threading.Thread | None = None

    def add(self, renewal: Renewal) -> None:
        with self.book.lock:
            self.book.entries.add(renewal)
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self.work, name="goscope-renewal", daemon=True)
                self.thread.start()
        self.wake.set()

    def work(self) -> None:
        while True:
            self.wake.clear()
            groups, pause = self.book.take_due()
            for group in groups:
                started, held, first = time.monotonic(), None, group[0].renewable
                try:
                    held = first.store.run(renew_all, first.collection, *_batch(group))
                except GoscopeError as error:
                    logger.warning("%d leases of %s could not be renewed yet: %s", len(group), first.collection, error)
                except Exception:
                    logger.exception("renewing %d leases failed", len(group))
                _settle(group, started, held)
            if not groups and not self.wake.wait(30.0 if pause is None else pause) and pause is None:
                with self.book.lock:
                    if not any(one.active for one in self.book.entries):
                        self.thread = None
                        return


def _batch(group: list[Renewal]) -> tuple[str, Lease, list[tuple[str, str]], int]:
    first = group[0].renewable
    return first.name, first.lease, [(one.renewable.key, one.renewable.claim) for one in group], first.milliseconds


class _Task:
    """An event loop's renewer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.book = _Book()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def add(self, renewal: Renewal) -> None:
        with self.book.lock:
            self.book.entries.add(renewal)
        self.wake.set()
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.work(), name="goscope-renewal")

    async def work(self) -> None:
        while True:
            self.wake.clear()
            groups, pause = self.book.take_due()
            for group in groups:
                started, held, first = time.monotonic(), None, group[0].renewable
                try:
                    held = await first.store.arun(renew_all, first.collection, *_batch(group))
                except GoscopeError as error:
                    logger.warning("%d leases of %s could not be renewed yet: %s", len(group), first.collection, error)
                except Exception:
                    logger.exception("renewing %d leases failed", len(group))
                _settle(group, started, held)
            if not groups:
                if pause is None:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), pause)


_thread = _Thread()
_tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Task] = WeakKeyDictionary()


def keep(renewable: Renewable, started: float, on_lost: Callable[[], object] | None = None) -> Renewal:
    """Keep a lease alive on the process's renewal thread.

    ``started`` is ``time.monotonic()`` from before the command was sent that granted it.
    """
    renewal = Renewal(renewable, started, on_lost)
    _thread.add(renewal)
    return renewal


def akeep(renewable: Renewable, started: float, on_lost: Callable[[], object] | None = None) -> Renewal:
    """Keep a lease alive on the running event loop's renewal task; else like ``keep``."""
    renewal = Renewal(renewable, started, on_lost)
    loop = asyncio.get_running_loop()
    task = _tasks.get(loop)
    if task is None:
        task = _tasks[loop] = _Task(loop)
    task.add(renewal)
    return renewal


def _forget_parent() -> None:
    global _thread
    _thread = _Thread()
    _tasks.clear()


os.register_at_fork(after_in_child=_forget_parent)
