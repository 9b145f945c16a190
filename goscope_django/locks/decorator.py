"""Functions that run under a lock: each call acquires it, and gives it back when its transaction has ended.

Rules of this file:

* Inside ``atomic()`` a lock that is given back at the end of the function would let the next holder read what is not
  committed yet. So it is held until the transaction has ended, by a commit or a rollback.
* A transaction that calls for the same lock again would wait for itself. Such a call goes on under the lock that the
  transaction holds already.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from goscope_django.core import arguments
from goscope_django.core.colours import is_async_dispatch
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, invoke
from goscope_django.http import requests
from goscope_django.locks.held import HeldLock
from goscope_django.process import holder
from goscope_django.process.transactions import after_commit, in_transaction, open_on

P = ParamSpec("P")
T = TypeVar("T")


class Acquires(Protocol):
    """What a ``Lock`` does, as far as a decorator needs it."""

    def acquire(self) -> HeldLock: ...
    async def aacquire(self) -> HeldLock: ...
    def where(self) -> tuple[Any, Hashable, int]: ...


def decorated(function: Callable[P, T], make: Callable[..., Acquires], using: str | None) -> Callable[P, T]:
    """``function``, each call of it under the lock that ``make`` makes of its arguments. See ``locks.locked``."""
    arguments.function(function, "lock")

    def flow(args: Any, kwargs: Any) -> Flow[Any]:
        work = _Call(make(*args, **kwargs), using).around(invoke(function, *args, **kwargs))
        request = requests.find(args, kwargs)
        if request is None:
            return (yield from work)
        with holder.serving(requests.plain(request)):
            return (yield from work)

    @functools.wraps(function)
    async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
        return await acarry_out(flow(args, kwargs))

    @functools.wraps(function)
    def synchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
        if is_async_dispatch(function):
            return asynchronous(*args, **kwargs)
        return carry_out(flow(args, kwargs))

    return cast("Callable[P, T]", asynchronous if iscoroutinefunction(function) else synchronous)


class _Call:
    """One call of a decorated function."""

    def __init__(self, one: Acquires, using: str | None) -> None:
        self.lock = one
        self.using = using
        self.handle: HeldLock | None = None
        self.joined: _Held | None = None
        if _deferred.held and in_transaction(using):
            self.joined = _joinable(one.where()[1])

    def around(self, work: Flow[Any]) -> Flow[Any]:
        """The result of ``work``, which is done under the lock."""
        if self.joined is None:
            self.handle = yield from call(self.lock.acquire, self.lock.aacquire)
            self.handle.enter(holder.whoami())
        return (yield from self._under(work))

    def _under(self, work: Flow[Any]) -> Flow[Any]:
        try:
            result = yield from work
        except GeneratorExit:  # nothing can be awaited any more: the lock ends with its lease
            raise
        except BaseException as error:
            yield from self._end(error)
            raise
        if inspect.iscoroutine(result):  # its body has not even begun
            return acarry_out(self._under(invoke(lambda: result)))
        yield from self._end(None)
        return result

    def _end(self, error: BaseException | None) -> Flow[None]:
        if not self._waits(error) and self.handle is not None:
            yield from call(self.handle.leave, self.handle.aleave, error)

    def _waits(self, error: BaseException | None) -> bool:
        """Whether the end of a transaction will release the lock."""
        held = self.joined
        if held is not None:
            held.cover(self.using)
        else:
            assert self.handle is not None
            held = _Held(self.handle, self.lock.where()[1])
            if self.handle.released or not held.cover(self.using):
                return False
        if error is None:
            held.handle.ensure_held()
        return True


class _Held:
    """A lock that is held until the last of the transactions that it covers has ended."""

    __slots__ = ("aliases", "handle", "known", "place")

    def __init__(self, handle: HeldLock, place: Hashable) -> None:
        self.handle = handle
        self.place = place
        self.aliases: set[str] = set()
        self.known = True
        """Whether all of those that have ended are known to be committed or rolled back."""

    def cover(self, using: str | None) -> bool:
        """Hold it until the transactions that are open on ``using`` have ended, too; ``False`` if it waits for none."""
        found = open_on(using) - self.aliases
        # Before anything is registered: what is called at once must find it here, to take it out again.
        self.aliases |= found
        if found:
            _deferred.held[self.place] = self
        for alias in found:
            over = functools.partial(self._over, alias)
            if not after_commit(over, over, alias, unknown=functools.partial(self._over, alias, known=False)):
                self._forget(alias)
        return bool(self.aliases)

    def _over(self, alias: str, *, known: bool = True) -> None:
        self.known = self.known and known
        if alias not in self.aliases or not self._forget(alias) or self.handle.lost.is_set():
            return
        if self.known:
            self.handle.leave(None)
        else:
            # What it protected may yet turn out to be committed: nobody else gets it before its lease has ended.
            self.handle.let_expire()

    def _forget(self, alias: str) -> bool:
        """Wait for the transaction on ``alias`` no more; whether that was the last one."""
        self.aliases.discard(alias)
        if self.aliases:
            return False
        if _deferred.held.get(self.place) is self:
            del _deferred.held[self.place]
        return True


def _joinable(place: Hashable) -> _Held | None:
    """The lock that a transaction of this thread holds at ``place``, if that transaction is open still."""
    held = _deferred.held.get(place)
    if held is None or held.handle.released or not held.aliases & open_on():
        return None
    return held


class _Deferred(threading.local):
    """The locks that this thread's transactions hold until their end, by place."""

    def __init__(self) -> None:
        self.held: dict[Hashable, _Held] = {}


_deferred = _Deferred()
