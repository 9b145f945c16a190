"""Django's cache on MongoDB, synchronous and natively asynchronous.

Rule of this file: Django's cache API, each method a line or two over a flow of ``mongodb.cache_flows``. Names, keys,
timeouts and the server's absence are ``cache_base``'s, what goes beyond Django's API ``cache_extras``'.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, cast

from django.core.cache import cache as default_cache
from django.core.cache.backends.base import DEFAULT_TIMEOUT

from goscope_django import conf, locks
from goscope_django.cache.base import CacheBase, Timeout
from goscope_django.cache.globs import Glob
from goscope_django.cache.options import delta_of
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow
from goscope_django.exceptions import InvalidValue, LockLost, LockNotAcquired, StoreError
from goscope_django.mongodb.cache.flows import BATCH, MISSING
from goscope_django.mongodb.document.clock import Clock
from goscope_django.process.counters import DELETES, HITS, MISSES, READ, SETS, WRITTEN

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


class MongoDBCache(CacheExtras):
    """``CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}``.

    The whole cache API in both colours, and ``ttl``, ``pttl``, ``expire``, ``persist``, ``keys``, ``iter_keys``,
    ``delete_pattern`` and ``lock`` as django-redis users know them. One command an operation; ``set_many``,
    ``get_many`` and ``delete_many`` one for each thousand keys. Expiry is judged by the server's clock. ``OPTIONS``:
    ``MAX_ENTRIES``, ``CULL_FREQUENCY``, ``SERIALIZER`` (``"bson"`` refuses pickle), ``ON_ERROR``.
    """

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value, or ``default`` if it is missing, expired or can't be decoded. One round trip."""
        found = self._run(MISSING, self._flows.get, self._full(key, version))
        if found is MISSING:
            self._figures.add(key, MISSES)
            return default
        self._figures.valued(key, found, HITS, READ)
        return found

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Asynchronous twin of ``get``."""
        found = await self._arun(MISSING, self._flows.get, self._full(key, version))
        if found is MISSING:
            self._figures.add(key, MISSES)
            return default
        self._figures.valued(key, found, HITS, READ)
        return found

    def set(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store ``value``. Raises ``ValueError`` over 16 MB, after which no value is left. One round trip."""
        self._run(None, self._set_flow(self._full(key, version), value, self._timeout(timeout)))
        self._figures.valued(key, value, SETS, WRITTEN)

    async def aset(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Asynchronous twin of ``set``."""
        await self._arun(None, self._set_flow(self._full(key, version), value, self._timeout(timeout)))
        self._figures.valued(key, value, SETS, WRITTEN)

    def add(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store ``value`` unless there is a live one; whether it was stored. Atomic, one round trip."""
        stored = self._run(False, self._add_flow(self._full(key, version), value, self._timeout(timeout)))
        if stored:
            self._figures.valued(key, value, SETS, WRITTEN)
        return stored

    async def aadd(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Asynchronous twin of ``add``."""
        stored = await self._arun(False, self._add_flow(self._full(key, version), value, self._timeout(timeout)))
        if stored:
            self._figures.valued(key, value, SETS, WRITTEN)
        return stored

    def touch(self, key: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give a live entry a new timeout; ``False`` if there is none. Never revives one. Atomic, one round trip."""
        return self._run(False, self._touch_flow(self._full(key, version), self._timeout(timeout)))

    async def atouch(self, key: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Asynchronous twin of ``touch``."""
        return await self._arun(False, self._touch_flow(self._full(key, version), self._timeout(timeout)))

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove the entry; whether there was a live one. One round trip."""
        deleted = self._run(False, self._flows.delete, self._full(key, version))
        self._figures.add(key, DELETES)
        return deleted

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """Asynchronous twin of ``delete``."""
        deleted = await self._arun(False, self._flows.delete, self._full(key, version))
        self._figures.add(key, DELETES)
        return deleted

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Whether there is a live entry. One round trip."""
        return self._run(False, self._flows.has, self._full(key, version))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """Asynchronous twin of ``has_key``."""
        return await self._arun(False, self._flows.has, self._full(key, version))

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """The live ones of ``keys`` with their values. One round trip for each thousand."""
        names = self._fulls(keys, version)
        found = self._run({}, self._flows.get_many, list(names)) if names else {}
        values = {names[full]: value for full, value in found.items()}
        self._figures.read(names.values(), values)
        return values

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Asynchronous twin of ``get_many``."""
        names = self._fulls(keys, version)
        found = await self._arun({}, self._flows.get_many, list(names)) if names else {}
        values = {names[full]: value for full, value in found.items()}
        self._figures.read(names.values(), values)
        return values

    def set_many(
        self, data: Mapping[Any, Any], timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store many; the keys that were not stored: too large (their old values are gone), or all of them while the
        server is away (``ON_ERROR="ignore"``). Atomic for each key.

        One round trip for each thousand, one more where entries of another package are overwritten.
        """
        names, ttl = self._fulls(data, version), self._timeout(timeout)
        refused = self._run(list(names.values()), self._set_many_flow(names, data, ttl)) if names else []
        self._figures.many(names.values(), SETS)
        return refused

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Asynchronous twin of ``set_many``."""
        names, ttl = self._fulls(data, version), self._timeout(timeout)
        refused = await self._arun(list(names.values()), self._set_many_flow(names, data, ttl)) if names else []
        self._figures.many(names.values(), SETS)
        return refused

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Remove many. One round trip for each thousand."""
        names = self._fulls(keys, version)
        if names:
            self._run(None, self._flows.delete_many, list(names))
            self._figures.many(names.values(), DELETES)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Asynchronous twin of ``delete_many``."""
        names = self._fulls(keys, version)
        if names:
            await self._arun(None, self._flows.delete_many, list(names))
            self._figures.many(names.values(), DELETES)

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Add ``delta`` to a live integer, whose timeout stays; the sum. Atomic, one round trip.

        Raises ``ValueError`` if there is no live entry, if it is no integer, or if the sum does not fit in 64 bits; the
        value is then unchanged.
        """
        return self._sum(key, self._run(None, self._flows.incr, self._full(key, version), delta_of(delta)))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Asynchronous twin of ``incr``."""
        return self._sum(key, await self._arun(None, self._flows.incr, self._full(key, version), delta_of(delta)))

    @staticmethod
    def _sum(key: Any, found: int | None) -> int:
        if found is None:
            raise InvalidValue(f"Key {key!r} not found, or its value is not an integer of 64 bits")
        return found

    def decr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """``incr`` by ``-delta``."""
        return self.incr(key, -delta_of(delta), version=version)

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Asynchronous twin of ``decr``."""
        return await self.aincr(key, -delta_of(delta), version=version)

    def clear(self) -> None:
        """Remove all versions of this alias's ``KEY_PREFIX`` (with a foreign ``KEY_FUNCTION``: every cache entry of
        this project's prefix). One delete over a range of the index."""
        self._resolve()
        self._run(0, self._flows.delete_range, self._clear_prefix(), self._clear_regex())

    async def aclear(self) -> None:
        """Asynchronous twin of ``clear``."""
        self._resolve()
        await self._arun(0, self._flows.delete_range, self._clear_prefix(), self._clear_regex())

    def close(self, **kwargs: Any) -> None:
        """Nothing: Django calls it after every request, and the client belongs to the process."""

    async def aclose(self, **kwargs: Any) -> None:
        """Nothing; see ``close``."""

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Move an entry to another version, with the time it has left. Raises ``ValueError`` if there is none."""
        version = self.version if version is None else version
        target = version + delta_of(delta)
        self._run(None, self._move_flow(key, version, target))
        return target

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Asynchronous twin of ``incr_version``."""
        version = self.version if version is None else version
        target = version + delta_of(delta)
        await self._arun(None, self._move_flow(key, version, target))
        return target

    def decr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """``incr_version`` by ``-delta``."""
        return self.incr_version(key, -delta_of(delta), version)

    async def adecr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Asynchronous twin of ``decr_version``."""
        return await self.aincr_version(key, -delta_of(delta), version)

    def _move_flow(self, key: Any, version: int, target: int) -> Callable[[Clock], Flow[None]]:
        old, new = self._full(key, version), self._full(key, target)

        def flow(clock: Clock) -> Flow[None]:
            value = yield from self._flows.get(clock, old)
            left = yield from self._flows.remaining(clock, old)
            if value is MISSING or left == 0:
                raise InvalidValue(f"Key {key!r} not found")
            if new != old:
                yield from self._flows.set(clock, new, value, left)
                yield from self._flows.delete(clock, old)

        return flow


cache: Final = cast("MongoDBCache", default_cache)
"""``django.core.cache.cache``, for type checkers: where the default cache is ours, they know ``ttl`` and the like."""
