"""The near cache: entries that this process read lately, which ``get`` and ``get_many`` give without a command.

Rules of this file:

* A hit is judged in this order: the stream's proof, the entry, the clock. A process that was stopped in between finds
  its proof too old.
* What was read is kept only if nothing can have changed it since the reading began: no change of the stream, no write
  of this process, no other stream, no other primary.
* Of readings of one entry that ran at the same time nobody knows which came first. Where they differ, none of them is
  kept, so nobody gets what is older than what he got before.
* While this process writes an entry it serves as before; when the write has ended, however it did, it is removed. What
  ``set`` wrote takes its place if nothing else wrote, changed or gave another value of it from before until after.
* An entry that is changed by somebody, and has served since it was read, is read again by the stream's thread, many
  with one command; each such reading is paid for by a hit. Until then it serves on, for ``CATCH_UP`` seconds at most
  and never past ``max_stale`` after the change. Others are removed.
* An entry ends when the server's clock says so, which stated its time when the entry was read, and after ``MAX_AGE`` in
  any case. Without change streams it ends ``max_stale`` after its reading began.
* An entry with tags is not kept: whether they stand only the server says. A stale value is not either.
* Values that can't be changed are shared. Others are made anew for each hit.
* There is one for each place, prefix and set of options in a process. ``stream`` is said in ``mongodb.cache.stream``.
"""

from __future__ import annotations

import logging
import marshal
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.core.signals import setting_changed

from goscope_django.cache.kept import Entry, Kept
from goscope_django.cache.options import CacheOptions, NearOptions
from goscope_django.core.flow import Command, Emit, Flow, ask, run
from goscope_django.core.forking import at_fork
from goscope_django.core.ticks import tick
from goscope_django.mongodb.cache import nearby
from goscope_django.mongodb.cache.flows import BATCH, MISSING, NOTHING, CacheFlows, Seen
from goscope_django.mongodb.cache.nearby import Reading
from goscope_django.mongodb.cache.stream import CATCH_UP, ChangeStream, stop_all
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver import written
from goscope_django.mongodb.driver.execute import CACHE, SyncExecutor
from goscope_django.process import counters
from goscope_django.process.counters import HITS, READ, Alias, bell

logger = logging.getLogger("goscope.near")

MAX_AGE: Final = 60.0
"""Seconds after which an entry is read again in any case."""

_DRIFT: Final = 0.001
"""By what part of the time left our clock may be slower than the server's."""

_OVERHEAD: Final = 600
"""Bytes that an entry takes besides its value and its key."""

_SAVED: Final = 3
"""Hits that may pay for later readings of an entry which is changed again before it serves."""

_AT_ONCE: Final = 2**20
"""Bytes that are read again with one command at most: while they come nothing is proved."""

_NEVER_SERVED: Final = (None, 0)
_NO_WRITE: Final = (0, 0)
_NOT_ENDED, _NOT_ALONE = -1, -2

_SHARED, _MARSHALLED, _FROZEN = range(3)
_UNCHANGEABLE: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, date, datetime, time, timedelta, Decimal, UUID}
)

_TOLD_BY_TEXT: Final = frozenset({float, complex, datetime, time, Decimal})
"""Types of values that are equal and not the same (-0.0, other time zones), or that can't be hashed (a Decimal)."""


@dataclass(slots=True)
class NearFigures:
    """What happened in this process since it began."""

    hits: int = 0
    kept: int = 0
    removed: int = 0
    renewed: int = 0
    emptied: int = 0


