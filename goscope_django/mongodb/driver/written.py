"""Who in this process wants to know which cache entries it writes: the near caches.

Rules of this file:

* A listener is told before a write is sent and after it has ended, however it ended: what was read meanwhile may be
  old. It is told by whatever store, adapter or cache object of this process the write goes.
* It is told the keys, or ``None`` where the filter says more than keys: then any entry may be meant.
* It answers at once and never raises. Without a listener a write costs one look at an empty tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from goscope_django.core.flow import Flow

Keys = Collection[str] | None


class Listener(Protocol):
    """See the rules."""

    def writing(self, keys: Keys) -> None:
        """A write of these entries is about to be sent."""

    def wrote(self, keys: Keys) -> None:
        """It has ended."""


listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> None:
    """From now on tell ``listener``."""
    global listeners
    listeners = (*(one for one in listeners if one is not listener), listener)


@contextmanager
def telling(method: str, args: tuple[Any, ...]) -> Iterator[None]:
    """Tell all listeners of a write, by the query's ``method`` and its arguments, that is carried out inside."""
    told = listeners
    if not told:
        yield
        return
    keys = _keys(method, args)
    for one in told:
        one.writing(keys)
    try:
        yield
    finally:
        for one in told:
            one.wrote(keys)


def told(steps: Callable[..., Flow[Any]], method: str) -> Callable[..., Flow[Any]]:
    """``steps`` of a query that writes to the cache, of which listeners are told."""

    def telling_steps(*args: Any, **kwargs: Any) -> Flow[Any]:
        with telling(method, args):
            return (yield from steps(*args, **kwargs))

    def now(*args: Any, **kwargs: Any) -> Flow[Any]:
        return (telling_steps if listeners else steps)(*args, **kwargs)

    return now


def _keys(method: str, args: tuple[Any, ...]) -> Keys:
    found: set[str] = set()
    for test in _tests(method, args):
        named = test.get("key", test.get("_id")) if isinstance(test, Mapping) else None
        if isinstance(named, Mapping) and named.keys() == {"$in"}:
            named = named["$in"]
        several = [named] if isinstance(named, str) else named
        if not isinstance(several, (list, tuple)) or not all(isinstance(one, str) for one in several):
            return None
        found.update(several)
    return found


def _tests(method: str, args: tuple[Any, ...]) -> Iterable[Any]:
    if method == "delete":
        return args
    if method == "upsert_many":
        return [test for test, _ in args[0]]
    return args[:1] or [None]
