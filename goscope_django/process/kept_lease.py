"""One lease that is kept alive, as its holder sees it: when it ends, whether it is lost, who is told of the loss.

``Renewal`` is the lease as ``process.renewal`` looks after it; ``Renewable`` and ``Extendable`` say how it is renewed.
Rules of this file:

* The local deadline is the truth. Whether a lease is lost is found out by looking at the clock, never only by being
  told, so that a renewer that hangs can't hide a loss.
* A renewal sends nothing itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from goscope_django.core.forking import at_fork
from goscope_django.core.ticks import tick
from goscope_django.mongodb.document.lease import Lease, renew_all
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.store import Store

logger = logging.getLogger("goscope.renewal")
now: Final = tick
"""Seconds on a clock that never jumps and, where the system has one, counts while the machine sleeps."""


class Lost:
    """Says whether a lease is gone. It is asked like a ``threading.Event``; only the renewal sets it.

    It is set at the lease's local deadline at the latest, whatever the renewer does by then.
    """

    __slots__ = ("_renewal",)

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal

    def __repr__(self) -> str:
        return f"<lost: {self.is_set()}>"

    def is_set(self) -> bool:
        """Whether the lease is gone. Asks the clock, never the server."""
        return not self._renewal.check()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lease is gone (``True``), or was given back or ``timeout`` seconds passed (``False``)."""
        end = math.inf if timeout is None else now() + timeout
        while not self.is_set() and self._renewal.active:
            left = end - now()
            if left <= 0:
                return False
            self._renewal.sleep(min(left, max(0.001, self._renewal.deadline - now())))
        return self.is_set()


class Renewer(Protocol):
    """Who looks after a renewal."""

    def discard(self, renewal: Renewal) -> None:
        """It is over."""

    def hurry(self, renewal: Renewal) -> None:
        """It may be due earlier than planned."""


