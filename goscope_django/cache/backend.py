"""Django's cache on MongoDB, sync and async.

Rules of this file:

* A method and its ``a`` twin say which flow runs; whatever decides is written once, in the private part below them.
* ``Keys`` makes stored keys, ``Backing`` knows the store and what happens while MongoDB can't be reached, ``Headroom``
  keeps to ``MAX_ENTRIES``. Filters and updates are those of ``mongodb.cache.flows``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

from django.core.cache import cache as default_cache
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from goscope_django import conf, figures, locks, runtime
from goscope_django.cache.backing import Backing
from goscope_django.cache.globs import Glob
from goscope_django.cache.headroom import headroom
from goscope_django.cache.keys import Keys
from goscope_django.cache.options import Timeout, alias_of, cache_options, delta_of, milliseconds_of
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, invoke
from goscope_django.exceptions import InvalidValue, LockLost, LockNotAcquired, StoreError
from goscope_django.mongodb.cache.flows import BATCH, MISSING, NO_PAGE, CacheFlows, Page
from goscope_django.mongodb.document.clock import Clock
from goscope_django.process.counters import DELETES, HITS, MISSES, READ, SETS, WRITTEN

T = TypeVar("T")
Operation = Callable[[Clock], Flow[T]]


class MongoDBCache(BaseCache):
    """``CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}``.

    Django's cache API, sync and async, and what django-redis users know: ``ttl``, ``pttl``, ``expire``, ``persist``,
    ``keys``, ``iter_keys``, ``delete_pattern`` and ``lock``. ``OPTIONS``: ``MAX_ENTRIES``, ``CULL_FREQUENCY``,
    ``SERIALIZER`` (``"bson"`` refuses pickle), ``ON_ERROR``.

    A ``timeout`` is seconds, a ``timedelta`` or ``None`` for never; zero and less delete. Expiry is judged by the
    server's clock. Every method raises ``InvalidType`` (a ``TypeError``) or ``InvalidValue`` (a ``ValueError``) for
    arguments that can't be used, and ``StoreError`` if MongoDB fails or can't be reached; with ``ON_ERROR="ignore"``
    it goes on without. ``options`` is the entry in ``CACHES``, checked.
    """

    def __init__(self, location: str, params: Mapping[str, Any]) -> None:
        # A fault is raised at first use. Django's system checks make every cache, and an error here would end them
        # before ours can say what is wrong.
        fault: conf.BadSettings | None = None
        try:
            self.options = cache_options(location, params)
        except conf.BadSettings as error:
            fault, self.options = error, cache_options("", {})
        super().__init__({**params, "TIMEOUT": None, "OPTIONS": {}})
        self.default_timeout: Timeout = self.options.timeout
        self._flows = CacheFlows(runtime.codec(pickle=self.options.pickle))
        self._figures = figures.alias(alias_of(location, params))
        self._backing = Backing(self.options, fault, self.key_prefix, self._figures)
        self._keys = Keys(self, self._backing, default_function=self.options.default_key_function)

    # One entry

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value, or ``default`` if it is missing, expired or can't be decoded. One round trip."""
        return self._read(key, default, self._backing.run(MISSING, self._flows.get, self._keys.stored(key, version)))

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Async version of ``get``."""
        full = self._keys.stored(key, version)
        return self._read(key, default, await self._backing.arun(MISSING, self._flows.get, full))

    def set(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store ``value``. Raises ``ValueError`` over 16 MB; then no value is left. One round trip."""
        self._backing.run(None, self._set(key, value, timeout, version))
        self._figures.valued(key, value, SETS, WRITTEN)

    async def aset(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Async version of ``set``."""
        await self._backing.arun(None, self._set(key, value, timeout, version))
        self._figures.valued(key, value, SETS, WRITTEN)

    def add(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store ``value`` unless there is a live one; whether it was stored. Atomic, one round trip."""
        return self._backing.run(False, self._add(key, value, timeout, version))

    async def aadd(self, key: Any, value: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Async version of ``add``."""
        return await self._backing.arun(False, self._add(key, value, timeout, version))

    def get_or_set(self, key: Any, default: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """The value; if there is none, ``default`` (called if callable) is stored and returned.

        A callable runs in one process at a time, under a lock that is renewed meanwhile; the others wait for its value,
        for ``DEFAULT_LOCK_TIMEOUT`` at most. This saves work, but does not guarantee one call: it may run twice if the
        lock's lease is lost or MongoDB can't be reached. A hit is one round trip, a value that is computed takes six.
        """
        found = self.get(key, MISSING, version=version)
        return found if found is not MISSING else carry_out(self._made(key, default, timeout, version))

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """Async version of ``get_or_set``; ``default`` may also return an awaitable."""
        found = await self.aget(key, MISSING, version=version)
        return found if found is not MISSING else await acarry_out(self._made(key, default, timeout, version))

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

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Let a live entry never expire; ``False`` if there is none. Atomic, one round trip."""
        return self.touch(key, None, version=version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        """Async version of ``persist``."""
        return await self.atouch(key, None, version=version)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove the entry; whether there was a live one. One round trip."""
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
        """Move an entry to another version, with the time it has left; the new version.

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
        """The live ones of ``keys`` with their values. One round trip for each thousand."""
        names = self._keys.stored_many(keys, version)
        return self._read_many(names, self._backing.run({}, self._flows.get_many, list(names)) if names else {})

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Async version of ``get_many``."""
        names = self._keys.stored_many(keys, version)
        return self._read_many(names, await self._backing.arun({}, self._flows.get_many, list(names)) if names else {})

    def set_many(
        self, data: Mapping[Any, Any], timeout: Timeout = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store many; the keys that were not stored. Atomic for each key.

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
        """Remove many. One round trip for each thousand."""
        if names := self._keys.stored_many(keys, version):
            self._counted(names.values(), DELETES, self._backing.run(0, self._flows.delete_many, list(names)))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Async version of ``delete_many``."""
        if names := self._keys.stored_many(keys, version):
            self._counted(names.values(), DELETES, await self._backing.arun(0, self._flows.delete_many, list(names)))

    def iter_keys(self, pattern: str = "*", version: int | None = None) -> Iterator[str]:
        """Live keys that match the glob, in order, a thousand at a time: memory stays constant however many there are.

        One round trip for each thousand, and one before them. Keys that come or go meanwhile may or may not be seen.
        """
        walk, page = _Walk(pattern, self._keys.base(version)), None
        while page is None or not page.last:
            page = self._backing.run(NO_PAGE, self._flows.page, walk.start, page)
            yield from walk.keys(page)

    async def aiter_keys(self, pattern: str = "*", version: int | None = None) -> AsyncIterator[str]:
        """Async version of ``iter_keys``."""
        walk, page = _Walk(pattern, self._keys.base(version)), None
        while page is None or not page.last:
            page = await self._backing.arun(NO_PAGE, self._flows.page, walk.start, page)
            for key in walk.keys(page):
                yield key

    def keys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Live keys that match the glob (``*``, ``?``, ``[a-z]``), in order; see ``iter_keys`` for very many."""
        return list(self.iter_keys(pattern, version=version))

    async def akeys(self, pattern: str = "*", version: int | None = None) -> list[str]:
        """Async version of ``keys``."""
        return [key async for key in self.aiter_keys(pattern, version=version)]

    def delete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Remove the entries whose keys match the glob; how many there were.

        ``"prefix*"`` is one round trip. Another glob takes those of ``iter_keys``, and one for each thousand matches.
        """
        return carry_out(self._delete_pattern(pattern, version))

    async def adelete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Async version of ``delete_pattern``."""
        return await acarry_out(self._delete_pattern(pattern, version))

    def clear(self) -> None:
        """Remove all versions of this alias's ``KEY_PREFIX``. With a ``KEY_FUNCTION`` of your own: every cache entry
        under ``GOSCOPE["KEY_PREFIX"]``. One round trip."""
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

    @property
    def degraded(self) -> bool:
        """Whether this process goes on without MongoDB at this moment (``ON_ERROR="ignore"``). Asks no server."""
        self._backing.resolve()
        return self._backing.degraded

    def close(self, **kwargs: Any) -> None:
        """Nothing: Django calls it after every request, and the client belongs to the process."""

    async def aclose(self, **kwargs: Any) -> None:
        """Nothing; see ``close``."""

    # For operators

    def remove_all(self) -> int:
        """``clear``, and how many entries it removed."""
        return self._backing.run(0, self._flows.delete_range, self._keys.own_prefix(), self._keys.own_regex())

    async def aremove_all(self) -> int:
        """Async version of ``remove_all``."""
        return await self._backing.arun(0, self._flows.delete_range, self._keys.own_prefix(), self._keys.own_regex())

    def stored_range(self) -> tuple[str, str | None]:
        """What the stored keys of this alias begin with, and the expression that they match (``None``: none needed).

        Asks no server. Raises ``ImproperlyConfigured`` if the settings can't be used.
        """
        return self._keys.own_prefix(), self._keys.own_regex()

    def count_as(self, alias: str) -> None:
        """Count what this object does in the figures of ``alias``, for one that was not made by ``caches[alias]``."""
        self._figures = self._backing.figures = figures.alias(alias)

    # One operation: what runs on the store, and what is made of its result

    def _milliseconds(self, timeout: Timeout) -> int | None:
        """``None`` for never; 0 for what is to be deleted."""
        return milliseconds_of(self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout)

    def _read(self, key: Any, default: Any, found: Any) -> Any:
        if found is MISSING:
            self._figures.add(key, MISSES)
            return default
        self._figures.valued(key, found, HITS, READ)
        return found

    def _read_many(self, names: Mapping[str, Any], found: Mapping[str, Any]) -> dict[Any, Any]:
        values = {names[full]: value for full, value in found.items()}
        self._figures.read(names.values(), values)
        return values

    def _deleted(self, key: Any, found: bool) -> bool:
        self._figures.add(key, DELETES)
        return found

    def _counted(self, keys: Collection[Any], what: int, result: T) -> T:
        self._figures.many(keys, what)
        return result

    def _set(self, key: Any, value: Any, timeout: Timeout, version: int | None) -> Operation[None]:
        full, ttl = self._keys.stored(key, version), self._milliseconds(timeout)

        def flow(clock: Clock) -> Flow[None]:
            if self.options.max_entries:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                yield from self._flows.delete(clock, full)
            else:
                yield from self._flows.set(clock, full, value, ttl)

        return flow

    def _add(self, key: Any, value: Any, timeout: Timeout, version: int | None) -> Operation[bool]:
        full, ttl = self._keys.stored(key, version), self._milliseconds(timeout)

        def flow(clock: Clock) -> Flow[bool]:
            if self.options.max_entries:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                stored = not (yield from self._flows.has(clock, full))
            else:
                stored = yield from self._flows.add(clock, full, value, ttl)
            if stored:
                self._figures.valued(key, value, SETS, WRITTEN)
            return stored

        return flow

    def _touch(self, key: Any, timeout: Timeout, version: int | None) -> Operation[bool]:
        full, ttl = self._keys.stored(key, version), self._milliseconds(timeout)
        return lambda clock: self._flows.delete(clock, full) if ttl == 0 else self._flows.touch(clock, full, ttl)

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
            value = yield from self._flows.get(clock, old)
            left = yield from self._flows.remaining(clock, old)
            if value is MISSING or left == 0:
                raise InvalidValue(f"Key {key!r} not found")
            if new != old:
                yield from self._flows.set(clock, new, value, left)
                yield from self._flows.delete(clock, old)
            return target

        return target, flow

    def _make_room(self, clock: Clock, entries: int) -> Flow[None]:
        limit, prefix = self.options.max_entries, self._keys.own_prefix()
        if limit:
            room = headroom(f"{self._backing.url}|{prefix}", limit, self.options.cull_frequency)
            if not room.take(entries):
                yield from room.cull(clock, self._flows, prefix)

    # Several operations

    def _made(self, key: Any, default: Any, timeout: Timeout, version: int | None) -> Flow[Any]:
        """Compute the value, or wait for whoever computes it, and store it."""
        if not callable(default):
            return (yield from self._kept(key, default, timeout, version))
        full = self._keys.stored(key, version)
        turn = yield from self._turn(full)
        try:
            if turn is not None:
                found = yield from call(self.get, self.aget, key, MISSING, version=version)
                if found is not MISSING:
                    return found
            with _computing(full):
                value = yield from invoke(default)
            return (yield from self._kept(key, value, timeout, version))
        except GeneratorExit:
            turn = None  # nobody runs this flow any more: the lock ends with its lease
            raise
        finally:
            if turn is not None:
                with contextlib.suppress(LockLost, StoreError):
                    yield from call(turn.__exit__, turn.__aexit__, None, None, None)

    def _turn(self, full: str) -> Flow[locks.Lock | None]:
        """The acquired lock under which a value is computed; ``None`` where it is computed without.

        That is so while MongoDB is known to be down, after a wait in vain, and for a callable that asks for the very
        value that it computes: it would wait for itself.
        """
        if full in _computed_here.get() or self._backing.degraded:
            return None
        turn = locks.lock(f"get_or_set:{full}", blocking_timeout=conf.current().default_lock_timeout)
        try:
            yield from call(turn.__enter__, turn.__aenter__)
        except LockNotAcquired:
            return None
        except StoreError:
            if not self._backing.ignores:
                raise
            return None
        return turn

    def _kept(self, key: Any, value: Any, timeout: Timeout, version: int | None) -> Flow[Any]:
        """Store the value unless somebody was faster; what is there then."""
        if (yield from call(self.add, self.aadd, key, value, timeout, version=version)):
            return value
        found = yield from call(self.get, self.aget, key, MISSING, version=version)
        if found is not MISSING:
            return found
        # What is there can't be read, for example because its signature is wrong.
        yield from call(self.set, self.aset, key, value, timeout, version=version)
        return value

    def _delete_pattern(self, pattern: str, version: int | None) -> Flow[int]:
        walk, ask = _Walk(pattern, self._keys.base(version)), self._backing.ask
        if walk.everything:
            return int((yield from ask(0, self._flows.delete_range, walk.start)))
        removed, batch, page = 0, list[str](), None
        while page is None or not page.last:
            page = yield from ask(NO_PAGE, self._flows.page, walk.start, page)
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


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else -(-milliseconds // 1_000)


def _sum(key: Any, found: int | None) -> int:
    if found is None:
        raise InvalidValue(f"Key {key!r} not found, or its value is not an integer of 64 bits")
    return found


cache: Final = cast("MongoDBCache", default_cache)
"""``django.core.cache.cache``, for type checkers: where the default cache is ours, they know ``ttl`` and the like."""
