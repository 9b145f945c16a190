"""Composition: settings, clients and providers, put together on first use.

Rule of this file: it is the only place where the rings meet. Nothing is opened at import; what was composed is kept until
the settings change, and forgotten in a forked child with the clients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from goscope_django import conf, signals, values
from goscope_django.contracts import Event
from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb import client as clients
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.client import Connection
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.store import Store

_adapters: dict[tuple[str, str, int], MongoDBAdapter] = {}
_observers: list[Any] = []


def observe(observer: Any) -> None:
    """Let ``observer(event)`` see every event beside the signals: for counters."""
    if observer not in _observers:
        _observers.append(observer)


def publish(event: Event) -> None:
    """Where flows' and features' events go: to the counters, the log and Django's signals."""
    for observer in _observers:
        with contextlib.suppress(Exception):
            observer(event)
    signals.publish(event)


def emit(name: str, **details: Any) -> None:
    """Publish an event that no flow emits."""
    publish(Event(name, details))


def connection(url: str | None = None, options: Mapping[str, Any] | None = None, what: str = "URL") -> Connection:
    """This process's connection for ``url``, or for ``GOSCOPE``'s. Raises ``ImproperlyConfigured`` for a bad one."""
    settings = conf.current()
    try:
        return clients.connection(
            settings.url if url is None else url,
            settings.client_options if options is None else options,
            what=what,
            base=conf.base_dir(),
        )
    except ConfigurationError as error:
        raise conf.BadSettings(str(error)) from None


def store(url: str | None = None, what: str = "URL") -> Store:
    """A store on ``url``, or on ``GOSCOPE``'s. It finds its client anew at each use, so it outlives forks and loops."""
    connection(url, what=what)
    return Store(
        lambda: connection(url, what=what).sync(),
        lambda: connection(url, what=what).asynchronous(),
        sink=publish,
    )


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
    """Forget what was composed of settings that may have changed. Clients stay: they belong to their URLs."""
    conf.reset()
    _adapters.clear()
