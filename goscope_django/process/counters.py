"""What a process counts: cache operations, events, and how long things took. ``figures`` sends the counts.

Rules of this file:

* Counting adds to an integer in a list that exists already: no lock, no clock, no allocation.
* Counters only grow and are compared with what was sent, so nothing is lost between a reader and a writer.
* Under the GIL the counts are exact: CPython switches threads at calls and jumps, and there is none between reading and
  storing an element. A free-threaded build may lose a count where two threads add to one counter at the same moment.
  That is enough for figures.
* An alias has at most ``MAX_ROWS`` namespaces; the rest is counted together. A namespace without a key for an hour is
  removed.
* Locks and circuits are counted by name only where ``FIGURES_PER_NAME`` says so. Else one row has all of them.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from goscope_django import conf
from goscope_django.contracts import Event
from goscope_django.core import histogram
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb.figures import Batch, Layout, Wait
from goscope_django.process import holder

MAX_ROWS: Final = 64
LONGEST_NAME: Final = 64
IDLE: Final = 3_600.0
MAX_WAITS: Final = 5
MAX_NAMES: Final = 512
"""Names of locks, and of circuits, that a process counts apart."""

LONGEST_KEY: Final = 200
"""Characters of such a name; longer ones are counted together."""

IDLE_NAME: Final = 120.0
"""Seconds after which such a name makes room. Longer than a circuit is remembered without a call."""

HITS, MISSES, SETS, DELETES, ERRORS, FORGED, READ, WRITTEN = range(len(stats.CACHE_COUNTERS))
NONE: Final = "(none)"
_DJANGO: Final = ("django.contrib.sessions", "views.decorators.cache", "template.cache")
"""Django's own keys have no colon. What follows these beginnings is a hash, or a session's key, which is secret."""

ACQUIRED, CONTENDED, NOT_ACQUIRED, LOST, WAIT, HELD = (
    *range(len(stats.LOCK.counters)),
    *(stats.LOCK.start(name) for name in stats.LOCK.histograms),
)
"""Where these stand in a row of ``locks``."""

CALLS, FAILURES, REJECTIONS, OPENED = range(len(stats.CIRCUIT.counters))
"""Where these stand in a row of ``circuits``."""

TIME: Final = stats.FLIGHT.start("flight_time")
"""Where this begins in a row of ``flights``."""

EVENTS: Final[Mapping[str, str]] = {
    "flight_taken_over": "flights_taken_over",
    "idempotent_replayed": "idempotent_replayed",
    "idempotent_lost": "idempotent_lost",
    "task_started": "tasks_started",
    "task_completed": "tasks_completed",
    "task_failed": "tasks_failed",
    "task_lost": "tasks_lost",
    "checkpoint_saved": "checkpoints_saved",
    "task_refused": "tasks_refused",
    "checkpoint_unreadable": "checkpoints_unreadable",
    "degraded": "degraded",
    "cache_refresh_failed": "cache_refreshes_failed",
}
"""The counters of events."""

COUNTED: Final = (
    "flights_led",
    "flights_joined",
    "flights_bypassed",
    "flights_saved_ms",
    "flights_unshared",
    "idempotent_run",
    "idempotent_conflicts",
    "idempotent_mismatches",
    "task_items",
    "cache_stale_served",
    "cache_refreshes",
    "cache_tags_invalidated",
    "near_hits",
    "near_removed",
    "near_renewed",
    "near_emptied",
)
"""The counters that ``count`` adds to. ``flights_saved_ms``: how long the flights took that were joined.
``flights_unshared``: those whose outcome was for its leader alone. ``task_items``: items that tasks saved as done.
``cache_refreshes``: stale values that were computed anew, or were to be."""

SERIES: Final = (
    *(f"cache_{name}" for name in stats.CACHE_COUNTERS),
    *(name for layout in stats.LAYOUTS for name in layout.series),
    *EVENTS.values(),
    *COUNTED,
)
"""All names of the state's ``figures``."""


class Bell:
    """Tells the sender that there is something to send: whoever counts calls ``ring()`` unless ``awake``."""

    __slots__ = ("awake", "ring")

    def __init__(self) -> None:
        self.awake = False
        self.ring: Callable[[], None] = lambda: None


bell = Bell()


