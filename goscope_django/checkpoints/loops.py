"""The loops behind ``task.track``: generators that hand out items, count what is done and save when it is time.

Rule of this file: between two items it is asked whether the task may go on. An item handed out is not done before the
loop asks for the next one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, router, transaction
from django.db.models import QuerySet

from goscope_django.checkpoints.tracking import Place, Source
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType

if TYPE_CHECKING:
    from goscope_django.checkpoints.task import Task

BATCH = 100
"""Items of a transaction, where nothing is said."""


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
        """One more item is done: is it time? Begins anew if so."""
        self._count += 1
        late = self._interval is not None and time.monotonic() - self._since >= self._interval
        if not late and (self.every is None or self._count < self.every):
            return False
        self._count, self._since = 0, time.monotonic()
        return True


def loop(task: Task, source: Source, place: Place, policy: Policy) -> Iterator[Any]:
    """The items that are not done yet."""
    if task.completed or place.ended:
        return
    task._follow(place, source.count(place))
    for item, key in source.behind(place):
        task._proceed()
        yield item
        task._advance(place, key)
        if policy.due():
            task._autosave()
    task._proceed(done=True)
    task._advance(place, ended=True)
    task._autosave()


async def aloop(task: Task, source: Source, place: Place, policy: Policy) -> AsyncIterator[Any]:
    """Asynchronous twin of ``loop``."""
    if task.completed or place.ended:
        return
    task._follow(place, await source.acount(place))
    async for item, key in source.abehind(place):
        task._proceed()
        yield item
        task._advanced(place, key)
        if policy.due():
            await task._aautosave()
    task._proceed(done=True)
    place.ended = task._dirty = True
    await task._aautosave()


def batches(task: Task, source: Source, place: Place, size: int, using: str) -> Iterator[Any]:
    """The items in transactions of ``size``; each is saved once it is committed.

    Whatever ends the loop within a transaction, ``break`` included, rolls it back: none of its items is done then.
    """
    if task.completed or place.ended:
        return
    task._follow(place, source.count(place))
    pairs = source.behind(place)
    while not place.ended:
        count = 0
        task._before = task._stand()
        try:
            with transaction.atomic(using=using, durable=True):
                for item, key in itertools.islice(pairs, size):
                    task._proceed()
                    yield item
                    task._advanced(place, key)
                    count += 1
                # A runner that lost the task in the meantime rather takes the batch back.
                task._proceed(done=True)
        except BaseException:
            task._rolled_back()
            raise
        task._before, place.ended = None, count < size
        task._dirty = True
        task.save()


def database(atomic: bool | str, items: Any) -> str:
    """The alias of the database that ``atomic`` means."""
    if isinstance(atomic, str):
        return atomic
    if atomic is not True:
        raise InvalidType(f"atomic={atomic!r}: True, False or the alias of a database is needed")
    if isinstance(items, QuerySet):
        # Where an object of it is saved: the database that the queryset names, before any router is asked.
        queryset: Any = items
        alias: str = queryset._db or router.db_for_write(queryset.model, **queryset._hints)
        return alias
    return DEFAULT_DB_ALIAS
