"""Django's cache on MongoDB, synchronous and natively asynchronous.

Rule of this file: Django's cache API, each method a line or two over a flow of ``mongodb.cache_flows``. Names, keys,
timeouts and the server's absence are ``cache_base``'s, what goes beyond Django's API ``cache_extras``'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from django.core.cache import cache as default_cache
from django.core.cache.backends.base import DEFAULT_TIMEOUT

from goscope_django.cache_base import Timeout
from goscope_django.cache_extras import CacheExtras
from goscope_django.cache_options import delta_of, plain_key
from goscope_django.counters import DELETES, HITS, MISSES, READ, SETS, WRITTEN
from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb.cache_flows import MISSING
from goscope_django.mongodb.expressions import Clock
from goscope_django.mongodb.flow import Flow

__all__ = ["MongoDBCache", "cache", "plain_key"]


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
