"""Settings, clients and providers, put together on first use.

Rule of this file: nothing is opened at import. What was put together is kept until the settings change.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from goscope_django import codec as values
from goscope_django import conf, signals
from goscope_django.contracts import Event
from goscope_django.core.flow import Flow, call
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.driver import urls
from goscope_django.mongodb.driver.client import Connection
from goscope_django.mongodb.driver.store import Store

T = TypeVar("T")
logger = logging.getLogger("goscope")

_adapters: dict[tuple[str, str, int], MongoDBAdapter] = {}
_observers: list[Any] = []


def observe(observer: Any) -> None:
    """From now on call ``observer(event)`` for every event, before the signals: for counters."""
    if observer not in _observers:
        _observers.append(observer)


def publish(event: Event) -> None:
    """Hand on an event of a flow or a feature: to the counters, the log and Django's signals."""
    for observer in _observers:
        with contextlib.suppress(Exception):
            observer(event)
    signals.publish(event)


def emit(name: str, /, **details: Any) -> None:
    """Publish an event that no flow emits."""
    publish(Event(name, details))


def connection(url: str | None = None, what: str = "URL") -> Connection:
    """This process's connection for ``url``, or for ``GOSCOPE``'s. Raises ``ImproperlyConfigured`` for a bad one."""
    settings = conf.current()
    named = settings.url if url is None else url

    def find() -> Connection:
        place = conf.target(named, what) if urls.is_django(named) else named
        return clients.connection(place, settings.client_options, what=what, base=conf.base_dir())

    return _usable(find)


def _usable(make: Callable[[], T]) -> T:
    """What ``make`` gives. Raises ``ImproperlyConfigured`` (``BadSettings``) if the driver refuses its options."""
    try:
        return make()
    except ConfigurationError as error:
        raise conf.BadSettings(str(error)) from None


class _Place:
    """One URL's connection in this process, found anew after a fork."""

    def __init__(self, url: str | None, what: str) -> None:
        self._find: Callable[[], Connection] = lambda: connection(url, what=what)
        self._moves = urls.is_django(conf.current().url if url is None else url)
        self._state = self._now()
        self._found = self._find()

    def _now(self) -> tuple[int, bool]:
        return clients.epoch(), self._moves and conf.testing()

    def connection(self) -> Connection:
        now = self._now()
        # A test run gives the databases of Django other names, more than once where it has workers.
        if now != self._state or now[1]:
            self._found, self._state = self._find(), now
        return self._found

    def ensure_indexes(self, store: Store) -> Flow[None]:
        """See to the indexes, unless somebody did already. Where they can't be made that is logged."""
        found = self.connection()
        pending = found.pending
        found.prepared()  # first, so that nobody else begins as well
        if pending:
            try:
                yield from call(store.run, store.arun, indexes.ensure)
            except GoscopeError as error:
                logger.warning("the indexes could not be made: %s", error)


def store(url: str | None = None, what: str = "URL") -> Store:
    """A store on ``url``, or on ``GOSCOPE``'s. It finds its client anew at each use, so it outlives forks and loops.

    After its first success it sees to the indexes, where ``ready()`` could not.
    """
    place = _Place(url, what)
    return Store(
        lambda: _usable(place.connection().sync),
        lambda: _usable(place.connection().asynchronous),
        sink=publish,
        opening=place.ensure_indexes,
    )


def prepare(seconds: float = 2.0) -> None:
    """At start-up: reach every store that the settings name, make the missing indexes, and disconnect again.

    It takes at most about ``seconds``, whether or not the servers can be reached. A store that can't be reached, or
    whose indexes differ, is logged and tried again on first use; with ``FAIL_FAST`` it is an error. Settings that can't
    be used are left to the system checks and to first use.
    """
    try:
        settings = conf.current()
    except conf.BadSettings:
        return
    if not settings.connect_on_ready:
        return
    stores, deadline = list(conf.store_urls()), time.monotonic() + seconds
    for position, (what, url) in enumerate(stores):
        share = (deadline - time.monotonic()) / (len(stores) - position)
        try:
            connection(url, what=what).prepare(max(share, 0.3))
        except ConfigurationError:
            continue
        except GoscopeError as error:
            if settings.fail_fast:
                raise
            logger.warning("%s: %s; it will be tried again on first use", what, error)


def codec(*, pickle: bool = True) -> Codec:
    """The codec for Django's values, signed with ``SECRET_KEY``."""
    return values.make_codec(pickle=pickle)


def adapter() -> MongoDBAdapter:
    """The adapter for ``GOSCOPE``: its five providers, with the prefix and codec of this project."""
    settings = conf.current()
    milliseconds = round(settings.default_lock_timeout * 1_000)
    key = (settings.url, settings.key_prefix, milliseconds)
    found = _adapters.get(key)
    if found is None:
        found = MongoDBAdapter.on(store(), key_prefix=settings.key_prefix, default_lock_ttl=milliseconds, codec=codec())
        found = _adapters.setdefault(key, found)
    return found


def reset(**_: object) -> None:
    """Forget what was made from settings that may have changed. Clients stay: they belong to their URLs."""
    conf.reset()
    _adapters.clear()
