"""Functions that run under a lock: each call an acquisition, given back when its transaction is over.

Rules of this file:

* Inside ``atomic()`` a lock that is given back at the end of the function would let the next holder read what is not
  committed yet. So it is held until the transaction has ended, whichever way.
* The transaction would then wait for itself if it called for the same lock again. Such a call goes on under the lock
  that the transaction holds already.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from goscope_django.core import arguments
from goscope_django.core.colours import is_async_dispatch
from goscope_django.locks.held import HeldLock
from goscope_django.process.transactions import after_commit, in_transaction, open_on

if TYPE_CHECKING:
    from goscope_django.locks.locking import Lock

P = ParamSpec("P")
T = TypeVar("T")


class _Held:
    """A lock that is held until the last of the transactions that it covers has ended."""

    __slots__ = ("aliases", "handle", "place")

    def __init__(self, handle: HeldLock, place: Hashable) -> None:
        self.handle = handle
        self.place = place
        self.aliases: set[str] = set()

    def cover(self, using: str | None) -> bool:
        """Hold it until the transactions that are open on ``using`` have ended, too; ``False`` if there are none."""
        found = open_on(using)
        for alias in found - self.aliases:
            self.aliases.add(alias)
            over = functools.partial(self._over, alias)
            after_commit(over, over, alias)
        return bool(found)

    def _over(self, alias: str) -> None:
        self.aliases.discard(alias)
        if self.aliases:
            return
        if _deferred.held.get(self.place) is self:
            del _deferred.held[self.place]
        if not self.handle.lost.is_set():
            self.handle.leave(None)


class _Deferred(threading.local):
    """The locks that this thread's transactions hold until their end, by place."""

    def __init__(self) -> None:
        self.held: dict[Hashable, _Held] = {}


_deferred = _Deferred()


class _Call:
    """One call of a decorated function."""

    def __init__(self, one: Lock, using: str | None) -> None:
        self.lock = one
        self.using = using
        self.handle: HeldLock | None = None
        self.joined: _Held | None = None
        if _deferred.held and in_transaction(using):
            self.joined = _deferred.held.get(one.where()[1])

    def begin(self) -> None:
        if self.joined is None:
            self.handle = self.lock.acquire()

    async def abegin(self) -> None:
        if self.joined is None:
            self.handle = await self.lock.aacquire()

    def waits(self, error: BaseException | None) -> bool:
        """Whether the end of a transaction will release the lock."""
        handle = self.handle
        if handle is None:
            assert self.joined is not None
            self.joined.cover(self.using)
            if error is None:
                self.joined.handle.ensure_held()
            return True
        held = _Held(handle, self.lock.where()[1])
        if handle.released or not held.cover(self.using):
            return False
        _deferred.held[held.place] = held
        if error is None:
            handle.ensure_held()
        return True

    def end(self, error: BaseException | None) -> None:
        if not self.waits(error) and self.handle is not None:
            self.handle.leave(error)

    async def aend(self, error: BaseException | None) -> None:
        if not self.waits(error) and self.handle is not None:
            await self.handle.aleave(error)


def decorated(function: Callable[P, T], make: Callable[..., Lock], using: str | None) -> Callable[P, T]:
    """``function``, each call of it under the lock that ``make`` makes of its arguments. See ``locks.locked``."""
    arguments.function(function, "lock")

    async def arunning(call: _Call, awaitable: Awaitable[Any]) -> Any:
        try:
            result = await awaitable
        except BaseException as error:
            await call.aend(error)
            raise
        await call.aend(None)
        return result

    @functools.wraps(function)
    async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
        call = _Call(make(*args, **kwargs), using)
        await call.abegin()
        return await arunning(call, cast("Any", function)(*args, **kwargs))

    @functools.wraps(function)
    def synchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
        if is_async_dispatch(function):
            return asynchronous(*args, **kwargs)
        call = _Call(make(*args, **kwargs), using)
        call.begin()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        if inspect.iscoroutine(result):  # its body has not even begun
            return arunning(call, result)
        call.end(None)
        return result

    return cast("Callable[P, T]", asynchronous if iscoroutinefunction(function) else synchronous)
