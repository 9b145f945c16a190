"""Who computes a value: one process of the fleet, on a lease. The others wait for it, or take the old value meanwhile.

Rules of this file:

* Waiting saves work and nothing more. Whatever stands in the way of it (the server, the pool of connections, the time)
  means to compute without waiting, never an error.
* A process that waited for another one and finds no value when that one has ended computes at once, whether or not it
  gets the lease: so that the failures of a callable never add up along a line.
* One that died while it computed is replaced by one other process; the rest wait for that one.
* A stale value is never waited for: one caller computes, all others get the old one at once. Where the callable fails,
  that one gets the old value as well, until ``stale`` ends.
* The versions of tags are read before the computing begins, so a value from before an invalidation is never fresh after
  it. Who waited in this process gets such a value no more than any other.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol

from goscope_django import conf, figures, locks, runtime
from goscope_django.cache.background import background
from goscope_django.cache.backing import Backing
from goscope_django.cache.together import Entry, Outcome, Place, together
from goscope_django.contracts import LockInfo
from goscope_django.core.arguments import shown_key
from goscope_django.core.flow import Flow, Pause, call, invoke, perform
from goscope_django.core.ticks import tick
from goscope_django.exceptions import LockNotAcquired, PoolExhausted, StoreError
from goscope_django.locks import HeldLock
from goscope_django.mongodb.cache import tags
from goscope_django.mongodb.cache.flows import MISSING, NOTHING, CacheFlows, Seen
from goscope_django.mongodb.cache.own import Terms
from goscope_django.mongodb.document.clock import Clock
from goscope_django.process.counters import HITS, MISSES, READ

POLL: Final = 0.03
"""Seconds between two looks at whether another process has ended."""
SHARED_BY: Final = 4
"""So many values are waited for at the full rate; with more of them each is looked at less often."""
LONGEST: Final = 0.5

ELSEWHERE: Final = 0.1
"""Seconds for which a process that found a stale value being computed by another one does not look again."""

_REMEMBERED: Final = 1_000

_waiting: list[str] = []
_elsewhere: dict[Place, float] = {}
Read = Callable[[], Flow[Any]]
Operation = Callable[[Clock], Flow[Any]]


class Turn:
    """A process's part in computing one value. ``lease`` is held if it got it."""

    def __init__(self, name: str, deadline: float, read: Read) -> None:
        """``name`` is the lease's, ``deadline`` (monotonic) ends the wait, ``read`` reads the value (``MISSING``)."""
        self.lease: HeldLock | None = None
        self._name = name
        self._deadline = deadline
        self._read = read

    def take(self) -> Flow[Any]:
        """The value if another process has computed it meanwhile; ``MISSING`` if it is to be computed here."""
        try:
            if (yield from self.attempt()):
                return (yield from self._read())
            return (yield from self._wait())
        except StoreError:
            return MISSING

    def give_back(self) -> Flow[None]:
        """Let go of the lease. While MongoDB can't be reached it ends by itself."""
        lease, self.lease = self.lease, None
        if lease is not None:
            try:
                yield from call(lease.release, lease.arelease)
            except StoreError:
                return

    def abandon(self) -> None:
        """Nobody runs this flow any more: the lease ends by itself."""
        self.lease = None

    def attempt(self) -> Flow[bool]:
        """Take the lease if nobody has it; whether it was taken."""
        lock = locks.lock(self._name, blocking=False)
        try:
            self.lease = yield from call(lock.acquire, lock.aacquire)
        except LockNotAcquired:
            return False
        return True

    def _holder(self) -> Flow[LockInfo | None]:
        store, name = locks.backend(), self._name
        found: LockInfo | None = yield from call(lambda: store.get(name), lambda: store.aget(name))
        return found

    def _wait(self) -> Flow[Any]:
        holder: LockInfo | None = None
        _waiting.append(self._name)
        try:
            while True:
                now = yield from self._holder()
                if now is None or (holder is not None and now.token != holder.token):
                    found = yield from self._read()
                    if found is not MISSING:
                        return found
                    if now is None:
                        yield from self.attempt()
                        now = None if self.lease is not None else (yield from self._holder())
                    if not _took_over(now, holder):
                        return MISSING
                holder, left = now, self._deadline - time.monotonic()
                if left <= 0:
                    return MISSING
                yield from perform(Pause(min(left, _interval())))
        finally:
            _waiting.remove(self._name)


def _took_over(now: LockInfo | None, before: LockInfo | None) -> bool:
    """Whether ``now`` holds the lease because that of ``before`` ran out: its process died, it did not fail."""
    if now is None or before is None or before.expires_at is None or now.created_at is None:
        return False
    return now.created_at >= before.expires_at


