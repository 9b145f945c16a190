"""The ground of the cache: settings resolved on use, keys, timeouts, and what happens when the server is away.

Rule of this file: nothing of Django's or django-redis's cache API stands here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from goscope_django import conf, figures, runtime
from goscope_django.cache.headroom import Headroom, headroom
from goscope_django.cache.options import CacheOptions, alias_of, cache_options, milliseconds_of, stored_key
from goscope_django.core.flow import Flow
from goscope_django.exceptions import StoreError
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.store import Store
from goscope_django.process.outage import Outage, outage

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")
Timeout = Any
"""Seconds (int or float), a timedelta, ``None`` for never, or Django's ``DEFAULT_TIMEOUT``; zero and less delete."""

_ODD: Final = re.compile(r"[\x00-\x20\x7f]")


class CacheBase(BaseCache):
    """What every method of the cache needs: its store, its keys, its flows, and what happens without a server."""

    def __init__(self, location: str, params: Mapping[str, Any]) -> None:
        # Not here: Django's own system checks make every cache, and would end before ours can say what is wrong.
        self._fault: conf.BadSettings | None = None
        self._options: CacheOptions
        try:
            self._options = cache_options(location, params)
        except conf.BadSettings as error:
            self._fault, self._options = error, cache_options("", {})
        super().__init__({**params, "TIMEOUT": None, "OPTIONS": {}})
        self.default_timeout: Timeout = self._options.timeout
        self._flows = CacheFlows(runtime.codec(pickle=self._options.pickle))
        # A subclass that makes or checks keys its own way is asked for every one.
        self._plain_keys = (
            self._options.default_key_function
            and type(self).make_key is BaseCache.make_key
            and type(self).validate_key is CacheBase.validate_key
            and type(self).make_and_validate_key is BaseCache.make_and_validate_key
        )
        self._figures = figures.alias(alias_of(location, params))
        self._settings: conf.Settings | None = None
        self._store: Store
        self._prefix: str
        self._outage: Outage | None
        self._headroom: Headroom | None

    def _resolve(self) -> Store:
        """The store that the settings name now. Raises ``ImproperlyConfigured`` if they, or the entry in ``CACHES``,
        can't be used."""
        settings = conf.current()
        if settings is not self._settings:
            if self._fault is not None:
                raise conf.BadSettings(str(self._fault))
            url = self._options.location or None
            self._store = runtime.store(url, "CACHES LOCATION")
            self._prefix = f"{settings.key_prefix}cache:"
            on_error = self._options.on_error or settings.on_error
            feature = f"cache.{self.key_prefix}" if self.key_prefix else "cache"
            self._outage = outage(feature, url or settings.url) if on_error == "ignore" else None
            limit = self._options.max_entries
            place = f"{url or settings.url}|{self._clear_prefix()}"
            self._headroom = headroom(place, limit, self._options.cull_frequency) if limit else None
            self._settings = settings
        return self._store

    @property
    def degraded(self) -> bool:
        """Whether this process does without the server at the moment (``ON_ERROR="ignore"``)."""
        self._resolve()
        return self._outage is not None and self._outage.away

    def _run(
        self, absent: D, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | D:
        store, state = self._store, self._outage  # resolved when the key was made
        if state is None:
            try:
                return store.run(operation, *args, **kwargs)
            except StoreError:
                self._figures.error()
                raise
        if state.skips():
            self._figures.error()
            return absent
        try:
            found = store.run(operation, *args, **kwargs)
        except StoreError as error:
            state.failed(error)
            self._figures.error()
            return absent
        state.worked()
        return found

    async def _arun(
        self, absent: D, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | D:
        store, state = self._store, self._outage
        if state is None:
            try:
                return await store.arun(operation, *args, **kwargs)
            except StoreError:
                self._figures.error()
                raise
        if state.skips():
            self._figures.error()
            return absent
        try:
            found = await store.arun(operation, *args, **kwargs)
        except StoreError as error:
            state.failed(error)
            self._figures.error()
            return absent
        state.worked()
        return found

    # Keys

    def validate_key(self, key: str) -> None:
        """Warn of keys that memcached would refuse, as Django does; looked for without a loop over each character."""
        if len(key) > 250 or _ODD.search(key):
            super().validate_key(key)

    def _full(self, key: Any, version: int | None) -> str:
        # Django makes the key, warns and checks in three calls and a loop over its characters. Here a key that is short
        # and has nothing odd in it is known to be good at a glance; any other goes Django's way.
        self._resolve()
        if self._plain_keys:
            cut = len(self._prefix)
            full = f"{self._prefix}{self.key_prefix}:{self.version if version is None else version}:{key!s}"
            if len(full) - cut <= 250 and full.isascii() and not _ODD.search(full, cut):
                return full
        return self._checked(key, version)

    def _fulls(self, keys: Iterable[Any], version: int | None) -> dict[str, Any]:
        self._resolve()
        if self._plain_keys:
            # The same for all at once: a sum of lengths and one search, where none is odd.
            start = f"{self._prefix}{self.key_prefix}:{self.version if version is None else version}:"
            names = {f"{start}{key!s}": key for key in keys}
            cut, text = len(self._prefix), "".join(names)
            if max(map(len, names), default=0) - cut <= 250 and text.isascii() and not _ODD.search(text):
                return names
            keys = names.values()
        return {self._full(key, version): key for key in keys}

    def _checked(self, key: Any, version: int | None) -> str:
        return stored_key(self._prefix, self.make_and_validate_key(key, version=version))

    def _timeout(self, timeout: Timeout) -> int | None:
        """Milliseconds; ``None`` for never; 0 for what is to be deleted."""
        return milliseconds_of(self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout)

    def _clear_prefix(self) -> str:
        return f"{self._prefix}{self.key_prefix}:" if self._options.default_key_function else self._prefix

    def _clear_regex(self) -> str | None:
        """What tells this alias's keys from those of an alias whose KEY_PREFIX begins alike ("a" and "a:b")."""
        if not self._options.default_key_function:
            return None
        version = f"(-?[0-9]+|{re.escape(str(self.version))})"
        # The server takes no NUL in an expression, but its escape.
        return f"^{re.escape(self._clear_prefix())}{version}:".replace("\0", r"\x00")

    def _set_flow(self, full: str, value: Any, ttl: int | None) -> Callable[[Clock], Flow[None]]:
        def flow(clock: Clock) -> Flow[None]:
            if self._headroom is not None:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                yield from self._flows.delete(clock, full)
            else:
                yield from self._flows.set(clock, full, value, ttl)

        return flow

    def _make_room(self, clock: Clock, entries: int) -> Flow[None]:
        if self._headroom is not None and not self._headroom.take(entries):
            yield from self._headroom.cull(clock, self._flows, self._clear_prefix())

    def _add_flow(self, full: str, value: Any, ttl: int | None) -> Callable[[Clock], Flow[bool]]:
        def flow(clock: Clock) -> Flow[bool]:
            if self._headroom is not None:
                yield from self._make_room(clock, 1)
            if ttl == 0:
                return not (yield from self._flows.has(clock, full))
            return (yield from self._flows.add(clock, full, value, ttl))

        return flow

    def _set_many_flow(
        self, names: dict[str, Any], data: Mapping[Any, Any], ttl: int | None
    ) -> Callable[[Clock], Flow[list[Any]]]:
        values = {full: data[name] for full, name in names.items()}

        def flow(clock: Clock) -> Flow[list[Any]]:
            if ttl == 0:
                yield from self._flows.delete_many(clock, list(values))
                return []
            yield from self._make_room(clock, len(values))
            refused = yield from self._flows.set_many(clock, values, ttl)
            return [names[full] for full in refused]

        return flow

    def _touch_flow(self, full: str, ttl: int | None) -> Callable[[Clock], Flow[bool]]:
        return lambda clock: self._flows.delete(clock, full) if ttl == 0 else self._flows.touch(clock, full, ttl)