class Rows:
    """Counters by name, ``width`` numbers each, of at most ``most`` names. One that is idle for long makes room."""

    __slots__ = ("_idle", "_longest", "_most", "_width", "rows", "sent", "used")

    def __init__(self, width: int, most: int, longest: int, idle: float) -> None:
        self._width = width
        self._longest = longest
        self._most = most
        self._idle = idle
        self.rows: dict[str, list[int]] = {}
        self.sent: dict[str, list[int]] = {}
        self.used: dict[str, float] = {}

    def named(self, name: str) -> list[int]:
        """The counters for ``name``, or those for all names for which there is no room."""
        return self.rows.get(name) or self._made(name)

    def _made(self, name: str) -> list[int]:
        with _guard:
            if len(name) > self._longest or (len(self.rows) >= self._most and name not in self.rows):
                name = stats.OTHER
            found = self.rows.get(name)
            if found is None:
                self.sent[name] = [0] * self._width
                found = self.rows[name] = [0] * self._width
            return found

    def unsent(self) -> dict[str, list[int]]:
        """What was counted and not sent, by namespace."""
        found = {}
        for name, row in list(self.rows.items()):
            counts = [now - sent for now, sent in zip(list(row), self.sent[name], strict=True)]
            if any(counts):
                found[name] = counts
        return found

    def settle(self, sent: Mapping[str, list[int]], now: float) -> None:
        """Note what was sent, and remove names that were not used for long."""
        for name, counts in sent.items():
            self.sent[name] = [one + more for one, more in zip(self.sent[name], counts, strict=True)]
            self.used[name] = now
        for name, used in list(self.used.items()):
            # A thread that still has this row had an interval to add to it before this last look.
            if now - used > self._idle and self.rows[name] == self.sent[name]:
                with _guard:
                    del self.rows[name], self.sent[name], self.used[name]

    def forget(self) -> None:
        """Take everything as sent."""
        for name, row in list(self.rows.items()):
            self.sent[name] = list(row)


class Alias(Rows):
    """The counters of one cache alias, by the namespace of the key: the part before its first colon."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(len(stats.CACHE_COUNTERS), MAX_ROWS, LONGEST_NAME, IDLE)
        self.name = name

    def row(self, key: Any) -> list[int]:
        """The counters for ``key``."""
        if not isinstance(key, str):
            key = str(key)
        name, colon, _ = key.partition(":")
        if not colon:
            name = next(one for one in _DJANGO if key.startswith(one)) if key.startswith(_DJANGO) else NONE
        return self.rows.get(name) or self._made(name)

    def add(self, key: Any, what: int) -> None:
        """Count one."""
        self.row(key)[what] += 1
        if not bell.awake:
            bell.ring()

    def valued(self, key: Any, value: object, what: int, size: int) -> None:
        """Count a value that was read (``HITS``, ``READ``) or stored (``SETS``, ``WRITTEN``), and its size."""
        row = self.row(key)
        row[what] += 1
        if type(value) is bytes or (type(value) is str and value.isascii()):
            row[size] += len(value)
        if not bell.awake:
            bell.ring()

    def read(self, keys: Collection[Any], found: Collection[Any]) -> None:
        """Count ``keys`` that were read, of which ``found`` had a value."""
        if len(found) in (0, len(keys)):
            self.many(keys, HITS if found else MISSES)
        elif (row := self._row_of_all(keys)) is not None:
            row[HITS] += len(found)
            row[MISSES] += len(keys) - len(found)
        else:
            for key in keys:
                self.row(key)[HITS if key in found else MISSES] += 1

    def many(self, keys: Collection[Any], what: int) -> None:
        """Count many keys."""
        if not keys:
            return
        row = self._row_of_all(keys)
        if row is not None:
            row[what] += len(keys)
        else:
            for key in keys:
                self.row(key)[what] += 1
        if not bell.awake:
            bell.ring()

    def _row_of_all(self, keys: Collection[Any]) -> list[int] | None:
        """The counters of keys that all have one namespace, without a look at each: what the first and the last in
        order begin with, all others begin with too."""
        try:
            first, last = min(keys), max(keys)
            name, colon, _ = first.partition(":")
            if colon and last.startswith(name + colon):
                return self.row(first)
        except (TypeError, AttributeError):  # keys that are not all text
            pass
        return None

    def error(self) -> None:
        """Count an operation that failed, or was left out, because MongoDB can't be reached."""
        self.add("", ERRORS)


class Board(Rows):
    """The counters and histograms of one kind of thing, as its ``layout`` says; by name if ``names`` are asked for."""

    __slots__ = ("_by_name", "layout")

    def __init__(self, layout: Layout, *, by_name: bool) -> None:
        super().__init__(layout.width, MAX_NAMES, LONGEST_KEY, IDLE_NAME)
        self.layout = layout
        self._by_name = by_name

    def row(self, name: str) -> list[int]:
        """The counters for ``name``; without ``FIGURES_PER_NAME`` those for all."""
        return self.named(name if self._by_name and conf.current().figures_per_name else stats.OTHER)

    def add(self, name: str, what: int) -> None:
        """Count one."""
        self.row(name)[what] += 1
        if not bell.awake:
            bell.ring()

    def note(self, name: str, histogram_at: int, seconds: float) -> None:
        """Count a duration."""
        histogram.note(self.row(name), histogram_at, seconds)
        if not bell.awake:
            bell.ring()