def _interval() -> float:
    return min(LONGEST, POLL * max(1.0, len(_waiting) / SHARED_BY)) * random.uniform(0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that somebody asks for: where it stands, and how it is computed and stored.

    ``ttl`` and ``stale`` are in milliseconds; ``tags`` are the tags as they are stored.
    """

    key: Any
    full: str
    default: Any
    timeout: Any
    version: int | None
    ttl: int | None
    stale: int = 0
    background: bool = False
    tags: Sequence[str] = ()

    def terms(self, clock: Clock) -> Flow[Terms | None]:
        """The terms on which it is to be stored, to be asked for before it is computed."""
        return tags.terms(clock, self.tags, self.ttl, self.stale)


def refresh_failed(wanted: Wanted, error: str) -> None:
    """Tell that a stale value could not be computed anew. ``error`` says of what kind the failure was, no more."""
    runtime.emit("cache_refresh_failed", key=shown_key(wanted.full), error=error)


Compute = Callable[[Entry], Flow[tuple[Any, Outcome | None]]]
"""Computes and stores a value; what those get who wait for it, ``None`` to begin anew."""


class Stores(Protocol):
    """A cache, as far as computing needs it."""

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any: ...
    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any: ...


class Computing:
    """The part of one cache object that computes. ``adding`` and ``setting`` give the operations that store a value."""

    def __init__(
        self,
        cache: Stores,
        backing: Backing,
        flows: CacheFlows,
        *,
        adding: Callable[[Wanted, Any, Terms | None], Operation],
        setting: Callable[[Wanted, Any, Terms | None], Operation],
    ) -> None:
        self._cache = cache
        self._backing = backing
        self._flows = flows
        self._adding = adding
        self._setting = setting

    def get_or_set(self, wanted: Wanted) -> Flow[Any]:
        """The value: found, computed here, or computed by somebody else."""
        try:
            seen = yield from self.seen(wanted)
        except PoolExhausted:
            seen = NOTHING
        if seen.value is not MISSING and seen.left is None:
            return seen.value
        if seen.value is not MISSING and callable(wanted.default):
            return (yield from self.refreshed(wanted, seen, lambda entry: self._told(entry, wanted)))
        return (yield from self._made(wanted))

    # Reading

    def _fresh(self, wanted: Wanted) -> Flow[Any]:
        return call(self._cache.get, self._cache.aget, wanted.key, MISSING, version=wanted.version)

    def seen(self, wanted: Wanted) -> Flow[Seen]:
        """What is there, also a stale value if one is wanted."""
        if not wanted.stale:
            return Seen((yield from self._fresh(wanted)))
        near = self._backing.near
        value = MISSING if near is None else near.found(self._flows, wanted.full)
        seen = Seen(value)
        if value is MISSING:
            seen = yield from self._backing.ask(NOTHING, self._look, wanted.full)
        self._count(wanted, seen.value)
        return seen

    def _look(self, clock: Clock, full: str) -> Flow[Seen]:
        near = self._backing.near
        return self._flows.look(clock, full) if near is None else near.look(clock, self._flows, full)

    def _newest(self, wanted: Wanted) -> Flow[Any]:
        """The fresh value that somebody has stored meanwhile; ``MISSING`` if there is none. The primary is asked."""
        found = yield from self._backing.ask(MISSING, self._flows.newest, wanted.full)
        self._count(wanted, found)
        return found

    def _count(self, wanted: Wanted, value: Any) -> None:
        if value is MISSING:
            self._backing.figures.add(wanted.key, MISSES)
        else:
            self._backing.figures.valued(wanted.key, value, HITS, READ)

    # A value that is stale

    def refreshed(self, wanted: Wanted, seen: Seen, compute: Compute) -> Flow[Any]:
        """The old value, or a new one for the one caller who computes it."""
        place = (self._backing.url, wanted.full)
        until = tick() + (seen.left or 0.0)
        if _elsewhere.get(place, 0.0) <= tick():
            entry, leads = together.enter(place)
            if leads and wanted.background:
                yield from self._send_off(entry, lambda: self._behind(entry, wanted, seen, until, compute))
            elif leads:
                value = yield from self._refreshed(entry, wanted, seen, until, compute)
                if value is not seen.value:
                    return value
        figures.count("cache_stale_served")
        return seen.value

    @staticmethod
    def _send_off(entry: Entry, work: Callable[[], Flow[None]]) -> Flow[None]:
        entry.thread = 0  # of nobody yet
        begun = False
        try:
            yield from call(background.start, background.astart, work)
            begun = True
        except RuntimeError:  # the process ends
            return
        finally:
            if not begun:
                together.end(entry, None)

    def _behind(self, entry: Entry, wanted: Wanted, seen: Seen, until: float, compute: Compute) -> Flow[None]:
        """``_refreshed`` in the background, where no error is of use to anybody."""
        entry.begin()
        with contextlib.suppress(Exception):  # it is logged and counted
            yield from self._refreshed(entry, wanted, seen, until, compute)

    def _refreshed(self, entry: Entry, wanted: Wanted, seen: Seen, until: float, compute: Compute) -> Flow[Any]:
        turn = self._turn(wanted, 0.0)
        outcome: Outcome | None = None
        try:
            if not (yield from self._gets(turn)):
                _note_elsewhere(entry.place)
                return seen.value
            found = yield from self._newest(wanted)
            if found is not MISSING:
                return found
            figures.count("cache_refreshes")
            value, outcome = yield from compute(entry)
            return value
        except GeneratorExit:
            turn.abandon()
            raise
        except Exception as error:
            refresh_failed(wanted, type(error).__name__)
            if tick() >= until:
                raise
            return seen.value
        finally:
            together.end(entry, outcome)
            yield from turn.give_back()

    @staticmethod
    def _gets(turn: Turn) -> Flow[bool]:
        try:
            return (yield from turn.attempt())
        except StoreError:  # the old value serves
            return False

    def _turn(self, wanted: Wanted, deadline: float) -> Turn:
        return Turn(f"get_or_set:{wanted.full}", deadline, lambda: self._newest(wanted))

    # A value that is missing

    def _made(self, wanted: Wanted) -> Flow[Any]:
        """Compute the value, or wait for whoever computes it, and store it."""
        if not callable(wanted.default):
            return (yield from self.keep(wanted, wanted.default, (yield from self.terms(wanted))))
        # One lease until that of a process that died has ended, and one for whoever computes in its place.
        deadline = time.monotonic() + 2 * conf.current().default_lock_timeout
        if wanted.full in _computed_here.get():  # a callable that asks for the very value that it computes
            return (yield from self._computed(wanted))[0]
        while True:
            entry, leads = together.enter((self._backing.url, wanted.full))
            if leads:
                return (yield from self._led(entry, deadline, wanted))
            try:
                outcome = yield from call(entry.wait, entry.await_, deadline)
            except TimeoutError:
                return (yield from self._computed(wanted))[0]
            if outcome is not None:
                return outcome.result()

    def _led(self, entry: Entry, deadline: float, wanted: Wanted) -> Flow[Any]:
        """The value for this caller and for all who wait in this process."""
        turn = self._turn(wanted, deadline)
        outcome: Outcome | None = None
        try:
            found = MISSING if self._backing.degraded else (yield from turn.take())
            if found is MISSING:
                found, outcome = yield from self._told(entry, wanted)
            elif together.close(entry):
                outcome = self._shared(wanted.full, found)
            return found
        except GeneratorExit:
            turn.abandon()
            raise
        except Exception as error:
            outcome = Outcome(_nothing, error)
            raise
        finally:
            together.end(entry, outcome)
            yield from turn.give_back()

    def _told(self, entry: Entry, wanted: Wanted) -> Flow[tuple[Any, Outcome | None]]:
        """The value, computed and stored, and what those get who wait for it. They begin anew if one of its tags was
        invalidated meanwhile: some of them may have come after that."""
        value, terms = yield from self._computed(wanted)
        if not together.close(entry):
            return value, None
        stands = not wanted.tags or (yield from self._stand(terms))
        return value, self._shared(wanted.full, value) if stands else None

    def _stand(self, terms: Any) -> Flow[bool]:
        if not isinstance(terms, Terms):
            return False
        try:
            return bool((yield from self._backing.ask(False, tags.stand, terms.tags)))
        except StoreError:
            return False

    def _shared(self, full: str, value: Any) -> Outcome:
        """What those get who waited: each a copy of its own, as if it had read it."""
        try:
            data = self._flows.frozen(full, value)
        except Exception:  # noqa: BLE001  it was not stored (a timeout of 0), so it may be anything
            return Outcome(lambda: value)
        return Outcome(lambda: self._flows.thawed(full, data))

    # Computing and storing

    def _computed(self, wanted: Wanted) -> Flow[tuple[Any, Any]]:
        """The value, and the terms on which it was stored; ``MISSING`` where these can't be known, so it was not."""
        terms = yield from self.terms(wanted)
        with _computing(wanted.full):
            value = yield from invoke(wanted.default)
        try:
            return (yield from self.keep(wanted, value, terms)), terms
        except PoolExhausted:
            return value, terms

    def terms(self, wanted: Wanted) -> Flow[Any]:
        """On which terms the value is to be stored; ``MISSING`` if they can't be known."""
        if not wanted.tags:
            return Terms(wanted.stale) if wanted.stale else None
        try:
            return (yield from self._backing.ask(MISSING, wanted.terms))
        except PoolExhausted:
            return MISSING

    def keep(self, wanted: Wanted, value: Any, terms: Any) -> Flow[Any]:
        """Store the value unless somebody was faster; what is there then."""
        if terms is MISSING or (yield from self._backing.ask(False, self._adding(wanted, value, terms))):
            return value
        found = yield from self._newest(wanted)
        if found is not MISSING:
            return found
        # What is there can't be read, for example because its signature is wrong.
        yield from self._backing.ask(False, self._setting(wanted, value, terms))
        return value


_computed_here: Final[ContextVar[frozenset[str]]] = ContextVar("goscope_computed_here", default=frozenset())


@contextlib.contextmanager
def _computing(full: str) -> Iterator[None]:
    """Let what is called inside know which value it computes."""
    before = _computed_here.get()
    _computed_here.set(before | {full})
    try:
        yield
    finally:
        _computed_here.set(before)  # not by token: a coroutine may be closed in another context


def _nothing() -> None:
    """The value of a computation that failed."""


def _note_elsewhere(place: Place) -> None:
    if len(_elsewhere) >= _REMEMBERED:
        _elsewhere.clear()
    _elsewhere[place] = tick() + ELSEWHERE
