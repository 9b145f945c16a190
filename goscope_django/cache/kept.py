"""What one process keeps of a cache: a bounded number of entries and bytes, and which of them goes first.

The policy is S3-FIFO (Yang et al., SOSP 2023). A new entry goes into a small queue, a tenth of the room. Who leaves it
without having been used goes for good, so a walk through many keys, each read once, can't flush what is used. Who comes
back soon after that goes into the main queue at once. Rules of this file:

* A use only adds to a number in the entry: no lock, nothing is moved. Everything else is done under the owner's lock.
* ``docs/explanation/performance.md`` has what this keeps, beside plain LRU and a library.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

_MOST_USES: Final = 3
_SMALL: Final = 0.1


class Entry:
    """One entry. ``how`` says what ``value`` is, ``until`` (by ``tick``) when it ends, ``size`` its bytes.

    ``uses`` is how often it served, ``paid`` how many of these have paid for reading it again.

    ``key`` is the key by which callers ask for it, ``None`` as long as nobody has, ``row`` what counts its hits, and
    ``counted`` the bytes of one.
    """

    __slots__ = ("counted", "full", "how", "key", "main", "name", "paid", "row", "size", "until", "uses", "value")

    def __init__(self, full: str, name: Any, how: int, value: Any, size: int, until: float) -> None:
        self.full = full
        self.name = name
        self.how = how
        self.value = value
        self.size = size
        self.until = until
        self.uses = 0
        self.paid = 0
        self.main = False
        self.key: str | None = None
        self.row: list[int] = []
        self.counted = 0


class Kept:
    """Entries by their stored key, and by the key that callers know (``named``). Both may be looked into without a
    lock."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.evicted = 0
        self.entries: dict[str, Entry] = {}
        self.named: dict[str, Entry] = {}
        self.clear()

    def clear(self) -> None:
        """Remove everything."""
        # Not a new dict: whoever looks without a lock must see that it is empty.
        self.entries.clear()
        self.named.clear()
        self._small: OrderedDict[str, Entry] = OrderedDict()
        self._main: OrderedDict[str, Entry] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self.bytes = 0
        self._small_bytes = 0

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, entry: Entry) -> None:
        """Keep ``entry`` in place of the one of its key. One that is larger than a tenth of the room is not kept."""
        before = self.remove(entry.full)
        if entry.size > self.max_bytes * _SMALL:
            return
        if before is not None:
            entry.uses, entry.paid, entry.main = before.uses, before.paid, before.main
        elif entry.full in self._gone:
            del self._gone[entry.full]
            entry.main = True
        self._enter(entry)
        self.entries[entry.full] = entry
        self.bytes += entry.size
        while len(self.entries) > self.max_entries or self.bytes > self.max_bytes:
            self._evict()

    def call(self, entry: Entry, key: str, row: list[int], counted: int) -> None:
        """From now on ``entry`` is found by ``key`` as well, if it is still kept."""
        if entry.key is None and self.entries.get(entry.full) is entry:
            entry.key, entry.row, entry.counted = key, row, counted
            self.named[key] = entry

    def _enter(self, entry: Entry) -> None:
        if entry.main:
            self._main[entry.full] = entry
        else:
            self._small[entry.full] = entry
            self._small_bytes += entry.size

    def remove(self, full: str) -> Entry | None:
        """Remove the entry of this key; what it was."""
        entry = self.entries.pop(full, None)
        if entry is not None:
            self._forget(entry)
            self._leave(entry)
        return entry

    def _forget(self, entry: Entry) -> None:
        self.bytes -= entry.size
        if entry.key is not None:
            self.named.pop(entry.key, None)

    def _leave(self, entry: Entry) -> None:
        if entry.main:
            del self._main[entry.full]
        else:
            del self._small[entry.full]
            self._small_bytes -= entry.size

    def _evict(self) -> None:
        few = len(self._small) <= self.max_entries * _SMALL and self._small_bytes <= self.max_bytes * _SMALL
        if self._main and (few or not self._small):
            self._evict_main()
        else:
            self._evict_small()

    def _evict_small(self) -> None:
        while self._small:
            entry = next(iter(self._small.values()))
            self._leave(entry)
            if entry.uses > 0:
                entry.main, entry.uses, entry.paid = True, 0, 0
                self._enter(entry)
                continue
            self._gone[entry.full] = None
            if len(self._gone) > self.max_entries:
                self._gone.popitem(last=False)
            self._drop(entry)
            return
        self._evict_main()

    def _evict_main(self) -> None:
        while True:
            entry = next(iter(self._main.values()))
            if entry.uses > 0:
                entry.uses, entry.paid = min(entry.uses, _MOST_USES) - 1, 0
                self._main.move_to_end(entry.full)
                continue
            self._leave(entry)
            self._drop(entry)
            return

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry.full]
        self._forget(entry)
        self.evicted += 1