class Near:
    """The near cache of one place and prefix, for all threads and tasks of this process."""

    def __init__(self, options: NearOptions, stream: ChangeStream, figures: Alias | None = None) -> None:
        self.alias = figures
        self.options = options
        self.stream = stream
        self.max_stale = options.max_stale
        self.figures = NearFigures()
        self.kept = Kept(options.max_entries, options.max_bytes)
        self._entries = self.kept.entries
        self._named = self.kept.named
        self.begin_anew()
        stream.watch(self)
        written.listen(self)

    def begin_anew(self) -> None:
        """In a forked child: nothing of what the parent kept is watched over here."""
        self._lock = threading.RLock()  # a signal handler, or the garbage collector, may ask in the middle of it
        self._others: dict[Any, str] = {}  # the stored keys of entries whose _id is another one
        self._changes = 0
        self._reading = 0
        self._changed: OrderedDict[Any, int] = OrderedDict()  # _ids and keys, while somebody reads
        self._all_changed = 0
        self._given: OrderedDict[str, _Given] = OrderedDict()  # by key, while more than one reads
        self._writing: dict[str, tuple[int, int]] = {}  # how many writes, and the change at which the last one began
        self._setting: dict[str, _Setting] = {}
        self._writing_any = 0
        self._flows: CacheFlows | None = None
        self._again: dict[str, int] = {}  # the stored keys of what is to be read again, with their sizes
        self._again_bytes = 0
        # What had served when this process wrote it: the key of callers and the size.
        self._served: OrderedDict[str, tuple[str | None, int]] = OrderedDict()
        self.kept.clear()

    # Hits. The first two are alike, since this is a hot path: a get of 100 bytes takes 1.3 microseconds by the first,
    # 2.6 by the second, and a call that both shared would add 0.1.

    def at_hand(self, flows: CacheFlows, key: Any) -> Any:
        """The value by the key that callers know, once ``calls`` has told it; ``MISSING`` if the server has to be
        asked. It is counted."""
        proof = self.stream.proof
        entry = self._named.get(key) if type(key) is str else None
        if entry is None:
            return MISSING
        now = tick()
        if now - proof > self.max_stale or now >= entry.until:
            return MISSING
        entry.uses += 1
        self.figures.hits += 1
        row = entry.row
        row[HITS] += 1
        row[READ] += entry.counted
        if not bell.awake:
            bell.ring()
        if entry.how == _SHARED:
            return entry.value
        if entry.how == _MARSHALLED:
            return marshal.loads(entry.value)  # noqa: S302  made by this process and never out of it
        return flows.thawed(entry.full, entry.value)

    def found(self, flows: CacheFlows, full: str) -> Any:
        """The same by the stored key. It is not counted."""
        proof = self.stream.proof
        entry = self._entries.get(full)
        if entry is None:
            return MISSING
        now = tick()
        if now - proof > self.max_stale or now >= entry.until:
            return MISSING
        entry.uses += 1
        self.figures.hits += 1
        if entry.how == _SHARED:
            return entry.value
        if entry.how == _MARSHALLED:
            return marshal.loads(entry.value)  # noqa: S302  made by this process and never out of it
        return flows.thawed(full, entry.value)

    def calls(self, key: Any, full: str) -> None:
        """``key`` is what callers call ``full``: always, for those who share this near cache."""
        entry = self._entries.get(full)
        if entry is None or entry.key is not None or type(key) is not str or self.alias is None:
            return
        if entry.how == _MARSHALLED:  # it serves: then it pays to make its copies cheaper
            entry.value = marshal.dumps(_with_common_keys(marshal.loads(entry.value), {}))  # noqa: S302
        with self._lock:
            self._call(entry, key)

    def _call(self, entry: Entry, key: str | None) -> None:
        if key is None or self.alias is None:
            return
        text = entry.value if entry.how == _SHARED else None
        counted = len(text) if type(text) is bytes or (type(text) is str and text.isascii()) else 0
        self.kept.call(entry, key, self.alias.row(key), counted)

    def found_many(self, flows: CacheFlows, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those for which the server need not be asked."""
        found = {}
        for full in keys:
            value = self.found(flows, full)
            if value is not MISSING:
                found[full] = value
        return found

    # Reading

    def get(self, clock: Clock, flows: CacheFlows, full: str) -> Flow[Any]:
        """``CacheFlows.get`` from the primary; what is read is kept. As many commands."""
        values = yield from self._read(clock, flows, [full])
        if values is None:
            return (yield from flows.get(clock, full))
        return values.get(full, MISSING)

    def get_many(self, clock: Clock, flows: CacheFlows, keys: Sequence[str]) -> Flow[dict[str, Any]]:
        """``CacheFlows.get_many`` from the primary; what is read is kept. As many commands."""
        values: dict[str, Any] = {}
        for batch in flows.batches(keys):
            found = yield from self._read(clock, flows, batch)
            values |= (yield from flows.get_many(clock, batch)) if found is None else found
        return values

    def look(self, clock: Clock, flows: CacheFlows, full: str) -> Flow[Seen]:
        """``CacheFlows.look`` at the primary; a value that is fresh is kept. As many commands."""
        seen = yield from self._seen(clock, flows, [full], stale=True)
        return (yield from flows.look(clock, full)) if seen is None else seen.get(full, NOTHING)

    def set(self, clock: Clock, flows: CacheFlows, full: str, value: object, ttl: int | None) -> Flow[None]:
        """``CacheFlows.set`` of an entry without tags. Where this process has read it, the new value is kept in place
        of the old one. As many commands."""
        mine = _Setting()
        before = self._entries.get(full)
        if (
            before is None
            or before.name != full  # Node's document, of which the stream tells otherwise
            or tick() >= before.until
            or not clock.by_id  # nor is it known then whose document this is
            or not nearby.copied(value)
            or self._setting.setdefault(full, mine) is not mine
        ):
            return (yield from flows.set(clock, full, value, ttl))
        try:
            with self._begun() as began:
                # Reading it back would not give one list in two places, so nor may what is kept.
                copy, left = _with_common_keys(value, {}), None if ttl is None else ttl / 1_000
                entry = self._entry(flows, full, Reading({}, full, left), copy, began)
                served = yield from ask(CACHE, "known_primary")
                yield from flows.set(clock, full, value, ttl)
                if entry is not None and served == (yield from ask(CACHE, "known_primary")):
                    self._keep_written(entry, began, served, mine)
        finally:
            self._setting.pop(full, None)  # a child that was forked in here has begun anew

    def _keep_written(self, entry: Entry, began: _Began, served: object, mine: _Setting) -> None:
        """Keep what ``set`` wrote, if that is known to be the newest."""
        full, stream = entry.full, self.stream
        with self._lock:
            if (
                mine.ended == self._changed.get(full)
                and self._all_changed <= began.changes
                and not self._writing_any
                and self._in_order(entry, began)
                and began.generation == stream.generation
                and began.alone == stream.alone
                and (began.alone or served == stream.served)
            ):
                self._put(entry)

    def _read(self, clock: Clock, flows: CacheFlows, keys: Sequence[str]) -> Flow[dict[str, Any] | None]:
        seen = yield from self._seen(clock, flows, keys, stale=False)
        return None if seen is None else {full: one.value for full, one in seen.items()}

    def _seen(
        self, clock: Clock, flows: CacheFlows, keys: Sequence[str], *, stale: bool
    ) -> Flow[dict[str, Seen] | None]:
        self.stream.used()
        self._flows = flows
        found: dict[str, Seen] = {}
        with self._begun() as began:
            rows, served = yield from nearby.read(clock, keys, stale=stale)
            if rows is None:
                return None
            wanted = set(keys)
            left = set(wanted)  # of which there is nothing to keep
            for row in rows:
                full = row.entry.get("key")
                if type(full) is not str or full not in wanted:  # damaged: its key is a list that holds the one we want
                    continue
                value = yield from flows.opened(full, row.entry)
                if value is not MISSING:
                    found[full] = Seen(value, row.over, row.terms)
                    if (entry := self._entry(flows, full, row, value, began)) is not None:
                        left.discard(full)
                        self._keep(entry, began, served)
            if left:
                self._keep_nothing(left)
        return found

    @contextmanager
    def _begun(self) -> Iterator[_Began]:
        with self._lock:
            self._reading += 1
            stream = self.stream
            began = _Began(self._changes, tick(), stream.generation, stream.alone)
        try:
            yield began
        finally:
            with self._lock:
                self._reading -= 1
                if not self._reading:
                    self._changed.clear()
                    self._given.clear()

    def _entry(self, flows: CacheFlows, full: str, row: Reading, value: Any, began: _Began) -> Entry | None:
        """What would be kept of a reading; ``None`` if nothing can be."""
        if row.name is None or not (began.alone or began.generation):
            return None
        how, kept = _SHARED, value
        if type(value) not in _UNCHANGEABLE:
            if nearby.copied(value):
                how, kept = _MARSHALLED, marshal.dumps(value)
            else:
                try:
                    how, kept = _FROZEN, flows.frozen(full, value)
                except Exception:  # noqa: BLE001  it was read all the same, but can't be copied
                    return None
        size = _OVERHEAD + sys.getsizeof(kept) + len(full)
        until = began.sent + (self.max_stale if began.alone else MAX_AGE)
        if row.left is not None:
            until = min(until, began.sent + row.left * (1 - _DRIFT))
        return Entry(full, row.name, how, kept, size, until)

    def _keep(self, entry: Entry, began: _Began, served: object) -> None:
        """Keep what was read, if it is known to be the newest; else see to it that nothing older stays."""
        stream, full = self.stream, entry.full
        with self._lock:
            in_order = self._in_order(entry, began)
            if (
                not in_order
                or began.generation != stream.generation
                or began.alone != stream.alone
                or (not began.alone and served != stream.served)
                or self._writing_any
                or full in self._writing
                or began.changes < max(self._all_changed, self._changed.get(full, 0), self._changed.get(entry.name, 0))
            ):
                before = self._entries.get(full)
                if before is not None and _print(before) != _print(entry):
                    self._remove(full)
                return
            self._put(entry)
            if entry.name != full:
                self._others[entry.name] = full
                if len(self._others) > 2 * len(self.kept) + 100:
                    self._others = {one.name: one.full for one in self._entries.values() if one.name != one.full}

    def _put(self, entry: Entry) -> None:
        before = self._entries.get(entry.full)
        self.kept.put(entry)
        self.figures.kept += 1
        if before is not None:
            self._call(entry, before.key)
        elif entry.full in self._served:
            entry.paid = -1
            self._call(entry, self._served.pop(entry.full)[0])

    def _keep_nothing(self, keys: Collection[str]) -> None:
        """Of these nothing was read that can be kept: see to it that nothing older stays."""
        with self._lock:
            if self._reading > 1:
                for full in keys:
                    self._give(full, None)
            for full in keys:
                if full in self._entries:
                    self._remove(full)

    def _in_order(self, entry: Entry, began: _Began) -> bool:
        """Whether this reading gave nothing older than any that has ended since it began."""
        before = self._given.get(entry.full)
        if before is None and self._reading == 1:
            return True  # nobody else reads, as a rule: then there is nothing to compare
        mine = _print(entry)
        alike = before is not None and before.print == mine
        in_order = before is None or began.changes >= (before.since if alike else before.last)
        if self._reading > 1:
            self._give(entry.full, mine, before.since if before is not None and alike else None)
        return in_order

    def _give(self, full: str, mine: tuple[object, ...] | None, since: int | None = None) -> None:
        """Note what a reading gave that ends now, for those that still run."""
        self._changes += 1
        self._given[full] = _Given(mine, self._changes if since is None else since, self._changes)
        self._given.move_to_end(full)
        if len(self._given) > self.options.max_entries + BATCH:
            self._all_changed = max(self._all_changed, self._given.popitem(last=False)[1].last)

    # Changes

    def changed(self, name: Any) -> None:
        """The document with this ``_id`` was changed by somebody."""
        with self._lock:
            full = self._others.get(name, name)
            if self._serves_on(full):
                self._note(name)
                self._note(full)
                return
            self._remove(name)
            if full != name:
                del self._others[name]
                self._remove(full)

    def _serves_on(self, full: Any) -> bool:
        """Whether this entry, which was changed, has served since it was read, so that it is to be read again."""
        entry = self._entries.get(full)
        if entry is None:
            _, size = self._served.pop(full, _NEVER_SERVED)
        elif entry.uses > entry.paid:
            entry.paid = max(entry.paid + 1, entry.uses - _SAVED)
            # What is proved until now is from before the change.
            entry.until = min(entry.until, self.stream.proof + self.max_stale, tick() + CATCH_UP)
            size = entry.size
        else:
            size = 0
        if not size or len(self._again) >= BATCH or self._again_bytes + size > _AT_ONCE:
            return False
        if full not in self._again:
            self._again_bytes += size
        self._again[full] = size
        return True

    def catch_up(self, executor: SyncExecutor) -> None:
        """Read again what was changed and had served. One command."""
        if not self._again or self._flows is None:
            return
        with self._lock:
            keys = [full for full in self._again if full not in self._writing]
            for full in keys:
                del self._again[full]
            self._again_bytes = sum(self._again.values())
        if not keys:
            return
        seen = None

        def execute(command: Command[Any]) -> Any:
            return None if isinstance(command, Emit) else executor(command)

        try:
            seen = run(self._seen(executor.clock, self._flows, keys, stale=False), execute)
        except Exception as error:  # noqa: BLE001  who asks for these meets it as well
            logger.debug("what was changed could not be read again: %s", type(error).__name__)
        finally:
            if seen is None:
                self._keep_nothing(keys)
            else:
                self.figures.renewed += len(seen)

    def emptied(self) -> None:
        """Any document may have changed."""
        with self._lock:
            self._empty()

    def writing(self, keys: written.Keys) -> None:
        """This process is about to write these entries, or ``None`` for any."""
        with self._lock:
            if keys is None:
                self._writing_any += 1
                self._empty()
                return
            for full in keys:
                self._note(full)
                self._writing[full] = self._writing.get(full, _NO_WRITE)[0] + 1, self._changes

    def wrote(self, keys: written.Keys) -> None:
        """It has written them, or failed to."""
        with self._lock:
            if keys is None:
                self._writing_any = max(0, self._writing_any - 1)
                self._empty()
                return
            for full in keys:
                writes, began = self._writing.get(full, _NO_WRITE)
                if writes > 1:
                    self._writing[full] = writes - 1, began
                else:
                    self._writing.pop(full, None)
                alone = writes == 1 and self._changed.get(full) == began
                entry = self._remove(full)
                if (one := self._setting.get(full)) is not None:
                    # One that is sent again in another way goes to a document that has another _id.
                    one.ended = self._changes if alone and one.ended == _NOT_ENDED else _NOT_ALONE
                if entry is not None and entry.uses > entry.paid:
                    self._served[full] = entry.key, entry.size
                    if len(self._served) > self.options.max_entries:
                        self._served.popitem(last=False)

    def _remove(self, name: Any) -> Entry | None:
        if (entry := self.kept.remove(name)) is not None:
            self.figures.removed += 1
        self._note(name)
        return entry

    def _note(self, name: Any) -> None:
        if self._reading:
            self._changes += 1
            self._changed[name] = self._changes
            if len(self._changed) > self.options.max_entries + BATCH:
                self._all_changed = max(self._all_changed, self._changed.popitem(last=False)[1])

    def _empty(self) -> None:
        if self._entries:
            self.figures.emptied += 1
        self._changes += 1
        self._all_changed = self._changes
        self._changed.clear()
        self._given.clear()
        self._others.clear()
        self._again.clear()
        self._again_bytes = 0
        self._served.clear()
        self.kept.clear()


class _Given(NamedTuple):
    """What readings of an entry gave: the last one's print (``None``: nothing to keep), since which change all have
    given that, and when the last one ended."""

    print: tuple[object, ...] | None
    since: int
    last: int


def _print(entry: Entry) -> tuple[object, ...]:
    """What tells two readings apart that gave different values, without holding these."""
    value = entry.value
    kind = type(value)
    if kind in _TOLD_BY_TEXT:
        value = repr(value)
    return entry.name, entry.how, kind, value if kind in (bool, int) else hash(value)


def _with_common_keys(value: Any, keys: dict[str, str]) -> Any:
    """``value``, of dicts and lists, with one object for all keys that are the same text: marshal then makes each of
    them once, which takes a fifth less for a list of records."""
    if type(value) is dict:
        return {
            keys.setdefault(key, key) if type(key) is str else key: _with_common_keys(one, keys)
            for key, one in value.items()
        }
    if type(value) is list:
        return [_with_common_keys(one, keys) for one in value]
    return value


class _Setting:
    """What ``set`` is writing: the change at which that ended, beside which nothing else happened."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = _NOT_ENDED


class _Began:
    """When a reading began: after which change, when, and by which stream."""

    __slots__ = ("alone", "changes", "generation", "sent")

    def __init__(self, changes: int, sent: float, generation: int, alone: bool) -> None:
        self.changes = changes
        self.sent = sent
        self.generation = generation
        self.alone = alone


_found: Final[dict[tuple[object, ...], Near]] = {}


def near(
    place: str, prefix: str, options: CacheOptions, naming: tuple[object, ...], figures: Alias, stream: ChangeStream
) -> Near:
    """This process's near cache for a place, a prefix and these options, which say what may be read and how much may be
    kept. ``naming`` tells who makes stored keys alike; hits are counted in ``figures``."""
    assert options.near is not None
    key = (place, prefix, naming, figures.name, options.near, options.pickle, options.sign)
    found = _found.get(key)
    return found if found is not None else _found.setdefault(key, Near(options.near, stream, figures))


def near_of(alias: str) -> Near | None:
    """What this process keeps of an alias; ``None`` if it has not read it, or keeps nothing. Opens nothing."""
    found = [one for one in list(_found.values()) if one.alias is not None and one.alias.name == alias]
    return max(found, key=lambda one: one.stream.last_used, default=None)


_told: Final[dict[str, int]] = {"near_hits": 0, "near_removed": 0, "near_renewed": 0, "near_emptied": 0}
_telling = threading.Lock()


def _tally() -> None:
    # Not waited for: it is for figures, and in a forked child nobody may give it back.
    if not _telling.acquire(blocking=False):
        return
    try:
        figures = [one.figures for one in list(_found.values())]
        for name, before in _told.items():
            number = sum(getattr(one, name.removeprefix("near_")) for one in figures)
            if number > before:
                counters.tallied(name, number - before)
                _told[name] = number
    finally:
        _telling.release()


def _after_fork() -> None:
    global _telling
    _telling = threading.Lock()
    for one in _found.values():
        one.begin_anew()


def _settings_changed(*, setting: str, **_: object) -> None:
    """What is of other settings is not read any more. The next reading opens what it needs."""
    if setting in ("GOSCOPE", "CACHES", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        stop_all()


counters.tally_by(_tally)
at_fork(child=_after_fork)
setting_changed.connect(_settings_changed, dispatch_uid="goscope_django.cache.near")
