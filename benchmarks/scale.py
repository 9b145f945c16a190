"""A million cache entries: reads and writes compared with a thousand entries, and operations on many keys."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from django.core.cache import caches

from benchmarks.harness import Contender, Goal, Report

ENTRIES = 1_000_000


def _fill(cache: Any, number: int, batch: int = 20_000) -> None:
    for start in range(0, number, batch):
        cache.set_many({f"p{index % 10}:{index:07}": index for index in range(start, start + batch)}, None)


def _contender(name: str, cache: Any, work: Callable[[Any], object]) -> Contender:
    return Contender(name, lambda _: lambda: work(cache))


def run(report: Report, entries: int = ENTRIES) -> None:
    """``few`` and ``many`` are two aliases on two databases of one server."""
    few: Any = caches["few"]
    many: Any = caches["many"]
    _fill(few, 1_000, 1_000)
    started = time.perf_counter()
    _fill(many, entries)
    print(f"\n{entries:,} entries set in {time.perf_counter() - started:.0f} s")
    report.section(f"Cache at {entries:,} entries, as a share of 1,000")
    both = {"1,000 entries": few, f"{entries:,} entries": many}
    for title, work in (
        ("get", lambda cache: cache.get("p0:0000500")),
        ("set", lambda cache: cache.set("p0:0000500", 1, None)),
    ):
        report.compare(
            title,
            [_contender(name, cache, work) for name, cache in both.items()],
            Goal(f"{entries:,} entries", 0.9, 1.0),
        )
    print()
    tracemalloc.start()
    for title, operation in (
        ("iter_keys('p1*'), streamed", lambda: sum(1 for _ in many.iter_keys("p1*"))),
        ("keys('p1*')", lambda: len(many.keys("p1*"))),
        ("delete_pattern('p1*')", lambda: many.delete_pattern("p1*")),
        ("clear()", many.clear),
    ):
        tracemalloc.reset_peak()
        started = time.perf_counter()
        number = operation()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        took, shown = time.perf_counter() - started, "" if number is None else number
        print(f"{title:<30} {shown:>9} {took:>7.2f} s   peak {peak:.1f} MB")
    tracemalloc.stop()
