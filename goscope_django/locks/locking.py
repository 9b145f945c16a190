"""What to lock and how: ``lock``, ``locked`` and the ``Lock`` objects that they make.

This file ties together what others decide. Rules of this file:

* The backend decides whether a lock is free, ``waiting`` whose turn it is, ``held`` whether it is still ours, and
  ``process.transactions`` when a decorator may give it back.
* An async caller that is cancelled gets no handle, so nobody has the lock then.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import math
import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from goscope_django import conf, runtime
from goscope_django.core import arguments, decorating
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import LockNotAcquired, LockReentered, StoreError
from goscope_django.locks.backends import LockBackend, knows_remaining, knows_standing, limited
from goscope_django.locks.decorator import decorated
from goscope_django.locks.held import HeldLock
from goscope_django.locks.waiting import TaskWaiter, ThreadWaiter, contend, holder_at
from goscope_django.process import counters, holder, renewal

P = ParamSpec("P")
T = TypeVar("T")


def lock(
    key: str,
    timeout: Duration | None = None,
    *,
    blocking: bool = True,
    blocking_timeout: Duration | None = None,
    auto_extend: bool = True,
    owner: str | None = None,
) -> Lock:
    """A lock on ``key``, to be used by ``with``, ``async with`` or as a decorator. Not re-entrant.

    ``timeout`` is the lease in seconds (or a ``timedelta``; ``DEFAULT_LOCK_TIMEOUT`` if ``None``): so long a holder
    that died keeps others out. A living one is renewed at a third of it, unless ``auto_extend=False``.
    ``blocking_timeout`` is for how many seconds to wait; ``None`` waits until it gets the lock, 0 makes one attempt,
    like ``blocking=False``. ``owner`` is a name for observers; whoever gives the same one is refused all the same. If
    it is not given, it says who: ``host:pid``, the thread or task, what that runs, and random text.

    ``with`` yields the handle (``HeldLock``). Raises ``LockNotAcquired`` if the wait was in vain, ``LockReentered`` at
    once where it would wait for a block or decorated call of the same thread or task, ``StoreError`` if the server
    can't be reached, and at the end of the block ``LockLost`` if the lock was lost meanwhile and the block did not
    raise. Raises ``InvalidType`` or ``InvalidValue`` for a bad argument.

    Each attempt is atomic. Uncontended it is two round trips, one to acquire and one to release; making the object
    sends nothing. While waiting one waiter of each process reads: at most 40 times a second, and 5 times where the lock
    has been held for 4 seconds.
    """
    return Lock(
        key, timeout, blocking=blocking, blocking_timeout=blocking_timeout, auto_extend=auto_extend, owner=owner
    )


def locked(
    key: str | Callable[..., str],
    timeout: Duration | None = None,
    *,
    blocking: bool = True,
    blocking_timeout: Duration | None = None,
    auto_extend: bool = True,
    owner: str | None = None,
    using: str | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: each call of the function holds the lock on ``key``, or on what ``key(*args, **kwargs)`` returns.

    ``key`` may name the function's parameters: ``"stock:{item_id}"``. A field that names none is an error where the
    function is decorated.

    Inside ``atomic()`` the lock is given back after the commit or the rollback, not before: on the database ``using``,
    or on all that are in a transaction. Until then calls for the same key in that transaction go on under the same
    lock. For functions, methods, views and ``async def``; not for generators. The other arguments, and what it raises
    and costs, are those of ``lock``.
    """
    options: dict[str, Any] = {
        "blocking": blocking,
        "blocking_timeout": blocking_timeout,
        "auto_extend": auto_extend,
        "owner": owner,
    }
    decorating.no_bare_function(key, "locked", '@locked("stock:{item_id}")')
    one = Lock("" if callable(key) else key, timeout, **options)  # a wrong argument is told here, not at the first call
    return lambda function: decorated(function, one.keyed_by(key, function, "locked(): key"), using)


