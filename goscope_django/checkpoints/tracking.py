"""What a loop over many items needs to resume: its place, its speed, and the items that are left.

Rules of this file:

* An item is done when the loop asks for the next one. The item that is being worked on when the process dies, or when
  the loop is left, is not done: it is repeated.
* A place is the key of the last item done or, where items have no key, a count. Counting needs the same items in the
  same order each time. So a set, and a queryset whose order is no unique key, are refused.
* Speed is measured on the monotonic clock. Nothing is sent to the store from here.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Final

from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet

from goscope_django.core import arguments
from goscope_django.core.flow import Flow, call
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.document.reading import whole

PAGE: Final = 2_000
"""Rows that one query of a tracked queryset fetches."""
SMOOTHING: Final = 30.0
"""Seconds over which the rate is averaged."""


class Place:
    """How far the loop ``name`` has come: how many items are done, and the last one's key."""

    __slots__ = ("done", "ended", "key", "name")

    def __init__(self, name: str, done: int = 0, key: Any = None, *, ended: bool = False) -> None:
        self.name = name
        self.done = done
        self.key = key
        self.ended = ended

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Place:
        """The place that was saved as ``stored``. Damaged values begin anew."""
        done, ended = max(0, whole(stored.get("done"))), stored.get("ended") is True
        return cls(str(stored["name"]), done, stored.get("key"), ended=ended)

    def stored(self) -> dict[str, Any]:
        """What of it is saved."""
        return {"name": self.name, "done": self.done, "key": self.key, "ended": self.ended}

    def advance(self, key: Any) -> None:
        """One more item is done."""
        # The key first: if a signal comes between the two lines, the next run still begins behind what is done.
        self.key = key
        self.done += 1


class Meter:
    """Items per second, averaged over ``SMOOTHING`` seconds, and how long the rest will take."""

    __slots__ = ("_count", "_moment", "rate")

    def __init__(self, count: float = 0.0) -> None:
        self._count = count
        self._moment = time.monotonic()
        self.rate: float | None = None

    def note(self, count: float) -> None:
        """By now ``count`` items (or percent) are done."""
        moment = time.monotonic()
        passed, more = moment - self._moment, count - self._count
        if passed <= 0:
            return
        if more < 0:
            self.rate = None
        else:
            weight = 1.0 if self.rate is None else -math.expm1(-passed / SMOOTHING)
            self.rate = more / passed * weight + (self.rate or 0.0) * (1.0 - weight)
        self._count, self._moment = count, moment

    def remaining(self, left: float) -> float | None:
        """Seconds until ``left`` more are done; ``None`` if none was done lately."""
        if left <= 0:
            return 0.0
        return left / self.rate if self.rate else None


