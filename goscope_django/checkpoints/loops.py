"""The loops behind ``task.track``: generators that give items, count what is done and save when it is due.

Rules of this file:

* An item is done when the next one is asked for. Before each item the loop checks whether the task may go on.
* ``loop`` and ``aloop`` are written twice, since a generator is either sync or async, and since each item passes here:
  by hand an item costs 0.12 microseconds, by way of a flow and its runner 1.6.
* ``save`` is given by the task. Nothing is sent from here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from django.db import DEFAULT_DB_ALIAS, connections, router, transaction
from django.db.models import QuerySet

from goscope_django.checkpoints.state import TaskState
from goscope_django.checkpoints.tracking import Place, Source
from goscope_django.core import arguments
from goscope_django.core.flow import acarry_out, carry_out
from goscope_django.exceptions import InvalidType
from goscope_django.process import backend

Save = Callable[[], Any]
BATCH: Final = 100
"""Items of a transaction, unless ``every`` is given."""


class Policy:
    """When to save: after ``every`` items or ``interval`` seconds, whichever comes first."""

    __slots__ = ("_count", "_interval", "_since", "every")

    def __init__(self, every: object, interval: object, default: float) -> None:
        self.every = None if every is None else arguments.count(every, "every")
        if interval is not None:
            self._interval: float | None = arguments.duration_seconds(interval, "interval", zero=True)
        else:
            self._interval = default if every is None else None
        self._count = 0
        self._since = time.monotonic()

    def due(self) -> bool:
        """One more item is done: is a save due? If so, counting begins anew."""
        self._count += 1
        late = self._interval is not None and time.monotonic() - self._since >= self._interval
        if not late and (self.every is None or self._count < self.every):
            return False
        self._count, self._since = 0, time.monotonic()
        return True


def loop(state: TaskState, source: Source, place: Place, policy: Policy, save: Save) -> Iterator[Any]:
    """The items that are not done yet."""
    if state.completed or place.ended:
        return
    state.follow(place, carry_out(source.count(place)))
    for item, key in source.behind(place):
        state.proceed()
        yield item
        state.watch_transaction()
        state.advance(place, key)
        if policy.due():
            save()
    state.proceed(done=True)
    state.watch_transaction()
    state.end(place)
    save()


async def aloop(state: TaskState, source: Source, place: Place, policy: Policy, save: Save) -> AsyncIterator[Any]:
    """Async version of ``loop``. A coroutine is in no transaction of Django's."""
    if state.completed or place.ended:
        return
    state.follow(place, await acarry_out(source.count(place)))
    async for item, key in source.abehind(place):
        state.proceed()
        yield item
        state.advance(place, key)
        if policy.due():
            await save()
    state.proceed(done=True)
    state.end(place)
    await save()


def batches(state: TaskState, source: Source, place: Place, size: int, using: str, save: Save) -> Iterator[Any]:
    """The items in transactions of ``size``; each is saved once it is committed.

    Whatever ends the loop within a transaction, ``break`` included, rolls it back: then none of its items is done.
    """
    if state.completed or place.ended:
        return
    state.follow(place, carry_out(source.count(place)))
    pairs = source.behind(place)
    while not place.ended:
        state.mark()
        try:
            with transaction.atomic(using=using, durable=True):
                count = yield from _batch(state, pairs, size, place)
        except BaseException:
            state.rolled_back()
            raise
        state.committed()
        place.ended, state.dirty = count < size, True
        save()


def _batch(state: TaskState, pairs: Iterator[tuple[Any, Any]], size: int, place: Place) -> Generator[Any, None, int]:
    """The next ``size`` items; returns how many there were."""
    count = 0
    for item, key in itertools.islice(pairs, size):
        state.proceed()
        yield item
        state.advance(place, key)
        count += 1
    # A runner that has lost the task by now takes the batch back.
    state.proceed(done=True)
    return count


def exact_batches(
    state: TaskState, source: Source, place: Place, size: int, exactly: Exactly, using: str
) -> Iterator[Any]:
    """``batches`` on ``django_mongodb_backend``: each is saved in its own transaction, so both are there or none."""
    if state.completed or place.ended:
        return
    exactly.prepare(using)
    state.follow(place, carry_out(source.count(place)))
    pairs = source.behind(place)
    while not place.ended:
        ending = None
        state.mark()
        try:
            with exactly.together(using) as ending:
                count = yield from _batch(state, pairs, size, place)
                place.ended, state.dirty = count < size, True
                exactly.save()
        except BaseException:
            if ending is not None and ending.committed:  # what failed was a hook, after the commit
                state.committed()
            else:
                state.rolled_back()
            raise
        state.committed()
        exactly.settle()


class Ending(Protocol):
    """Tells how a transaction ended."""

    committed: bool


class Exactly(Protocol):
    """What saves within a transaction: see ``Runner``, whose flows these carry out."""

    def prepare(self, alias: str) -> None: ...
    def together(self, alias: str) -> AbstractContextManager[Ending]: ...
    def save(self) -> object: ...
    def settle(self) -> None: ...


def is_mongodb(using: str) -> bool:
    """Whether the database ``using`` is one of ``django_mongodb_backend``."""
    return backend.is_mongodb(connections[using])


def database(atomic: bool | str, items: Any) -> str:
    """The alias of the database that ``atomic`` means."""
    if isinstance(atomic, str):
        return atomic
    if atomic is not True:
        raise InvalidType(f"atomic={atomic!r}: True, False or the alias of a database is needed")
    if isinstance(items, QuerySet):
        # Where one of its objects would be saved: the database that the queryset names, else what the router says.
        queryset: Any = items
        alias: str = queryset._db or router.db_for_write(queryset.model, **queryset._hints)
        return alias
    return DEFAULT_DB_ALIAS
