"""What a running task knows about itself: its data, the places of its loops, its figures. Nothing is sent from here.

Rule of this file: the state that is saved of its own accord is one that held between two items. If the body may have
changed it in the middle of an item, ``consistent`` is false, and the save before that stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from goscope_django.checkpoints.tracking import Meter, Place
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.checkpoints.values import Run, Snapshot, Started
from goscope_django.process.renewal import now

KEEP: Final[Any] = object()
"""Says: as it is."""
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes, date, datetime, timedelta, Decimal, UUID})


class TaskState:
    """The part of a task that lives in this process."""

    def __init__(self, run: Run, started: Started) -> None:
        self.id = run.task_id
        self.attempt = started.attempt
        self.token = started.token
        self.sequence = started.sequence
        self.resumed = started.resumed
        self.completed = started.outcome == "completed"
        self.result: Any = started.result
        self.progress = started.progress
        self.done: int | None = None
        self.total: int | None = started.total
        self._data = started.data
        self._exposed = self._changed = False
        self._places = {place.name: place for place in map(Place.of, started.places)}
        self._begun: set[str] = set()
        self._place: Place | None = None
        self._meter = Meter(self.progress)
        self._by_items = False
        self._dirty = False
        # The places as they were before an open transaction; ``None`` where none has advanced within one.
        self._before: dict[str, tuple[int, Any, bool]] | None = None
        self._waiting: list[list[Any]] = []
        self._next = started.sequence
        # From here on time is counted, not read: this machine's wall clock may be wrong.
        self._moment, self._moment_at = started.moment, now()

    @property
    def data(self) -> Any:
        """The state last saved, or what was put here since; the next save saves it. ``state`` is the same."""
        self._exposed = self._exposed or type(self._data) not in _ATOMS
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        self._data = value
        self._changed = True
        self._exposed = self._exposed or type(value) not in _ATOMS

    state = data

    @property
    def rate(self) -> float | None:
        """Items per second, lately; ``None`` if it is not known."""
        return self._meter.rate if self._by_items else None

    @property
    def estimated_time_remaining(self) -> float | None:
        """Seconds until all items are done, as things go; ``None`` if it is not known."""
        if not self._by_items:
            return self._meter.remaining(100.0 - self.progress)
        return None if self.total is None else self._meter.remaining(self.total - (self.done or 0))

    @property
    def consistent(self) -> bool:
        """Whether the data can't have changed since the last item was done."""
        return not (self._exposed or self._changed)

    def _accept(self, data: Any, progress: Any, done: Any, total: Any) -> None:
        """Take what a save or a report says. Checks all of it before anything is changed."""
        if progress is not None:
            if isinstance(progress, bool) or not isinstance(progress, (int, float)):
                raise InvalidType(f"progress={progress!r}: a number from 0 to 100 is needed")
            if not 0 <= progress <= 100:  # NaN is not either
                raise InvalidValue(f"progress={progress!r}: must be from 0 to 100")
        for name, value in (("done", done), ("total", total)):
            if value is not None:
                arguments.count(value, name, least=0)
        if data is not KEEP:
            self.data = data
        self.total = self.total if total is None else total
        if done is not None:
            self._count(done)
        if progress is not None:
            self.progress = float(progress)
            if not self._by_items:
                self._meter.note(self.progress)

    def _follow(self, place: Place, total: int | None) -> None:
        """``place`` is the loop whose figures are the task's from here on."""
        self._place, self.total, self.done = place, total, place.done
        self._meter, self._by_items = Meter(place.done), True
        self._percent()

    def _count(self, done: int) -> None:
        if not self._by_items:
            self._meter, self._by_items = Meter(self.done or 0), True
        self.done = done
        self._meter.note(done)
        self._percent()

    def _percent(self) -> None:
        if self.total is not None and self.done is not None:
            self.progress = 100.0 if self.total <= 0 else min(100.0, math.floor(self.done * 10_000 / self.total) / 100)

    def _begin(self, name: str) -> Place:
        if name in self._begun:
            raise InvalidValue(f"name={name!r}: this attempt has tracked a loop of this name; each needs its own")
        self._begun.add(arguments.key(name, "name"))
        return self._places.setdefault(name, Place(name))

    def _advanced(self, place: Place, key: Any) -> None:
        place.advance(key)
        self._dirty = True
        self._changed = False

    def _snapshot(
        self, data: Any = KEEP, places: list[Mapping[str, Any]] | None = None, *, numbered: bool = True
    ) -> Snapshot:
        """The state under the next sequence. A sequence is never used for two states, also if its save fails."""
        if self._place is not None and self._place.done != self.done:
            self._count(self._place.done)
        self._next += numbered
        return Snapshot(
            sequence=self._next,
            data=self._data if data is KEEP else data,
            places=self._stored_places() if places is None else places,
            progress=self.progress,
            done=self.done,
            total=self.total,
            rate=self.rate,
            remaining=self.estimated_time_remaining,
            moment=self._moment + timedelta(seconds=now() - self._moment_at),
        )

    def _stand(self) -> dict[str, tuple[int, Any, bool]]:
        """Where the loops stand."""
        return {name: (one.done, one.key, one.ended) for name, one in self._places.items()}

    def _stored_places(self, *, uncommitted: bool = False) -> list[Mapping[str, Any]]:
        """The places to save: what an open transaction may still take back is left out, unless asked for."""
        stand = self._stand() if uncommitted or self._before is None else self._before
        return [Place(name, done, key, ended=ended).stored() for name, (done, key, ended) in stand.items()]

    def _rolled_back(self) -> None:
        before, self._before = self._before or {}, None
        for name, place in self._places.items():
            place.done, place.key, place.ended = before.get(name, (0, None, False))

    def _dropping(self, before: Any) -> Callable[[bool], None]:
        """To be called at the end of the transaction that the state just accepted waits for: committed, or not.

        Then the state before it is the task's again, unless the body has put another one there since.
        """
        mine = [self._data, before]
        self._waiting.append(mine)

        def over(committed: bool) -> None:
            self._waiting = [one for one in self._waiting if one is not mine]
            if committed:
                return
            if self._data is mine[0]:
                self._data = mine[1]
            for one in self._waiting:
                if one[1] is mine[0]:
                    one[1] = mine[1]

        return over