class Source:
    """The items of one loop that are not done yet, in order, each with its key (``None`` where items have none)."""

    def __init__(self, items: Any, key: str | Callable[[Any], Any] | None, total: int | None, page: int = PAGE) -> None:
        if isinstance(items, (set, frozenset)):
            raise InvalidType("items: a set has no order to resume by; hand over sorted(items)")
        if isinstance(items, QuerySet) and key is None:
            key = "pk" if not items.query.order_by else None
            if key is None:
                raise InvalidValue(
                    "key=None: an ordered queryset can't be resumed by counting, since rows come and go; "
                    "say by which unique field, such as key='pk'"
                )
        self.items = items
        self.page = arguments.count(page, "page")
        self.total = None if total is None else arguments.count(total, "total", least=0)
        self.rows = _Rows(items, key) if isinstance(items, QuerySet) and isinstance(key, str) else None
        if self.rows is None and key is not None and not (callable(items) and callable(key)):
            raise InvalidType(
                f"key={key!r}: a field's name goes with a queryset; a function that gives an item's key goes with a "
                f"function that takes the last key (None at first) and gives the items behind it"
            )
        self.key_of = key if callable(key) else None
        if self.key_of is None and self.rows is None and not isinstance(items, (Iterable, AsyncIterable)):
            raise InvalidType(f"items={type(items).__name__}: an iterable or an asynchronous one is needed")

    def count(self, place: Place) -> Flow[int | None]:
        """How many items there are in all, if that is known. One SQL query for a queryset."""
        if self.total is not None:
            return self.total
        if self.rows is not None:
            left = self.rows.behind(place.key)
            return place.done + int((yield from call(left.count, left.acount)))
        return len(self.items) if isinstance(self.items, Sized) and not isinstance(self.items, QuerySet) else None

    def behind(self, place: Place) -> Iterator[tuple[Any, Any]]:
        """The items behind ``place``."""
        if self.rows is not None:
            pages = _Pages(self.rows, place.key, self.page)
            for query in pages:
                yield from pages.read(list(query))
        elif self.key_of is not None:
            for item in self.items(place.key):
                yield item, self.key_of(item)
        elif isinstance(self.items, Iterable):
            for item in itertools.islice(self.items, place.done, None):
                yield item, None
        else:
            raise InvalidType("items: an asynchronous iterable goes with `async for ... in task.atrack(...)`")

    async def abehind(self, place: Place) -> AsyncIterator[tuple[Any, Any]]:
        """Async version of ``behind``; takes ordinary iterables as well."""
        if self.rows is not None:
            pages = _Pages(self.rows, place.key, self.page)
            for query in pages:
                for pair in pages.read([row async for row in query]):
                    yield pair
            return
        items = self.items if self.key_of is None else self.items(place.key)
        if not isinstance(items, AsyncIterable):
            for pair in self.behind(place):
                yield pair
            return
        skipped = place.done if self.key_of is None else 0
        async for item in items:
            if skipped:
                skipped -= 1
            else:
                yield item, None if self.key_of is None else self.key_of(item)


class _Pages:
    """The queries that read ``rows`` behind the key ``last``, ``size`` rows each."""

    def __init__(self, rows: _Rows, last: Any, size: int) -> None:
        self.rows = rows
        self.last = last
        self.size = size
        self.over = False

    def __iter__(self) -> Iterator[QuerySet[Any]]:
        while not self.over:
            yield self.rows.behind(self.last)[: self.size]

    def read(self, found: list[Any]) -> Iterator[tuple[Any, Any]]:
        """The rows of one page with their keys. The next query begins behind the last one."""
        self.over = len(found) < self.size
        for row in found:
            self.last = self.rows.key(row)
            yield row, self.last


class _Rows:
    """A queryset in the order of a unique field: ``key="pk"``, or ``"-pk"`` from the end."""

    def __init__(self, queryset: QuerySet[Any], key: str) -> None:
        if queryset.query.is_sliced:
            raise InvalidValue("items: a sliced queryset can't be resumed by key; filter it instead")
        if queryset.query.combinator:
            raise InvalidValue(f"items: a queryset made by {queryset.query.combinator}() can't be resumed by key")
        self.queryset = queryset
        self.order = key
        name = key.removeprefix("-")
        options = queryset.model._meta
        try:
            field = options.pk if name == "pk" else options.get_field(name)
        except FieldDoesNotExist as error:
            raise InvalidValue(f"key={key!r}: {options.label} has no such field") from error
        if not getattr(field, "unique", False) or getattr(field, "null", False):
            raise InvalidValue(f"key={key!r}: a field of {options.label} that is unique and never null is needed")
        self.name = name
        self.attribute: str = field.attname
        self.lookup = f"{name}__{'lt' if key.startswith('-') else 'gt'}"

    def behind(self, last: Any) -> QuerySet[Any]:
        return (self.queryset if last is None else self.queryset.filter(**{self.lookup: last})).order_by(self.order)

    def key(self, row: Any) -> Any:
        if isinstance(row, Model):
            return getattr(row, self.attribute)
        if isinstance(row, Mapping):
            for name in (self.name, self.attribute):
                if name in row:
                    return row[name]
        raise InvalidType(f"key={self.order!r}: rows that have it are needed: objects, or values() with {self.name!r}")