class Renewal:
    """One lease that is kept alive until ``stop``. Usable from any thread.

    ``lost`` is set once the lease has ended or was taken over; ``on_lost`` is then called once, on the renewer's
    thread or task, or by whoever notices first. ``deadline`` is the local end of the lease, on the clock of ``now()``.
    """

    __slots__ = (
        "_extended",
        "_lost",
        "_on_lost",
        "_over",
        "_pid",
        "_stopped",
        "_watchers",
        "deadline",
        "due",
        "failures",
        "lost",
        "paused",
        "renewable",
        "renewer",
        "sending",
    )

    def __init__(
        self, renewable: Renewable | Extendable, started: float, on_lost: Callable[[], object] | None, *, renew: bool
    ) -> None:
        self.renewable = renewable
        self.failures = 0
        self.paused = not renew
        self.sending = False
        self.lost = Lost(self)
        self._on_lost = on_lost
        self._watchers: list[Callable[[], object]] = []
        self._over: threading.Event | None = None
        self.renewer: Renewer | None = None
        self._stopped = False
        self._lost = False
        self._pid = os.getpid()
        self._extended = -math.inf
        self._grant(started, renewable.milliseconds)

    def _grant(self, started: float, milliseconds: int) -> None:
        self.deadline = started + milliseconds / 1_000
        # Not a third after the start: an extension that is longer than the lease needs no renewal for as long.
        self.due = self.deadline - min(milliseconds, self.renewable.milliseconds) / 1_500

    def renewed(self, started: float) -> None:
        """The lease was renewed by a command that was sent at ``started``."""
        # A renewal never shortens, so one that crossed an extension says nothing about the deadline.
        if started >= self._extended:
            deadline, due = self.deadline, self.due
            self._grant(started, self.renewable.milliseconds)
            if self.deadline < deadline:
                self.deadline, self.due = deadline, due

    def extended(self, started: float, milliseconds: int) -> None:
        """The holder itself moved the lease's end, by a command that was sent at ``started`` and has been answered."""
        crossed = self.deadline if started < self._extended else math.inf
        self._extended = now()
        self._grant(started, milliseconds)
        self.deadline = min(self.deadline, crossed)
        if self.renewer is not None:
            self.renewer.hurry(self)

    @property
    def active(self) -> bool:
        """Whether it is still held, as far as is known, and to be renewed."""
        return not (self._stopped or self._lost)

    @property
    def next(self) -> float:
        """When the renewer has to look at it."""
        return self.deadline if self.paused else min(self.due, self.deadline)

    def send(self) -> bool:
        """Whether it may be sent now; if so it counts as on its way until ``sending`` is set to false."""
        # In this order: whoever pauses it sets ``paused`` first and looks at ``sending`` then.
        self.sending = True
        self.sending = not self.paused and self.active
        return self.sending

    def when_over(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the lease is lost or the renewal stopped, once or twice; now if it is."""
        with _guard:
            self._watchers.append(callback)
            waits = self.active
        if not waits:
            _call(callback)

    def forget(self, callback: Callable[[], object]) -> None:
        """Take a callback of ``when_over`` back."""
        with _guard, contextlib.suppress(ValueError):
            self._watchers.remove(callback)

    def lose(self, *, stopped: bool = False) -> None:
        """Tell that the lease is gone; with ``stopped`` even though the renewal was stopped before that was known."""
        with _guard:
            if self._lost or (self._stopped and not stopped):
                return
            self._lost = True
            on_lost, self._on_lost = self._on_lost, None
        self._end()
        if on_lost is not None and self._pid == os.getpid():
            _call(on_lost)

    def check(self) -> bool:
        """Whether the lease is certainly still held: not lost, its local deadline ahead, and this is the holder."""
        if self.active and (now() >= self.deadline or self._pid != os.getpid()):
            self.lose()
        return not self._lost

    def stop(self) -> None:
        """No more renewals. A renewal that is on its way changes nothing once the document is released."""
        with _guard:
            self._stopped = True
        self._end()

    def watch(self) -> None:
        """After a ``stop`` whose release failed: no more renewals, but the end of the lease counts as a loss."""
        with _guard:
            if self._lost:
                return
            self.paused, self._stopped, self._over = True, False, None
        if self.renewer is not None:
            self.renewer.hurry(self)

    def abandon(self) -> None:
        """``stop`` for finalizers. They may run while any lock is held: it takes none, the renewer tidies up."""
        self._stopped = True

    def _end(self) -> None:
        if self._over is not None:
            self._over.set()
        if self.renewer is not None:
            self.renewer.discard(self)
        for callback in list(self._watchers):
            _call(callback)

    def plan(self, seconds: float) -> None:
        """Let the next renewal be due in ``seconds``."""
        self.due = now() + seconds
        if self.renewer is not None:
            self.renewer.hurry(self)

    def pause(self) -> Callable[[], None]:
        """No renewals until the function that is returned is called. One may be on its way: see ``sending``."""
        before = self.paused
        self.paused = True

        def resume() -> None:
            self.paused = before
            if self.renewer is not None and self.active:
                self.renewer.hurry(self)

        return resume

    def sleep(self, seconds: float) -> None:
        """Sleep for an hour at most, and not longer than it is active."""
        with _guard:
            if self._over is None:
                self._over = threading.Event()
                if not self.active:
                    self._over.set()
            over = self._over
        over.wait(min(seconds, 3_600.0))


@dataclass(frozen=True, slots=True)
class Renewable:
    """A leased document, found by ``name`` (``key`` or ``_id``) and held by ``claim``."""

    store: Store
    collection: str
    key: str
    claim: str
    milliseconds: int
    name: str = "key"
    lease: Lease = field(default_factory=Lease)
    lane: ClassVar[str] = "renewal"

    @property
    def kind(self) -> Hashable:
        """Equal for what one command can renew together."""
        return (id(self.store), self.collection, self.name, self.lease, self.milliseconds)

    def _arguments(self, group: Sequence[Any]) -> tuple[str, str, Lease, list[tuple[str, str]], int]:
        return self.collection, self.name, self.lease, [(one.key, one.claim) for one in group], self.milliseconds

    def renew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Renew ``group`` (all of this kind) within ``seconds``; the claims whose leases still last."""
        with within(seconds, urgent=True):
            return self.store.run(renew_all, *self._arguments(group))

    async def arenew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Async version of ``renew``."""
        with within(seconds, urgent=True):
            return await self.store.arun(renew_all, *self._arguments(group))


@dataclass(frozen=True, slots=True, eq=False)
class Extendable:
    """A lease that is renewed by a call of its own, which returns whether it is still held."""

    key: str
    claim: str
    milliseconds: int
    extend: Callable[[], bool]
    aextend: Callable[[], Awaitable[bool]]
    lane: ClassVar[str] = "backend-renewal"

    @property
    def kind(self) -> Hashable:
        """Never equal to another's."""
        return id(self)

    def renew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Renew this lease; its claim if it is still held."""
        return frozenset([self.claim] if self.extend() else ())

    async def arenew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Async version of ``renew``."""
        return frozenset([self.claim] if await self.aextend() else ())


class GivenBack(Extendable):
    """What could not be given back and is tried again until it is, or until the lease has ended. It is not renewed.

    Its calls give it back and return ``False``; they raise if that failed.
    """

    __slots__ = ()
    lane: ClassVar[str] = "release"


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        logger.exception("the callback for a lost lease failed")


def _forget_parent() -> None:
    global _guard
    _guard = threading.Lock()


_guard = threading.Lock()
at_fork(child=_forget_parent)
