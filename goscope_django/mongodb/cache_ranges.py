"""Many cache entries at once: ranges of keys, pages, counts and culling.

Rule of this file: a command is bounded in what it brings back, and keys are found by ranges over the index alone.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from typing import Any, Final

from goscope_django.arguments import MAX_KEY_BYTES
from goscope_django.mongodb.execute import CACHE
from goscope_django.mongodb.expressions import Clock, prefix_range
from goscope_django.mongodb.flow import Flow, ask

BATCH: Final = 1_000
"""Entries for one command of many."""
LONG_BATCH: Final = 150
"""The same where keys have as much as ``MAX_KEY_BYTES``."""


def batches(items: Sequence[Any], size: int = BATCH) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def key_batches(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """A thousand keys at a time, or as many very long ones as fit in a command and its answer, each one document."""
    for batch in batches(keys):
        if 4 * sum(map(len, batch)) <= MAX_KEY_BYTES * LONG_BATCH:  # a character takes up to four bytes
            yield batch
        else:
            yield from batches(batch, LONG_BATCH)


class CacheRanges:
    """Operations on many stored keys, as flows."""

    def delete_many(self, clock: Clock, keys: Sequence[str]) -> Flow[int]:
        removed = 0
        for batch in key_batches(keys):
            result = yield from ask(CACHE, "delete_many", {"key": {"$in": batch}})
            removed += result.deleted_count
        return removed

    def delete_range(self, clock: Clock, prefix: str, regex: str | None = None) -> Flow[int]:
        """One command: remove what begins with ``prefix`` (and matches ``regex``, for finer cuts of ours)."""
        test: dict[str, Any] = {"key": prefix_range(prefix)}
        if regex is not None:
            test["key"]["$regex"] = regex
        removed = yield from ask(CACHE, "delete_many", test)
        return int(removed.deleted_count)

    def expired(self, clock: Clock, prefix: str, limit: int = BATCH) -> Flow[frozenset[str] | None]:
        """Keys under ``prefix`` that have expired but still stand there; ``None`` if there are more than ``limit``."""
        test = {"key": prefix_range(prefix), **clock.expired_filter("expiresAt")}
        fields = {"_id": False, "key": True}
        found = yield from ask(CACHE, "find", test, fields, limit=limit + 1, batch_size=limit + 2)
        return None if len(found) > limit else frozenset(one["key"] for one in found)

    def page(
        self, clock: Clock, prefix: str, after: str | None, expired: frozenset[str] | None
    ) -> Flow[builtins.list[str]]:
        """The next thousand keys under ``prefix``, by key. Served by the index alone where ``expired`` is known."""
        test: dict[str, Any] = {"key": prefix_range(prefix, after)}
        if expired is None:
            test["$expr"] = clock.live()
        found = yield from ask(
            CACHE,
            "find",
            test,
            {"_id": False, "key": True},
            sort=[("key", 1)],
            limit=BATCH,
            batch_size=BATCH + 1,
        )
        return [one["key"] for one in found]

    def keys(self, clock: Clock, prefix: str) -> Flow[builtins.list[str]]:
        """All live keys under ``prefix``: a page for each thousand, and one command before them."""
        expired = yield from self.expired(clock, prefix)
        keys: builtins.list[str] = []
        after = None
        while page := (yield from self.page(clock, prefix, after, expired)):
            after = page[-1]
            keys += [key for key in page if not expired or key not in expired]
            if len(page) < BATCH:
                break
        return keys

    def count(self, clock: Clock, prefix: str) -> Flow[int]:
        """Entries under ``prefix``, expired ones that still stand there included."""
        return int((yield from ask(CACHE, "count_documents", {"key": prefix_range(prefix)})))

    def cull(self, clock: Clock, prefix: str, number: int) -> Flow[int]:
        """Remove ``number`` entries under ``prefix``, those that expire soonest first, in bounded batches.

        Those that somebody else removes in the same moment count: they made room as well.
        """
        removed = 0
        for timed in ({"$type": "date"}, None):
            while removed < number:
                test = {"key": prefix_range(prefix), "expiresAt": timed}
                limit = min(BATCH, number - removed)
                fields = {"_id": False, "key": True}
                found = yield from ask(
                    CACHE, "find", test, fields, sort=[("expiresAt", 1)], limit=limit, batch_size=limit + 1
                )
                if not found:
                    break
                yield from self.delete_many(clock, [one["key"] for one in found])
                removed += len(found)
        return removed
