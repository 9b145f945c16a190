"""Locks across processes and machines: ``with lock("stock:42") as handle: ...``

Rules of this file: it ties together what decides elsewhere: the backend (is it free?), ``waiting`` (whose turn is it?),
``held_lock`` and ``renewal`` (is it still ours?), ``transactions`` (when may a decorator let go?).
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from goscope_django import conf, runtime
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Command, arun, run
from goscope_django.exceptions import LockNotAcquired
from goscope_django.locks.backends import LockBackend
from goscope_django.locks.decorator import decorated
from goscope_django.locks.held import HeldLock
from goscope_django.locks.waiting import Attempt, Read, TaskWaiter, ThreadWaiter, Wait, contend
from goscope_django.mongodb.driver.limits import within
from goscope_django.process import counters

P = ParamSpec("P")
T = TypeVar("T")
_SHORTEST: Final = 1.0
_LONGEST: Final = 10.0
"""Seconds that one attempt gets: a shorter one could not find out what became of it."""
_backends: dict[str, LockBackend] = {}


def backend() -> LockBackend:
    """The object of the class that ``GOSCOPE["LOCK_BACKEND"]`` names. Raises ``ImproperlyConfigured``."""
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


class Lock:
    """What to lock and how. A context manager of both kinds and a decorator; made by ``lock``.

    It has no state of its own: each block and each call is an acquisition, in as many threads and tasks at once as you
    like.
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
        """Acquire; the handle is yours to release, or to use as a context manager. Raises ``LockNotAcquired``."""
        store, place, milliseconds = self.where()
        seconds, waiter = milliseconds / 1_000, ThreadWaiter()

        def execute(command: Command[Any]) -> Any:
            if isinstance(command, Wait):
                return waiter.wait(command.seconds)
            if isinstance(command, Read):
                return self._rest(store.remaining(self.key) if hasattr(store, "remaining") else store.get(self.key))
            assert isinstance(command, Attempt)
            started = time.monotonic()
            with within(self._bound(command)):
                got = store.acquire(self.key, seconds, self.owner)
            return got and self._held(store, got, milliseconds, started, place, asynchronous=False)

        return self._got(run(contend(place, waiter, self.patience), execute))

    async def aacquire(self) -> HeldLock:
        """Asynchronous twin of ``acquire``. Cancelled, it leaves nothing behind."""
        store, place, milliseconds = self.where()
        seconds, waiter = milliseconds / 1_000, TaskWaiter()

        async def attempt() -> HeldLock | None:
            started = time.monotonic()
            got = await store.aacquire(self.key, seconds, self.owner)
            return got and self._held(store, got, milliseconds, started, place, asynchronous=True)

        async def execute(command: Command[Any]) -> Any:
            if isinstance(command, Wait):
                return await waiter.wait(command.seconds)
            if isinstance(command, Read):
                return self._rest(
                    await (store.aremaining(self.key) if hasattr(store, "aremaining") else store.aget(self.key))
                )
            assert isinstance(command, Attempt)
            with within(self._bound(command)):
                return await _or_undone(attempt())

        return self._got(await arun(contend(place, waiter, self.patience), execute))

    def where(self) -> tuple[Any, Hashable, int]:
        """The backend, what identifies the lock in this process, and the lease in milliseconds, as settings are now."""
        store = backend()
        settings = conf.current()
        milliseconds = self.timeout
        if milliseconds is None:
            milliseconds = arguments.duration_milliseconds(settings.default_lock_timeout, "DEFAULT_LOCK_TIMEOUT")
        return store, (id(store), settings.url, settings.key_prefix, self.key), milliseconds

    def _bound(self, attempt: Attempt) -> float:
        return max(_SHORTEST, min(_LONGEST, attempt.left)) if self.patience else _LONGEST

    @staticmethod
    def _rest(answer: Any) -> float:
        # get() tells of an instant of the store's clock, which is not ours: so it is read again.
        if isinstance(answer, (int, float)):
            return answer
        return 0.0 if answer is None else math.inf

    def _held(
        self, store: Any, got: Any, milliseconds: int, started: float, place: Hashable, *, asynchronous: bool
    ) -> HeldLock:
        handle = HeldLock(
            store,
            got,
            milliseconds,
            started,
            place=place,
            auto_extend=self.auto_extend,
            asynchronous=asynchronous,
        )
        runtime.emit("lock_acquired", key=handle.key, owner=handle.owner, token=handle.token)
        return handle

    def _got(self, handle: HeldLock | None) -> HeldLock:
        if handle is None:
            counters.count("locks_not_acquired")
            waited = f" after {self.patience:g} s" if self.patience else ""
            raise LockNotAcquired(f"lock {self.key!r}: somebody else holds it{waited}", key=self.key)
        return handle

    # Blocks. Which handle a block has is remembered here, by thread or task.

    def _enter(self, who: Hashable, handle: HeldLock) -> HeldLock:
        self._entered.setdefault(who, []).append(handle)
        return handle

    def _exit(self, who: Hashable) -> HeldLock:
        if who not in self._entered and len(self._entered) == 1:
            # An asynchronous generator may be closed by another task than the one that began it.
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
        """Run ``function`` under the lock; see ``locked``."""
        return decorated(function, lambda *_, **__: self, None)


def _who() -> Hashable:
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


async def _or_undone(attempt: Awaitable[HeldLock | None]) -> HeldLock | None:
    """The outcome of ``attempt``; cancelled, it is waited for, and what it acquired is given back."""
    task = asyncio.ensure_future(attempt)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            task.add_done_callback(_undo)
            await asyncio.wait([task])
            await asyncio.sleep(0)  # the callback's turn
            if (undoing := _undoing.get(task)) is not None:
                await asyncio.wait([undoing])
        raise


_undoing: dict[asyncio.Task[Any], asyncio.Task[Any]] = {}


def _undo(task: asyncio.Task[HeldLock | None]) -> None:
    if not task.cancelled() and task.exception() is None and (handle := task.result()) is not None:
        _undoing[task] = task.get_loop().create_task(handle.aleave(asyncio.CancelledError()))
        _undoing[task].add_done_callback(lambda _: _undoing.pop(task))


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
    like ``blocking=False``. ``owner`` is a name for observers; whoever gives the same one is refused all the same.

    ``with`` yields the handle (``HeldLock``). Raises ``LockNotAcquired`` if the wait was in vain, ``StoreError`` if
    the server can't be reached, and at the end of the block ``LockLost`` if the lock was lost meanwhile and the block
    did not raise. Uncontended it is two round trips. While waiting one waiter of each process reads, about 36 times a
    second.
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
    """Decorator: each call of the function runs under the lock on ``key``, or on what ``key(*args, **kwargs)`` returns.

    Inside ``atomic()`` the lock is given back after the commit or the rollback, not before: on the database ``using``,
    or on all that are in a transaction. Until then calls for the same key in that transaction go on under the same
    lock. For functions, methods, views and ``async def``; not for generators. The other arguments and errors are those
    of ``lock``.
    """
    options: dict[str, Any] = {
        "blocking": blocking,
        "blocking_timeout": blocking_timeout,
        "auto_extend": auto_extend,
        "owner": owner,
    }
    if not callable(key):
        one = Lock(key, timeout, **options)
        return lambda function: decorated(function, lambda *_, **__: one, using)
    Lock("", timeout, **options)  # a wrong argument is told where it was written, not at the first call
    make = key
    return lambda function: decorated(function, lambda *a, **k: Lock(make(*a, **k), timeout, **options), using)