class Lock:
    """What to lock and how: a sync and async context manager and a decorator, made by ``lock``.

    Each block and each call is an acquisition of its own, in as many threads and tasks at once as you like. All errors
    and round trips are those of ``lock``.
    """

    def __init__(
        self,
        key: str,
        timeout: Duration | None = None,
        *,
        blocking: bool = True,
        blocking_timeout: Duration | None = None,
        auto_extend: bool = True,
        owner: str | None = None,
    ) -> None:
        """``lock`` makes it.

        :meta private:
        """
        decorating.no_function(key, "lock", '@lock("stock"), and with a function of the arguments @locked(...)')
        self.key = arguments.key(key)
        self.timeout = None if timeout is None else arguments.duration_milliseconds(timeout, "timeout")
        self.owner = None if owner is None else arguments.key(owner, "owner")
        self.auto_extend = arguments.flag(auto_extend, "auto_extend")
        self.patience = math.inf
        if blocking_timeout is not None:
            self.patience = arguments.duration_seconds(blocking_timeout, "blocking_timeout", zero=True)
        if not arguments.flag(blocking, "blocking"):
            self.patience = 0.0
        self._entered: dict[Hashable, list[HeldLock]] = {}

    def __repr__(self) -> str:
        return f"<lock on {self.key!r}>"

    def acquire(self) -> HeldLock:
        """Acquire; the handle is yours to release, or to use as a context manager.

        Raises ``LockNotAcquired`` (``LockReentered``), and ``StoreError`` if the server can't be reached. One atomic
        round trip if the lock is free.
        """
        return carry_out(self._acquire())

    async def aacquire(self) -> HeldLock:
        """Async version of ``acquire``. Cancelled, it leaves nothing behind."""
        return await acarry_out(self._acquire())

    def _acquire(self) -> Flow[HeldLock]:
        store, place, milliseconds = self.where()
        # Here, since an attempt of a task runs in a task of its own.
        who, me = self.owner or holder.describe(), holder.myself()
        late: list[float] = []

        def attempt(left: float) -> Flow[HeldLock | None]:
            owner = self.owner or holder.unique(who)
            once = functools.partial(self._attempt, store, place, milliseconds, left, owner, late)
            return call(lambda: carry_out(once()), lambda: _or_undone(acarry_out(once())))

        def before_waiting() -> None:
            handle = holder_at(place)
            if isinstance(handle, HeldLock) and handle.keeps_out(me):
                raise LockReentered(
                    f"lock {self.key!r}: this thread or task holds it already, and would wait for itself", key=self.key
                )

        waiter = yield from call(ThreadWaiter, TaskWaiter)
        handle = yield from contend(
            place, waiter, self.patience, attempt, lambda: self._standing(store), before_waiting
        )
        if handle is None:
            counters.locks.add(self.key, counters.NOT_ACQUIRED)
            waited = f" after {self.patience:g} s" if self.patience else ""
            raise LockNotAcquired(f"lock {self.key!r}: somebody else holds it{waited}", key=self.key)
        return handle

    def _attempt(
        self, store: Any, place: Hashable, milliseconds: int, left: float, owner: str, late: list[float]
    ) -> Flow[HeldLock | None]:
        """One attempt, with ``left`` seconds of patience; ``None`` if somebody else holds the lock.

        ``late`` is how long each of the last attempts took whose lease was over before the answer came.
        """
        key, seconds, started = self.key, milliseconds / 1_000, time.monotonic()
        with limited(left if self.patience else math.inf):
            got = yield from call(
                lambda: store.acquire(key, seconds, owner), lambda: store.aacquire(key, seconds, owner)
            )
        took = time.monotonic() - started
        if not got:
            late.clear()
            return None
        if took >= seconds:
            # The answer came after the end of the lease: somebody else may hold it by now.
            with contextlib.suppress(StoreError):
                yield from call(lambda: store.release(got), lambda: store.arelease(got))
            late.append(took)
            if len(late) < MOST_LATE:
                return None
            counters.locks.add(key, counters.NOT_ACQUIRED)
            raise LockNotAcquired(
                f"lock {key!r}: timeout={seconds:g} s is shorter than the answer of the server takes "
                f"({min(late):.3g} s or more, {MOST_LATE} times), so it can't be held; give it a longer one",
                key=key,
            )
        held = functools.partial(HeldLock, auto_extend=self.auto_extend)
        handle: HeldLock = yield from call(
            functools.partial(held, renewal.keep),
            functools.partial(held, renewal.akeep),
            *(store, got, milliseconds, started, place),
        )
        runtime.emit("lock_acquired", key=handle.key, owner=handle.owner, token=handle.token)
        return handle

    def _standing(self, store: Any) -> Flow[tuple[float, float]]:
        """For how many seconds somebody holds the lock at most (0: it is free), and for how many it has been held.

        As far as the backend can tell: else infinity, and 0.
        """
        key = self.key
        if knows_standing(store):
            standing: tuple[float, float] = yield from call(store.standing, store.astanding, key)
            return standing
        if knows_remaining(store):
            seconds: float = yield from call(store.remaining, store.aremaining, key)
            return seconds, 0.0
        # An instant of the backend's clock, which is not ours, says nothing about for how long: so it is asked again.
        found = yield from call(lambda: store.get(key), lambda: store.aget(key))
        return (0.0 if found is None else math.inf), 0.0

    def where(self) -> tuple[Any, Hashable, int]:
        """The backend, what identifies the lock in this process, and the lease in milliseconds, as settings are now.

        :meta private:
        """
        store = backend()
        settings = conf.current()
        milliseconds = self.timeout
        if milliseconds is None:
            milliseconds = arguments.duration_milliseconds(settings.default_lock_timeout, "DEFAULT_LOCK_TIMEOUT")
        return store, (id(store), settings.url, settings.key_prefix, self.key), milliseconds

    # Blocks: which handle a block has is remembered here, by thread or task

    def _enter(self, who: Hashable, handle: HeldLock) -> HeldLock:
        handle.enter(holder.whoami())
        self._entered.setdefault(who, []).append(handle)
        return handle

    def _exit(self, who: Hashable) -> HeldLock:
        if who not in self._entered and len(self._entered) == 1:
            # An async generator may be closed by another task than the one that began it.
            who = next(iter(self._entered))
        handles = self._entered[who]
        handle = handles.pop()
        if not handles:
            del self._entered[who]
        return handle

    def __enter__(self) -> HeldLock:
        return self._enter(_who(), self.acquire())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit(_who()).leave(error)

    async def __aenter__(self) -> HeldLock:
        return self._enter(_who(), await self.aacquire())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit(_who()).aleave(error)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """``function``, each call of it under the lock; see ``locked``. The key may name the function's parameters."""
        return decorated(function, self.keyed_by(self.key, function, "lock(): key"), None)

    def keyed_by(self, key: Any, function: Callable[..., Any], what: str) -> Callable[..., Lock]:
        """What gives the lock of a call of ``function``: this one, on ``key`` as the call's arguments fill it.

        :meta private:
        """
        arguments.function(function, what.partition(":")[0])
        make = decorating.keyed(key, function, what)
        if getattr(make, "constant", None) == self.key:
            return lambda *_, **__: self

        def lock_of(*args: Any, **kwargs: Any) -> Lock:
            one = copy.copy(self)
            one.key, one._entered = arguments.key(make(*args, **kwargs)), {}
            return one

        return lock_of


