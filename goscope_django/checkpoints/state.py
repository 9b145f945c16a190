"""What a running task knows in this process: its data, the places of its loops, its progress. Nothing is sent here.

Rules of this file:

* Data and places belong together. What is saved without being asked for is a state from between two items. If the body
  may have changed the data within an item, ``consistent`` is false and the save before that stands.
* What an open transaction may still take back is not saved, and comes back with a rollback.
* Time is counted from the server's time at the start, since this machine's wall clock may be wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from goscope_django.checkpoints.tracking import Meter, Place
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue, TaskCancelled
from goscope_django.mongodb.checkpoints.tasks import lost
from goscope_django.mongodb.checkpoints.values import Run, Snapshot, Started
from goscope_django.process import counters
from goscope_django.process.renewal import Renewal, now
from goscope_django.process.transactions import after_commit, in_transaction

KEEP: Final[Any] = object()
"""Stands for the data as they are."""
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes, date, datetime, timedelta, Decimal, UUID})
"""Types whose values can't be changed from outside."""


class TaskState:
    """One attempt at a task, as far as this process knows."""

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
        self.exact = started.exact
        """Whether this run may save in transactions of Django's database."""
        self.unsure = False
        """Whether such a transaction may have been committed or not: then nothing more is saved in this attempt."""
        self.renewal: Renewal | None = None
        self.cancel_requested = False
        self.dirty = False
        """Whether a loop has come further than what is saved."""
        self._noticed = self._completing = False
        self._data = started.data
        self._exposed = self._changed = False
        self._places = {place.name: place for place in map(Place.of, started.places)}
        self._begun: set[str] = set()
        self._place: Place | None = None
        self._meter = Meter(self.progress)
        self._by_items = False
        # The places as they were before an open transaction; ``None`` if none has advanced in one.
        self._before: dict[str, tuple[int, Any, bool]] | None = None
        self._waiting: list[list[Any]] = []
        self._next = started.sequence
        # Of a state that says ``done`` itself and not by its loops, the first save of a resumed run is where it begins.
        self._counted: int | None = _items(started.places, None if started.resumed else 0)
        self._moment, self._moment_at = started.moment, now()

    # What it knows

    @property
    def data(self) -> Any:
        """The data last saved, or what was put here since."""
        self._exposed = self._exposed or type(self._data) not in _ATOMS
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        self._data = value
        self._changed = True
        self._exposed = self._exposed or type(value) not in _ATOMS

    @property
    def rate(self) -> float | None:
        """Items per second, lately; ``None`` if it is not known."""
        return self._meter.rate if self._by_items else None

    @property
    def estimated_time_remaining(self) -> float | None:
        """Seconds until all items are done at this rate; ``None`` if it is not known."""
        if not self._by_items:
            return self._meter.remaining(100.0 - self.progress)
        return None if self.total is None else self._meter.remaining(self.total - (self.done or 0))

    @property
    def consistent(self) -> bool:
        """Whether the data can't have changed since the last item was done.

        :meta private:
        """
        return not (self._exposed or self._changed)

    @property
    def lost(self) -> bool:
        """Whether the lease is gone, as far as this process knows. Sends nothing."""
        return self.renewal is not None and not self.renewal.check()

    @property
    def cancelled(self) -> bool:
        """Whether an operator asked the task to stop, as of the last save. A body that leaves then is not completed."""
        self._noticed = self._noticed or self.cancel_requested
        return self.cancel_requested

    @property
    def stopping(self) -> bool:
        """Whether the body has noticed that it shall stop and did not call the work done all the same."""
        return self._noticed and not self._completing

    def raise_if_cancelled(self) -> None:
        """Raise ``TaskCancelled`` if an operator asked the task to stop."""
        if self.cancel_requested:
            raise TaskCancelled(f"task {self.id!r}: an operator asked it to stop", task_id=self.id)

    def complete(self, result: Any) -> None:
        """The work is done, with this result."""
        self._completing, self.result = True, result

    def proceed(self, *, done: bool = False) -> None:
        """Raise if a loop must not go on; with ``done`` only if what it did does not count any more."""
        if self.lost:
            raise lost(self.id)
        if not done:
            self.raise_if_cancelled()

    # What the body says

    def accept(self, data: Any = KEEP, progress: Any = None, done: Any = None, total: Any = None) -> Any:
        """Take what a save or a report says; returns the data as they were. Checks everything before it changes any."""
        if progress is not None:
            if isinstance(progress, bool) or not isinstance(progress, (int, float)):
                raise InvalidType(f"progress={progress!r}: a number from 0 to 100 is needed")
            if not 0 <= progress <= 100:  # NaN is not either
                raise InvalidValue(f"progress={progress!r}: must be from 0 to 100")
        for name, value in (("done", done), ("total", total)):
            if value is not None:
                arguments.count(value, name, least=0)
        before = self._data
        if data is not KEEP:
            self.data = data
        self.total = self.total if total is None else total
        if done is not None:
            self._count(done)
        if progress is not None:
            self.progress = float(progress)
            if not self._by_items:
                self._meter.note(self.progress)
        return before

    # What loops say

    def begin(self, name: str) -> Place:
        """The place of the loop ``name``. Raises ``InvalidValue`` if this attempt had one of that name."""
        if name in self._begun:
            raise InvalidValue(f"name={name!r}: this attempt has tracked a loop of this name; each needs its own")
        self._begun.add(arguments.key(name, "name"))
        return self._places.setdefault(name, Place(name))

    def follow(self, place: Place, total: int | None) -> None:
        """From here on the task's progress is that of the loop at ``place``."""
        self._place, self.total, self.done = place, total, place.done
        self._meter, self._by_items = Meter(place.done), True
        self._percent()

    def advance(self, place: Place, key: Any) -> None:
        """One more item of ``place`` is done."""
        place.advance(key)
        self.dirty = True
        self._changed = False

    def end(self, place: Place) -> None:
        """All items of ``place`` are done."""
        place.ended = self.dirty = True

    def watch_transaction(self) -> None:
        """To be called before a place moves: if a transaction is open, its rollback takes back what follows."""
        if in_transaction() and self._before is None:
            self.mark()
            after_commit(self.committed, self.rolled_back)

    def mark(self) -> None:
        """What places do from here on is not saved before ``committed``, and ``rolled_back`` takes it back."""
        self._before = self._stand()

    def committed(self) -> None:
        """The transaction since ``mark`` was committed."""
        self._before = None

    def rolled_back(self) -> None:
        """The transaction since ``mark`` was rolled back."""
        before, self._before = self._before or {}, None
        for name, place in self._places.items():
            place.done, place.key, place.ended = before.get(name, (0, None, False))

    # What is saved

    def snapshot(
        self, data: Any = KEEP, places: list[Mapping[str, Any]] | None = None, *, numbered: bool = True
    ) -> Snapshot:
        """The state, with the next sequence if ``numbered``. No sequence serves two states, even if its save fails."""
        if self._place is not None and self._place.done != self.done:
            self._count(self._place.done)
        self._next += numbered
        return Snapshot(
            sequence=self._next,
            data=self._data if data is KEEP else data,
            places=self.places() if places is None else places,
            progress=self.progress,
            done=self.done,
            total=self.total,
            rate=self.rate,
            remaining=self.estimated_time_remaining,
            moment=self._moment + timedelta(seconds=now() - self._moment_at),
        )

    def saved(self, snapshot: Snapshot) -> None:
        """``snapshot`` was saved. Places that it left out because of a transaction still have to be."""
        self.sequence = snapshot.sequence
        items = _items(snapshot.places, snapshot.done)
        if items is not None and self._counted is not None and items > self._counted:
            counters.count("task_items", items - self._counted)
        self._counted = items
        self.dirty = self.dirty and list(snapshot.places) != self.places(uncommitted=True)

    def places(self, *, uncommitted: bool = False) -> list[Mapping[str, Any]]:
        """The places to save; with ``uncommitted`` also what an open transaction may still take back."""
        stand = self._stand() if uncommitted or self._before is None else self._before
        return [Place(name, done, key, ended=ended).stored() for name, (done, key, ended) in stand.items()]

    def last_save(self, error: BaseException | None) -> bool:
        """Whether the end of a block that is left with ``error`` should save what was done since the last save."""
        if self.unsure:
            return False
        return self.dirty and not self._before and not in_transaction() and (error is None or self.consistent)

    def set_aside(self, before: Any) -> tuple[Any, list[Mapping[str, Any]], Callable[[bool], None]]:
        """Copies of the data and places of now, to be saved after a commit; ``before`` are the data before them.

        The function returned is to be called at the end of the transaction: with ``True`` for a commit, with ``False``
        for a rollback. Then ``before`` is the task's data again, unless the body has set others since.
        """
        kept, places = copy.deepcopy(self._data), self.places(uncommitted=True)
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

        return kept, places, over

    def _stand(self) -> dict[str, tuple[int, Any, bool]]:
        return {name: (one.done, one.key, one.ended) for name, one in self._places.items()}

    def _count(self, done: int) -> None:
        if not self._by_items:
            self._meter, self._by_items = Meter(self.done or 0), True
        self.done = done
        self._meter.note(done)
        self._percent()

    def _percent(self) -> None:
        if self.total is not None and self.done is not None:
            self.progress = 100.0 if self.total <= 0 else min(100.0, math.floor(self.done * 10_000 / self.total) / 100)


def _items(places: Sequence[Mapping[str, Any]], done: int | None) -> int | None:
    """How many items are done: those of all loops, or what the body says where it has none."""
    return sum(Place.of(one).done for one in places) if places else done