_guard = threading.Lock()
_aliases: dict[str, Alias] = {}
locks: Final = Board(stats.LOCK, by_name=True)
circuits: Final = Board(stats.CIRCUIT, by_name=True)
flights: Final = Board(stats.FLIGHT, by_name=False)
BOARDS: Final = (locks, circuits, flights)
_OF_EVENTS: Final[Mapping[str, tuple[Board, int, str]]] = {
    "lock_acquired": (locks, ACQUIRED, "key"),
    "lock_lost": (locks, LOST, "key"),
    "circuit_opened": (circuits, OPENED, "name"),
}
"""Events that a board counts: where, and which detail of the event is the name."""

_events: dict[str, int] = dict.fromkeys(SERIES[len(stats.CACHE_COUNTERS) :], 0)
_events_sent: dict[str, int] = dict(_events)
_waiting: list[Callable[[], Iterable[Wait]]] = []
_tallies: list[Callable[[], None]] = []


def _named() -> str:
    # The random text, since two containers may have one host name and one process id.
    return stats.process_field(secrets.token_hex(4), holder.process())


_process = _named()


def alias(name: str) -> Alias:
    """The counters of a cache alias in this process."""
    found = _aliases.get(name)
    return found if found is not None else _aliases.setdefault(name, Alias(name))


def count(name: str, by: int = 1) -> None:
    """Add ``by`` to one of ``COUNTED``, or of the series of a board."""
    _events[name] += by
    if not bell.awake:
        bell.ring()


def tallied(name: str, by: int) -> None:
    """``count``, for what ``tally_by`` calls: it wakes nobody."""
    _events[name] += by


def announce(waits: Callable[[], Iterable[Wait]]) -> None:
    """Ask ``waits()`` at each sending what callers of this process wait for: kind, key, how many, since when."""
    if waits not in _waiting:
        _waiting.append(waits)


def tally_by(tally: Callable[[], None]) -> None:
    """Call ``tally()`` before counts are read: it adds what was counted elsewhere, on a path that is too hot for it."""
    if tally not in _tallies:
        _tallies.append(tally)


def _tally() -> None:
    for one in _tallies:
        with contextlib.suppress(Exception):
            one()


def observe(event: Event) -> None:
    """Count an event, if it is one that is counted."""
    name, of_board = EVENTS.get(event.name), _OF_EVENTS.get(event.name)
    if of_board is not None:
        board, what, detail = of_board
        board.add(str(event.details.get(detail)), what)
    elif name is not None:
        count(name)
    elif event.name == "cache_entry_forged":
        of, key = _owner_of(str(event.details.get("key")))
        alias(of).add(key, FORGED)


def _owner_of(full: str) -> tuple[str, str]:
    """The alias that a stored key belongs to, as far as its prefix tells, and the key."""
    start = f"{conf.current().key_prefix}cache:"
    best = ("", stats.OTHER, "")
    for name, entry in conf.our_caches().items():
        own = f"{start}{entry.get('KEY_PREFIX', '')}:"
        if full.startswith(own) and len(own) > len(best[0]):
            best = (own, name, full[len(own) :].partition(":")[2])
    return best[1], best[2]


def waits() -> list[Wait]:
    """The longest waits of this process."""
    found: list[Wait] = []
    for one in _waiting:
        with contextlib.suppress(Exception):
            found += one()
    return sorted(found, key=lambda wait: -wait[3])[:MAX_WAITS]


class Counted:
    """The counts that are about to be sent."""

    def __init__(self) -> None:
        _tally()
        self.rows = {one.name: found for one in list(_aliases.values()) if (found := one.unsent())}
        self.boards = {board: found for board in BOARDS if (found := board.unsent())}
        events = {name: number - _events_sent[name] for name, number in list(_events.items())}
        self.events = {name: number for name, number in events.items() if number}
        self.waits = waits()

    def __bool__(self) -> bool:
        return bool(self.rows or self.boards or self.events or self.waits)

    def batch(self) -> Batch:
        aliases = {
            name: [sum(column) for column in zip(*rows.values(), strict=True)] for name, rows in self.rows.items()
        }
        pairs = {
            (name, space): counts
            for name, rows in self.rows.items()
            for space, counts in rows.items()
            if space != stats.OTHER
        }
        boards = {board.layout: rows for board, rows in self.boards.items()}
        return Batch(_process, aliases, pairs, self.events, self.waits, boards, conf.current().figures_per_name)

    def settle(self) -> None:
        now = time.monotonic()
        for board, rows in self.boards.items():
            board.settle(rows, now)
        for name, rows in self.rows.items():
            _aliases[name].settle(rows, now)
        for name, number in self.events.items():
            _events_sent[name] += number


def forget() -> None:
    """Drop what was counted and not sent."""
    _tally()
    for one in (*_aliases.values(), *BOARDS):
        one.forget()
    _events_sent.update(_events)


def begin_anew() -> None:
    """In a forked child: what the parent counted is the parent's to send."""
    global _guard, _process
    _guard = threading.Lock()
    _process = _named()
    bell.awake = False
    forget()
