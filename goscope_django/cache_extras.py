"""What users of django-redis reach for: times, key listings, patterns, locks, and a value computed once.

Rule of this file: everything here is built on the flows of ``mongodb.cache_flows`` and on ``locks``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT

from goscope_django import conf, locks
from goscope_django.arguments import Duration
from goscope_django.cache_base import CacheBase, Timeout
from goscope_django.cache_options import Glob
from goscope_django.exceptions import InvalidValue, LockLost, LockNotAcquired, StoreError
from goscope_django.mongodb.cache_ranges import BATCH

_computed_here: Final[ContextVar[frozenset[str]]] = ContextVar("goscope_computed_here", default=frozenset())


@contextlib.contextmanager
def _computing(full: str) -> Iterator[None]:
    """Let what is called inside know whose value it computes."""
    before = _computed_here.get()
    _computed_here.set(before | {full})
    try:
        yield
    finally:
        _computed_here.set(before)  # not by token: a coroutine may be closed in another context


class CacheExtras(CacheBase):
    """Methods beyond Django's API, as django-redis names them, in both colours."""

    def get_or_set(self, key: Any, default: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """The value; if there is none, ``default`` (called if callable) is stored and given back.

        A callable is called by one process at a time, under a lock that is kept alive meanwhile; the others wait for
        its value. A lease that is lost, or a server that is away, means that it may be called twice: it saves work,
        it does not exclude. A hit is one round trip.
        """
        found = self.get(key, self._missing_key, version=version)
        if found is not self._missing_key:
            return found
        if not callable(default):
            return self._kept(key, default, timeout, version)
        turn = self._turn(key, version)
        entered = False
        try:
            if turn is not None:
                try:
                    turn.__enter__()
                    entered = True
                except LockNotAcquired:
                    pass
                except StoreError:
                    if self._outage is None:
                        raise
            if entered:
                found = self.get(key, self._missing_key, version=version)
                if found is not self._missing_key:
                    return found
            with _computing(self._full(key, version)):
                value = default()
            return self._kept(key, value, timeout, version)
        finally:
            if turn is not None and entered:
                with contextlib.suppress(LockLost, StoreError):
                    turn.__exit__(None, None, None)

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """Asynchronous twin of ``get_or_set``; ``default`` may also give an awaitable."""
        found = await self.aget(key, self._missing_key, version=version)
        if found is not self._missing_key:
            return found
        if not callable(default):
            return await self._akept(key, default, timeout, version)
        turn = self._turn(key, version)
        entered = False
        try:
            if turn is not None:
                try:
                    await turn.__aenter__()
                    entered = True
                except LockNotAcquired:
                    pass
                except StoreError:
                    if self._outage is None:
                        raise
            if entered:
                found = await self.aget(key, self._missing_key, version=version)
                if found is not self._missing_key:
                    return found
            with _computing(self._full(key, version)):
                value = default()
                if inspect.isawaitable(value):
                    value = await value
            return await self._akept(key, value, timeout, version)
        finally:
            if turn is not None and entered:
                with contextlib.suppress(LockLost, StoreError):
                    await turn.__aexit__(None, None, None)

    def _turn(self, key: Any, version: int | None) -> locks.Lock | None:
        """The lock under which a value is computed; ``None`` while the server is known to be away, and for whoever asks
        for a value while computing it, who would wait for itself."""
        full = self._full(key, version)
        if full in _computed_here.get() or (self._outage is not None and self._outage.away):
            return None
        return locks.lock(f"get_or_set:{full}", blocking_timeout=conf.current().default_lock_timeout)

    def _kept(self, key: Any, value: Any, timeout: Timeout, version: int | None) -> Any:
        if self.add(key, value, timeout, version=version):
            return value
        found = self.get(key, self._missing_key, version=version)
        if found is not self._missing_key:
            return found
        self.set(key, value, timeout, version=version)  # what stands there can't be read: a wrong signature, for one
        return value

    async def _akept(self, key: Any, value: Any, timeout: Timeout, version: int | None) -> Any:
        if await self.aadd(key, value, timeout, version=version):
            return value
        found = await self.aget(key, self._missing_key, version=version)
        if found is not self._missing_key:
            return found
        await self.aset(key, value, timeout, version=version)
        return value

    def lock(
        self,
        name: Any,
        timeout: Duration | None = None,
        *,
        version: int | None = None,
        blocking: bool = True,
        blocking_timeout: Duration | None = None,
        auto_extend: bool = True,
        owner: str | None = None,
    ) -> locks.Lock:
        """A lock whose name is made like a key of this cache; see ``goscope_django.locks.lock``."""
        return locks.lock(
            self.make_key(name, version=version),
            timeout,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            auto_extend=auto_extend,
            owner=owner,
        )

    def ttl(self, key: Any, version: int | None = None) -> int | None:
        """Seconds until it expires, rounded up; ``None`` for never, 0 if there is no live one. One round trip."""
        left = self.pttl(key, version=version)
        return left if left is None else -(-left // 1_000)

    async def attl(self, key: Any, version: int | None = None) -> int | None:
        """Asynchronous twin of ``ttl``."""
        left = await self.apttl(key, version=version)
        return left if left is None else -(-left // 1_000)

    def pttl(self, key: Any, version: int | None = None) -> int | None:
        """``ttl`` in milliseconds."""
        return self._run(0, self._flows.remaining, self._full(key, version))

    async def apttl(self, key: Any, version: int | None = None) -> int | None:
        """Asynchronous twin of ``pttl``."""
        return await self._arun(0, self._flows.remaining, self._full(key, version))

    def expire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """``touch`` with a timeout that must be given."""
        return self.touch(key, timeout, version=version)

    async def aexpire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """Asynchronous twin of ``expire``."""
        return await self.atouch(key, timeout, version=version)

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Let a live entry never expire; ``False`` if there is none. One round trip."""
        return self.touch(key, None, version=version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        """Asynchronous twin of ``persist``."""
        return await self.atouch(key, None, version=version)

    def _base(self, version: int | None) -> str:
        """What the stored keys of one version begin with."""
        self._resolve()
        first, other = self.make_key("", version=version), self.make_key("x", version=version)
        if other != f"{first}x":
            raise InvalidValue("patterns need a KEY_FUNCTION that puts the key last, unchanged")
        return f"{self._prefix}{first}"

    def iter_keys(self, pattern: str = "*", version: int | None = None) -> Iterator[str]:
        """Live keys that match the glob, in order, a thousand at a time: memory stays constant however many there are.

        One round trip for each thousand, and one before them. Keys that come or go meanwhile may or may not be seen.
        """
        glob, base = Glob(pattern), self._base(version)
        start = base + glob.prefix
        expired: frozenset[str] | None = self._run(frozenset[str](), self._flows.expired, start)
        after: str | None = None
        while page := self._run(list[str](), self._flows.page, start, after, expired):
            after = page[-1]
            for key in page:
                if not (expired and key in expired) and glob.matches(key, len(base)):
                    yield key[len(base) :]
            if len(page) < BATCH:
                return

    async def aiter_keys(self, pattern: str = "*", version: int | None = None) -> AsyncIterator[str]:
        """Asynchronous twin of ``iter_keys``."""
        glob, base = Glob(pattern), self._base(version)
        start = base + glob.prefix
        expired: frozenset[str] | None = await self._arun(frozenset[str](), self._flows.expired, start)
        after: str | None = None
        while page := await self._arun(list[str](), self._flows.page, start, after, expired):
            after = page[-1]
            for key in page:
                if not (expired and key in expired) and glob.matches(key, len(base)):
                    yield key[len(base) :]
            if len(page) < BATCH:
                return

    def keys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Live keys that match the glob (``*``, ``?``, ``[a-z]``), in order; see ``iter_keys`` for very many."""
        return list(self.iter_keys(pattern, version=version))

    async def akeys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Asynchronous twin of ``keys``."""
        return [key async for key in self.aiter_keys(pattern, version=version)]

    def delete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Remove the entries whose keys match the glob; how many there were. ``"prefix*"`` is one round trip."""
        glob, base = Glob(pattern), self._base(version)
        if glob.only_prefix:
            return self._run(0, self._flows.delete_range, base + glob.prefix)
        removed, batch = 0, list[str]()
        for key in self.iter_keys(pattern, version=version):
            batch.append(base + key)
            if len(batch) == BATCH:
                removed += self._run(0, self._flows.delete_many, batch)
                batch = []
        return removed + (self._run(0, self._flows.delete_many, batch) if batch else 0)

    async def adelete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Asynchronous twin of ``delete_pattern``."""
        glob, base = Glob(pattern), self._base(version)
        if glob.only_prefix:
            return await self._arun(0, self._flows.delete_range, base + glob.prefix)
        removed, batch = 0, list[str]()
        async for key in self.aiter_keys(pattern, version=version):
            batch.append(base + key)
            if len(batch) == BATCH:
                removed += await self._arun(0, self._flows.delete_many, batch)
                batch = []
        return removed + (await self._arun(0, self._flows.delete_many, batch) if batch else 0)