def _who() -> Hashable:
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


async def _or_undone(attempt: Coroutine[Any, Any, HeldLock | None]) -> HeldLock | None:
    """The outcome of ``attempt``; cancelled, it is waited for, and what it acquired is given back."""
    task = asyncio.ensure_future(attempt)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        undoing = asyncio.ensure_future(_undo(task))
        _undoing.add(undoing)
        undoing.add_done_callback(_undoing.discard)
        await asyncio.wait([undoing])  # cancelled once more this ends, and the undoing goes on
        raise


MOST_LATE: Final = 10
"""Attempts in a row that may end after their own lease. Waiting on would not end, though nobody holds the lock."""
_undoing: set[asyncio.Task[None]] = set()


async def _undo(task: asyncio.Task[HeldLock | None]) -> None:
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None and (handle := task.result()) is not None:
        await handle.aleave(asyncio.CancelledError())


_backends: dict[str, LockBackend] = {}


def backend() -> LockBackend:
    """The object of the class that ``GOSCOPE["LOCK_BACKEND"]`` names. Sends nothing.

    Raises ``ImproperlyConfigured`` if the class can't be imported or made.
    """
    path = conf.current().lock_backend
    found = _backends.get(path)
    if found is None:
        try:
            found = _backends.setdefault(path, import_string(path)())
        except (ImportError, TypeError) as error:
            raise ImproperlyConfigured(f"GOSCOPE['LOCK_BACKEND']={path!r} can't be used: {error}") from error
    return found


def _forget(*, setting: str, **_: object) -> None:
    if setting == "GOSCOPE":
        _backends.clear()


setting_changed.connect(_forget, dispatch_uid="goscope_django.locks")
