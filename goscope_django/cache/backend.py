"""Django's cache on MongoDB, sync and async.

Rules of this file:

* A method and its ``a`` twin say which flow runs; whatever decides is written once, in the private part below them.
* ``Keys`` makes stored keys, ``Backing`` knows the store and what happens while MongoDB can't be reached, ``Headroom``
  keeps to ``MAX_ENTRIES``. Filters and updates are those of ``mongodb.cache.flows``.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from django.core.cache import cache as default_cache
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from goscope_django import conf, figures, runtime
from goscope_django.cache.backing import Backing
from goscope_django.cache.computing import Computing, Wanted
from goscope_django.cache.globs import Glob
from goscope_django.cache.headroom import headroom
from goscope_django.cache.keys import Keys
from goscope_django.cache.locking import CacheLock
from goscope_django.cache.options import (
    Timeout,
    alias_of,
    cache_options,
    delta_of,
    instant_of,
    milliseconds_of,
    pexpire_milliseconds,
    stale_options,
)
from goscope_django.cache.redis_only import missing
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, carry_out
from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb.cache import tags as tagging
from goscope_django.mongodb.cache.flows import BATCH, MISSING, NO_PAGE, CacheFlows, Page
from goscope_django.mongodb.cache.own import Terms
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver import urls
from goscope_django.process.counters import DELETES, HITS, MISSES, READ, SETS, WRITTEN

T = TypeVar("T")
Operation = Callable[[Clock], Flow[T]]
SECOND: Final = timedelta(seconds=1)
MILLISECOND: Final = timedelta(milliseconds=1)


@functools.cache
def _flows(pickle: bool, sign: bool, min_bytes: int | None) -> CacheFlows:
    """The operations for these options. They hold no state, and Django makes a cache object per thread and task."""
    return CacheFlows(runtime.codec(pickle=pickle), sign=sign, min_bytes=min_bytes)


class MongoDBCache(BaseCache):
    """``CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}``.

    Django's cache API, sync and async, and what django-redis users know: ``set(nx=, xx=)``, ``ttl``, ``pttl``,
    ``expire``, ``expire_at``, ``persist``, ``keys``, ``iter_keys``, ``delete_pattern`` and ``lock``. ``OPTIONS``:
    ``MAX_ENTRIES``, ``CULL_FREQUENCY``, ``SERIALIZER`` (``"bson"`` refuses pickle), ``ON_ERROR``, ``NEAR`` (what was
    read lately is kept in the process), ``SIGN`` (every value is signed), ``COMPRESS`` (large ones are compressed).

    ``key`` is a text, or is made one by ``str()``; ``version`` is the key's version, the alias's ``VERSION`` if
    ``None``. A ``timeout`` is seconds, a ``timedelta`` or ``None`` for never; zero and less delete. Expiry is judged by
    the server's clock. ``pattern`` is a glob (``*``, ``?``, ``[a-z]``). Every method raises ``InvalidType`` (a
    ``TypeError``) or ``InvalidValue`` (a ``ValueError``) for arguments that can't be used, and ``StoreError`` if
    MongoDB fails or can't be reached; with ``ON_ERROR="ignore"`` it goes on without. ``options`` is the entry in
    ``CACHES``, checked.

    Every change of one entry is atomic unless its text says otherwise. The round trips below are those for an entry
    without more: reading one with tags takes one more, and changing one with tags, ``stale`` or a signature (``SIGN``)
    one or two more. ``MAX_ENTRIES`` adds some now and then, to whatever stores.
    """

    def __init__(self, location: str, params: Mapping[str, Any]) -> None:
        # A fault is raised at first use. Django's system checks make every cache, and an error here would end them
        # before ours can say what is wrong.
        """Django makes it of the entry in ``CACHES``.

        :meta private:
        """
        fault: conf.BadSettings | None = None
        try:
            self.options = cache_options(location, params)
        except conf.BadSettings as error:
            fault, self.options = error, cache_options("", {})
        self._entry = (urls.Hidden(location) if isinstance(location, str) else "", params)
        self._strict: MongoDBCache | None = None
        super().__init__({**params, "TIMEOUT": None, "OPTIONS": {}})
        self.default_timeout: Timeout = self.options.timeout
        self._flows = _flows(self.options.pickle, self.options.sign, self.options.min_bytes)
        self._figures = figures.alias(alias_of(location, params))
        self._made_with = (self.key_prefix, self.version)
        naming = (type(self), *self._made_with, params.get("KEY_FUNCTION"))
        self._backing = Backing(self.options, fault, self.key_prefix, self._figures, naming)
        self._keys = Keys(self, self._backing, default_function=self.options.default_key_function)
        self.computing = Computing(self, self._backing, self._flows, adding=self._adding, setting=self._setting)

    # One entry

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value, or ``default`` if it is missing, expired or can't be decoded.

        One round trip; none where the near cache has it.
        """
        near = self._at_hand(key, version)
        return self._asked(key, default, version) if near is MISSING else near

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Async version of ``get``."""
        near = self._at_hand(key, version)
        return await self._aasked(key, default, version) if near is MISSING else near

    def set(  # type: ignore[override]  # Django's returns nothing
        self,
        key: Any,
        value: Any,
        timeout: Timeout = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
        tags: Iterable[str] = (),
    ) -> bool:
        """Store ``value``, with ``nx`` only if there is no live entry, with ``xx`` only if there is one.

        Whether it was stored; for a timeout of zero and less, whether an entry was deleted. Atomic, one round trip.
        With ``tags`` (texts) it counts as missing from the moment on when one of them is invalidated; two round trips,
        one more where others have made some of several tags. Raises ``ValueError`` over 16 MB; then no value is left.
        """
        store = self._set(key, value, timeout, version, nx, xx, tags)
        return self._written(key, value, nx or xx, self._backing.run(False, store))

    async def aset(  # type: ignore[override]  # Django's returns nothing
        self,
        key: Any,
        value: Any,
        timeout: Timeout = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
        tags: Iterable[str] = (),
    ) -> bool:
        """Async version of ``set``."""
        store = self._set(key, value, timeout, version, nx, xx, tags)
        return self._written(key, value, nx or xx, await self._backing.arun(False, store))

    def add(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store ``value`` unless there is a live one; whether it was stored. Atomic, one round trip."""
        return self._backing.run(False, self._add(key, value, timeout, version))

    async def aadd(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Async version of ``add``."""
        return await self._backing.arun(False, self._add(key, value, timeout, version))

    def get_or_set(
        self,
        key: Any,
        default: Any,
        timeout: Timeout = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        stale: Duration | None = None,
        background: bool = False,
        tags: Iterable[str] = (),
    ) -> Any:
        """The value; if there is none, ``default`` (called if callable) is stored and returned.

        A callable runs once for all who miss the value together, in all processes: on a lease that is renewed
        meanwhile. If it raises, or its value can't be stored, those who wait in this process get that very exception at
        once, and every other process computes at once. Nobody waits for longer than twice ``DEFAULT_LOCK_TIMEOUT``, nor
        where waiting is not possible (the lease can't be asked for, no connection of the pool is free): then it is
        computed without. So this saves work and does not guarantee one call.

        With ``stale`` (seconds or a ``timedelta``) a value may serve for so long after its timeout, to callers who give
        ``stale``; for every other method it has expired. One caller in all processes then computes, all others get the
        old value at once. If the callable raises, the old value serves on until ``stale`` ends. With ``background`` it
        runs on a thread of this process (async: in a task of this loop), and nobody waits.

        With ``tags`` the value counts as missing once one of them is invalidated, also while it is being computed.

        A hit is one round trip, two with tags, none where the near cache has it; a stale one the same. A value that is
        computed takes five, one more with tags and one more with ``stale``; waiting for another thread or task none.
        Taking the lease is atomic, and so is storing the value; both together are not.
        """
        wanted = self.wanted(key, default, timeout, version, stale=stale, background=background, tags=tags)
        return carry_out(self.computing.get_or_set(wanted))

    async def aget_or_set(
        self,
        key: Any,
        default: Any,
        timeout: Timeout = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        stale: Duration | None = None,
        background: bool = False,
        tags: Iterable[str] = (),
    ) -> Any:
        """Async version of ``get_or_set``; ``default`` may also return an awaitable."""
        wanted = self.wanted(key, default, timeout, version, stale=stale, background=background, tags=tags)
        return await acarry_out(self.computing.get_or_set(wanted))

    def invalidate_tags(self, *tags: str) -> int:
        """Let every entry with one of ``tags`` count as missing, in every process; how many of the tags are in use.

        One round trip however many entries there are, atomic for each tag. A value whose computing began before is not
        fresh after it. Tags belong to this alias (its ``KEY_PREFIX``), whatever the version.
        """
        return self._invalidated(self._backing.run(0, self._invalidate(tags)) if tags else 0)

    async def ainvalidate_tags(self, *tags: str) -> int:
        """Async version of ``invalidate_tags``."""
        return self._invalidated(await self._backing.arun(0, self._invalidate(tags)) if tags else 0)

    def touch(self, key: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give a live entry a new timeout; ``False`` if there is none. Never revives one. Atomic, one round trip."""
        return self._backing.run(False, self._touch(key, timeout, version))

    async def atouch(self, key: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Async version of ``touch``."""
        return await self._backing.arun(False, self._touch(key, timeout, version))

    def expire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """``touch`` with a timeout that must be given."""
        return self.touch(key, timeout, version=version)

    async def aexpire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """Async version of ``expire``."""
        return await self.atouch(key, timeout, version=version)

    def pexpire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """``expire`` with a timeout in **milliseconds** (or a ``timedelta``)."""
        return self.touch(key, pexpire_milliseconds(timeout), version=version)

    async def apexpire(self, key: Any, timeout: Timeout, version: int | None = None) -> bool:
        """Async version of ``pexpire``."""
        return await self.atouch(key, pexpire_milliseconds(timeout), version=version)

    def expire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """Let a live entry expire at ``when``: a datetime (a naive one is local time) or seconds since 1970.

        ``False`` if there is no live entry. An instant that has passed, by the server's clock, ends it at once. Atomic,
        one round trip.
        """
        return self._backing.run(False, self._expire_at(key, when, SECOND, version))

    async def aexpire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """Async version of ``expire_at``."""
        return await self._backing.arun(False, self._expire_at(key, when, SECOND, version))

    def pexpire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """``expire_at`` with **milliseconds** since 1970, or a datetime."""
        return self._backing.run(False, self._expire_at(key, when, MILLISECOND, version))

    async def apexpire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """Async version of ``pexpire_at``."""
        return await self._backing.arun(False, self._expire_at(key, when, MILLISECOND, version))

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Let a live entry never expire; ``False`` if there is none. Atomic, one round trip."""
        return self.touch(key, None, version=version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        """Async version of ``persist``."""
        return await self.atouch(key, None, version=version)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove the entry; whether there was a live one. Atomic, one round trip."""
        return self._deleted(key, self._backing.run(False, self._flows.delete, self._keys.stored(key, version)))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """Async version of ``delete``."""
        full = self._keys.stored(key, version)
        return self._deleted(key, await self._backing.arun(False, self._flows.delete, full))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Whether there is a live entry. One round trip; two for a value that may be unreadable, which counts as
        none."""
        return self._backing.run(False, self._flows.has, self._keys.stored(key, version))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """Async version of ``has_key``."""
        return await self._backing.arun(False, self._flows.has, self._keys.stored(key, version))

    def ttl(self, key: Any, version: int | None = None) -> int | None:
        """Seconds until it expires, rounded up; ``None`` for never, 0 if there is no live one. One round trip."""
        return _seconds(self.pttl(key, version=version))

    async def attl(self, key: Any, version: int | None = None) -> int | None:
        """Async version of ``ttl``."""
        return _seconds(await self.apttl(key, version=version))

    def pttl(self, key: Any, version: int | None = None) -> int | None:
        """``ttl`` in milliseconds."""
        return self._backing.run(0, self._flows.remaining, self._keys.stored(key, version))

    async def apttl(self, key: Any, version: int | None = None) -> int | None:
        """Async version of ``pttl``."""
        return await self._backing.arun(0, self._flows.remaining, self._keys.stored(key, version))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Add ``delta`` to a live integer, whose timeout stays; the sum. Atomic, one round trip.

        Raises ``ValueError`` if there is no live entry, if it is no integer, or if the sum does not fit in 64 bits; the
        value is then unchanged.
        """
        full = self._keys.stored(key, version)
        return _sum(key, self._backing.run(None, self._flows.incr, full, delta_of(delta)))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Async version of ``incr``."""
        full = self._keys.stored(key, version)
        return _sum(key, await self._backing.arun(None, self._flows.incr, full, delta_of(delta)))

    def decr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """``incr`` by ``-delta``."""
        return self.incr(key, -delta_of(delta), version=version)

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Async version of ``decr``."""
        return await self.aincr(key, -delta_of(delta), version=version)

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Move an entry to the version ``delta`` further on, with the time it has left; the new version.

        Four round trips, not atomic. Raises ``ValueError`` if there is no live entry.
        """
        target, move = self._move(key, delta, version)
        return self._backing.run(target, move)

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Async version of ``incr_version``."""
        target, move = self._move(key, delta, version)
        return await self._backing.arun(target, move)

    def decr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """``incr_version`` by ``-delta``."""
        return self.incr_version(key, -delta_of(delta), version)

    async def adecr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Async version of ``decr_version``."""
        return await self.aincr_version(key, -delta_of(delta), version)

    # Many entries

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """The live ones of ``keys`` with their values, in the order in which they were asked for.

        One round trip for each thousand that the near cache lacks.
        """
        names, near, rest = self._near_many(keys, version)
        return self._read_many(names, near | self._backing.run({}, self._get_many, rest) if rest else near)

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Async version of ``get_many``."""
        names, near, rest = self._near_many(keys, version)
        return self._read_many(names, near | await self._backing.arun({}, self._get_many, rest) if rest else near)

    def set_many(
        self, data: Mapping[Any, Any], timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store ``data``, values by key; the keys that were not stored. Atomic for each key.

        Not stored are values that are too large (their old values are gone) and, with ``ON_ERROR="ignore"``, all of
        them while MongoDB can't be reached. One round trip for each thousand, one more where it overwrites entries of
        another package.
        """
        names, store = self._set_many(data, timeout, version)
        return self._counted(names, SETS, self._backing.run(names, store) if names else [])

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Async version of ``set_many``."""
        names, store = self._set_many(data, timeout, version)
        return self._counted(names, SETS, await self._backing.arun(names, store) if names else [])

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Remove those of ``keys`` that are there. Atomic for each key, one round trip for each thousand."""
        if names := self._keys.stored_many(keys, version):
            self._counted(names.values(), DELETES, self._backing.run(0, self._flows.delete_many, list(names)))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Async version of ``delete_many``."""
        if names := self._keys.stored_many(keys, version):
            self._counted(names.values(), DELETES, await self._backing.arun(0, self._flows.delete_many, list(names)))

    def iter_keys(
        self, pattern: str = "*", version: int | None = None, *, itersize: int | None = None
    ) -> Iterator[str]:
        """Live keys that match ``pattern``, in order, a thousand at a time, so memory does not grow with their number.

        ``itersize`` is how many are read at a time, if less. One round trip for each thousand (or ``itersize``), and
        one before them. Keys that come or go meanwhile may or may not be seen.
        """
        size, walk, page = _page_size(itersize), _Walk(pattern, self._keys.base(version)), None
        while page is None or not page.last:
            page = self._backing.run(NO_PAGE, self._flows.page, walk.start, page, size)
            yield from walk.keys(page)

    async def aiter_keys(
        self, pattern: str = "*", version: int | None = None, *, itersize: int | None = None
    ) -> AsyncIterator[str]:
        """Async version of ``iter_keys``."""
        size, walk, page = _page_size(itersize), _Walk(pattern, self._keys.base(version)), None
        while page is None or not page.last:
            page = await self._backing.arun(NO_PAGE, self._flows.page, walk.start, page, size)
            for key in walk.keys(page):
                yield key

    def keys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Live keys that match ``pattern``, in order; a list, so ``iter_keys`` is for very many. It takes as many round
        trips as ``iter_keys``."""
        return list(self.iter_keys(pattern, version=version))

    async def akeys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Async version of ``keys``."""
        return [key async for key in self.aiter_keys(pattern, version=version)]

    def delete_pattern(
        self, pattern: str, version: int | None = None, *, prefix: str | None = None, itersize: int | None = None
    ) -> int:
        """Remove the entries whose keys match ``pattern``; how many there were. Atomic for each entry only.

        ``prefix`` is another ``KEY_PREFIX`` than this cache's. ``"start*"`` is one round trip. Another glob takes those
        of ``iter_keys`` (``itersize`` is its), and one for each thousand matches.
        """
        return carry_out(self._delete_pattern(pattern, version, prefix, itersize))

    async def adelete_pattern(
        self, pattern: str, version: int | None = None, *, prefix: str | None = None, itersize: int | None = None
    ) -> int:
        """Async version of ``delete_pattern``."""
        return await acarry_out(self._delete_pattern(pattern, version, prefix, itersize))

    def clear(self) -> None:
        """Remove all versions of this alias's ``KEY_PREFIX``. With a ``KEY_FUNCTION`` of your own: every cache entry
        under ``GOSCOPE["KEY_PREFIX"]``. One round trip. Atomic for each entry only: what is stored meanwhile may
        stay."""
        self.remove_all()

    async def aclear(self) -> None:
        """Async version of ``clear``."""
        await self.aremove_all()

    # The rest of the public face

    def lock(
        self,
        name: Any,
        timeout: Duration | None = None,
        *,
        version: int | None = None,
        sleep: Duration = 0.1,
        blocking: bool = True,
        blocking_timeout: Duration | None = None,
        thread_local: bool = True,
        auto_extend: bool | None = None,
        owner: str | None = None,
    ) -> CacheLock:
        """A lock whose ``name`` is made like a key of this cache, as django-redis gives it: see ``CacheLock``.

        With a ``timeout`` (seconds or a ``timedelta``) it is held for that long at most, unless ``auto_extend=True``;
        without one it is renewed until it is released. ``blocking``, ``blocking_timeout`` (seconds) and ``owner`` are
        those of ``goscope_django.locks.lock``. With ``thread_local=False`` another thread may release it. ``sleep``
        (seconds) is accepted: a waiter is woken, it does not poll at that rate. Sends nothing.
        """
        return CacheLock(
            self.make_key(name, version=version),
            timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            auto_extend=auto_extend,
            owner=owner,
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what to use instead of what only Redis has. ``hasattr`` is ``False`` for it."""
            raise missing(type(self).__name__, name)

    @property
    def degraded(self) -> bool:
        """Whether this process goes on without MongoDB at this moment (``ON_ERROR="ignore"``). Asks no server.

        Raises ``ImproperlyConfigured`` if the settings can't be used.
        """
        self._backing.resolve()
        return self._backing.degraded

    def close(self, **kwargs: Any) -> None:
        """Do nothing, and send nothing: Django calls it after every request, and the client belongs to the process."""

    async def aclose(self, **kwargs: Any) -> None:
        """Async version of ``close``."""

    def wanted(
        self,
        key: Any,
        default: Any,
        timeout: Timeout = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        stale: Duration | None = None,
        background: bool = False,
        tags: Iterable[str] = (),
    ) -> Wanted:
        """What ``get_or_set`` with these arguments asks ``computing`` for. Sends nothing.

        Raises ``InvalidType`` and ``InvalidValue`` for arguments that can't be used.

        :meta private:
        """
        old, behind = stale_options(stale, background)
        full, names = self._keys.stored(key, version), self._keys.stored_tags(tags)
        return Wanted(key, full, default, timeout, version, self._milliseconds(timeout), old, behind, names)

    # For operators

    def remove_all(self) -> int:
        """``clear`` that returns how many entries it removed."""
        return self._backing.run(0, self._flows.delete_range, self._keys.own_prefix(), self._keys.own_regex())

    async def aremove_all(self) -> int:
        """Async version of ``remove_all``."""
        return await self._backing.arun(0, self._flows.delete_range, self._keys.own_prefix(), self._keys.own_regex())

    def strict(self) -> MongoDBCache:
        """This cache for sessions: it always asks the server and raises while it can't be reached. It stores what it is
        given as it is: that is signed already, for the session's key, and compressed.

        :meta private:
        """
        if self._strict is None:
            location, params = self._entry
            options = dict(params.get("OPTIONS") or {})
            options |= {"ON_ERROR": "raise", "NEAR": False, "SIGN": False, "COMPRESS": None}
            self._strict = type(self)(location, {**params, "OPTIONS": options})
            self._strict._backing.insists = True
            self._strict.count_as(self._figures.name)
        return self._strict

    def count_keys(self, start: str) -> int:
        """How many live entries of this cache's version have keys that begin with ``start``. One round trip.

        :meta private:
        """
        return self._backing.run(0, self._flows.count_live, self._keys.base(None) + start)

    async def acount_keys(self, start: str) -> int:
        """Async version of ``count_keys``.

        :meta private:
        """
        return await self._backing.arun(0, self._flows.count_live, self._keys.base(None) + start)

    def remove_expired(self, start: str) -> int:
        """Remove expired entries whose keys begin with ``start``, before MongoDB does; how many. One round trip.

        :meta private:
        """
        return self._backing.run(0, self._flows.delete_expired, self._keys.base(None) + start)

    async def aremove_expired(self, start: str) -> int:
        """Async version of ``remove_expired``.

        :meta private:
        """
        return await self._backing.arun(0, self._flows.delete_expired, self._keys.base(None) + start)

    def stored_range(self) -> tuple[str, str | None]:
        """What the stored keys of this alias begin with, and the expression that they match (``None``: none needed).

        Asks no server. Raises ``ImproperlyConfigured`` if the settings can't be used.

        :meta private:
        """
        return self._keys.own_prefix(), self._keys.own_regex()

    def stored_start(self, start: str, version: int | None = None) -> str:
        """What the stored keys of this version begin with whose keys begin with ``start``.

        Asks no server. Raises ``InvalidValue`` where a ``KEY_FUNCTION`` does not keep beginnings, and
        ``ImproperlyConfigured`` if the settings can't be used.

        :meta private:
        """
        return self._keys.base(version) + start

    def count_as(self, alias: str) -> None:
        """Count what this object does in the figures of ``alias``, for one that was not made by ``caches[alias]``.

        :meta private:
        """
        self._figures = self._backing.figures = figures.alias(alias)

    # One operation: what runs on the store, and what is made of its result

    def _milliseconds(self, timeout: Timeout) -> int | None:
        """``None`` for never; 0 for what is to be deleted."""
        return milliseconds_of(self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout)

    def _at_hand(self, key: Any, version: int | None) -> Any:
        """The value where it was found near before, for half of what the rest takes."""
        near = self._backing.near
        if (
            near is None
            or version is not None
            or self.version != self._made_with[1]
            or self.key_prefix != self._made_with[0]
            or conf.current() is not self._backing.settings
        ):
            return MISSING
        return near.at_hand(self._flows, key)

    def _near(self, key: Any, full: str, version: int | None) -> Any:
        near = self._backing.near
        if near is None:
            return MISSING
        found = near.found(self._flows, full)
        if (
            found is not MISSING
            and version is None
            and (self.key_prefix, self.version) == self._made_with
            and self._keys.made_by_django
        ):
            near.calls(key, full)
        return found

    def _asked(self, key: Any, default: Any, version: int | None) -> Any:
        near = self._near(key, full := self._keys.stored(key, version), version)
        return self._read(key, default, self._backing.run(MISSING, self._get, full) if near is MISSING else near)

    async def _aasked(self, key: Any, default: Any, version: int | None) -> Any:
        near = self._near(key, full := self._keys.stored(key, version), version)
        return self._read(key, default, await self._backing.arun(MISSING, self._get, full) if near is MISSING else near)

    def _near_many(self, keys: Iterable[Any], version: int | None) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """The stored keys with their keys, the values that the near cache has, and the stored keys of the rest."""
        names = self._keys.stored_many(keys, version)
        near = self._backing.near
        found = {} if near is None else near.found_many(self._flows, names)
        return names, found, [full for full in names if full not in found] if found else list(names)

    def _get(self, clock: Clock, full: str) -> Flow[Any]:
        near = self._backing.near
        return self._flows.get(clock, full) if near is None else near.get(clock, self._flows, full)

    def _get_many(self, clock: Clock, keys: list[str]) -> Flow[dict[str, Any]]:
        near = self._backing.near
        return self._flows.get_many(clock, keys) if near is None else near.get_many(clock, self._flows, keys)

    def _read(self, key: Any, default: Any, found: Any) -> Any:
        if found is MISSING:
            self._figures.add(key, MISSES)
            return default
        self._figures.valued(key, found, HITS, READ)
        return found

    def _read_many(self, names: Mapping[str, Any], found: Mapping[str, Any]) -> dict[Any, Any]:
        values = {key: found[full] for full, key in names.items() if full in found}
        self._figures.read(names.values(), values)
        return values

    def _deleted(self, key: Any, found: bool) -> bool:
        self._figures.add(key, DELETES)
        return found

    def _counted(self, keys: Collection[Any], what: int, result: T) -> T:
        self._figures.many(keys, what)
        return result

    def _written(self, key: Any, value: Any, conditional: bool, stored: bool) -> bool:
        if stored or not conditional:
            self._figures.valued(key, value, SETS, WRITTEN)
        return stored

    def _set(
        self,
        key: Any,
        value: Any,
        timeout: Timeout,
        version: int | None,
        nx: bool = False,
        xx: bool = False,
        tags: Iterable[str] = (),
    ) -> Operation[bool]:
        if nx is not False or xx is not False:
            nx, xx = arguments.flag(nx, "nx"), arguments.flag(xx, "xx")
            return self._set_if(key, value, timeout, version, nx, xx, tags)
        full, ttl, names = self._keys.stored(key, version), self._milliseconds(timeout), self._keys.stored_tags(tags)

        def flow(clock: Clock) -> Flow[bool]:
            if self.options.max_entries:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                return (yield from self._flows.delete(clock, full))
            terms = (yield from tagging.terms(clock, names, ttl)) if names else None
            yield from self._put(clock, full, value, ttl, terms)
            return True

        return flow

    def _set_if(
        self, key: Any, value: Any, timeout: Timeout, version: int | None, nx: bool, xx: bool, tags: Iterable[str]
    ) -> Operation[bool]:
        if nx and xx:
            raise InvalidValue("nx and xx: an entry can't be both missing and there")
        full, ttl, names = self._keys.stored(key, version), self._milliseconds(timeout), self._keys.stored_tags(tags)

        def flow(clock: Clock) -> Flow[bool]:
            if ttl == 0:
                return (
                    (not (yield from self._flows.has(clock, full)))
                    if nx
                    else (yield from self._flows.delete(clock, full))
                )
            terms = yield from tagging.terms(clock, names, ttl)
            if xx:
                return (yield from self._flows.replace(clock, full, value, ttl, terms))
            if self.options.max_entries:
                yield from self._make_room(clock, 1)
            return (yield from self._flows.add(clock, full, value, ttl, terms))

        return flow

    def _add(
        self, key: Any, value: Any, timeout: Timeout, version: int | None, terms: Terms | None = None
    ) -> Operation[bool]:
        full, ttl = self._keys.stored(key, version), self._milliseconds(timeout)

        def flow(clock: Clock) -> Flow[bool]:
            if self.options.max_entries:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                stored = not (yield from self._flows.has(clock, full))
            else:
                stored = yield from self._flows.add(clock, full, value, ttl, terms)
            if stored:
                self._figures.valued(key, value, SETS, WRITTEN)
            return stored

        return flow

    def _touch(self, key: Any, timeout: Timeout, version: int | None) -> Operation[bool]:
        full, ttl = self._keys.stored(key, version), self._milliseconds(timeout)
        return lambda clock: self._flows.delete(clock, full) if ttl == 0 else self._flows.touch(clock, full, ttl)

    def _expire_at(self, key: Any, when: object, unit: timedelta, version: int | None) -> Operation[bool]:
        full, instant = self._keys.stored(key, version), instant_of(when, "when", unit=unit)
        return lambda clock: self._flows.expire_at(clock, full, instant)

    def _set_many(
        self, data: Mapping[Any, Any], timeout: Timeout, version: int | None
    ) -> tuple[list[Any], Operation[list[Any]]]:
        """The keys, and the flow that stores them."""
        names, ttl = self._keys.stored_many(data, version), self._milliseconds(timeout)
        values = {full: data[key] for full, key in names.items()}

        def flow(clock: Clock) -> Flow[list[Any]]:
            if ttl == 0:
                yield from self._flows.delete_many(clock, list(values))
                return []
            if self.options.max_entries:
                yield from self._make_room(clock, len(values))
            refused = yield from self._flows.set_many(clock, values, ttl)
            return [names[full] for full in refused]

        return list(names.values()), flow

    def _move(self, key: Any, delta: int, version: int | None) -> tuple[int, Operation[int]]:
        """The version that an entry moves to, and the flow that moves it there."""
        version = self.version if version is None else version
        target = version + delta_of(delta)
        old, new = self._keys.stored(key, version), self._keys.stored(key, target)

        def flow(clock: Clock) -> Flow[int]:
            seen = yield from self._flows.look(clock, old)
            left = yield from self._flows.remaining(clock, old)
            if seen.value is MISSING or left == 0:
                raise InvalidValue(f"Key {_named(key)!r} not found")
            if new != old:
                yield from self._flows.set(clock, new, seen.value, left, seen.terms)
                yield from self._flows.delete(clock, old)
            return target

        return target, flow

    def _put(self, clock: Clock, full: str, value: Any, ttl: int | None, terms: Terms | None) -> Flow[None]:
        near = self._backing.near
        if near is None or terms is not None:
            return self._flows.set(clock, full, value, ttl, terms)
        return near.set(clock, self._flows, full, value, ttl)

    def _make_room(self, clock: Clock, entries: int) -> Flow[None]:
        limit, prefix = self.options.max_entries, self._keys.own_prefix()
        if limit:
            room = headroom(urls.Hidden(f"{self._backing.url}|{prefix}"), limit, self.options.cull_frequency)
            if not room.take(entries):
                yield from room.cull(clock, self._flows, prefix)

    # Several operations

    def _adding(self, wanted: Wanted, value: Any, terms: Terms | None) -> Operation[bool]:
        return self._add(wanted.key, value, wanted.timeout, wanted.version, terms)

    def _setting(self, wanted: Wanted, value: Any, terms: Terms | None) -> Operation[bool]:
        full, ttl = wanted.full, wanted.ttl

        def flow(clock: Clock) -> Flow[bool]:
            yield from self._put(clock, full, value, ttl, terms) if ttl != 0 else self._flows.delete(clock, full)
            self._figures.valued(wanted.key, value, SETS, WRITTEN)
            return True

        return flow

    def _invalidate(self, tags: Sequence[str]) -> Operation[int]:
        names = self._keys.stored_tags(tags)
        return lambda clock: tagging.invalidate(clock, names)

    @staticmethod
    def _invalidated(number: int) -> int:
        figures.count("cache_tags_invalidated", number)
        return number

    def _delete_pattern(self, pattern: str, version: int | None, prefix: str | None, itersize: int | None) -> Flow[int]:
        size, walk, ask = _page_size(itersize), _Walk(pattern, self._keys.base(version, prefix)), self._backing.ask
        if walk.everything:
            return int((yield from ask(0, self._flows.delete_range, walk.start)))
        removed, batch, page = 0, list[str](), None
        while page is None or not page.last:
            page = yield from ask(NO_PAGE, self._flows.page, walk.start, page, size)
            batch += walk.stored_keys(page)
            while len(batch) >= BATCH or (batch and page.last):
                removed += yield from ask(0, self._flows.delete_many, batch[:BATCH])
                del batch[:BATCH]
        return removed


class _Walk:
    """A walk through the keys of one version that match a glob. ``base`` is what its stored keys begin with."""

    def __init__(self, pattern: str, base: str) -> None:
        self._glob = Glob(pattern)
        self._cut = len(base)
        self.start = base + self._glob.prefix
        self.everything = self._glob.only_prefix
        """Whether all that begins with ``start`` matches."""

    def stored_keys(self, page: Page) -> Iterator[str]:
        """Those of a page that match."""
        return (full for full in page.keys if self._glob.matches(full, self._cut))

    def keys(self, page: Page) -> Iterator[str]:
        """The same, as the user gave them."""
        return (full[self._cut :] for full in self.stored_keys(page))


def _page_size(itersize: int | None) -> int:
    return BATCH if itersize is None else min(BATCH, arguments.count(itersize, "itersize"))


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else -(-milliseconds // 1_000)


def _sum(key: Any, found: int | None) -> int:
    if found is None:
        raise InvalidValue(f"Key {_named(key)!r} not found, or its value is not an integer of 64 bits")
    return found


cache: Final = cast("MongoDBCache", default_cache)
"""``django.core.cache.cache``, for type checkers: where the default cache is ours, they know ``ttl`` and the like."""


def _named(key: Any) -> Any:
    return arguments.shown_key(key) if isinstance(key, str) else key
