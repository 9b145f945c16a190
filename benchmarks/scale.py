"""A million entries: reads and writes beside a thousand, and what works on many keys."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

from django.core.cache import caches

from benchmarks.harness import Contender, Goal, Report

ENTRIES = 1_000_000


def _fill(cache: Any, number: int, batch: int = 20_000) -> None:
    for start in range(0, number, batch):
        cache.set_many({f"p{index % 10}:{index:07}": index for index in range(start, start + batch)}, None)


def run(report: Report, entries: int = ENTRIES) -> None:
    """``few`` and ``many`` are two aliases on two databases of one server."""
    few, many = caches["few"], caches["many"]
    _fill(few, 1_000, 1_000)
    started = time.perf_counter()
    _fill(many, entries)
    print(f"\n{entries:,} entries set in {time.perf_counter() - started:.0f} s")
    report.section(f"Cache at {entries:,} entries, as a share of 1,000")
    both = {"1,000 entries": few, f"{entries:,} entries": many}
    for title, work in (
        ("get", lambda cache: lambda: cache.get("p0:0000500")),
        ("set", lambda cache: lambda: cache.set("p0:0000500", 1, None)),
    ):
        report.compare(
            title,
            [Contender(name, lambda _, cache=cache: work(cache)) for name, cache in both.items()],  # type: ignore[misc]
            Goal(f"{entries:,} entries", 0.9, 1.0),
        )
    print()
    tracemalloc.start()
    for title, operation in (
        ("iter_keys('p1*'), streamed", lambda: sum(1 for _ in many.iter_keys("p1*"))),
        ("keys('p1*')", lambda: len(many.keys("p1*"))),
        ("delete_pattern('p1*')", lambda: many.delete_pattern("p1*")),
        ("clear()", lambda: many.clear()),
    ):
        tracemalloc.reset_peak()
        started = time.perf_counter()
        number = operation()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        print(f"{title:<30} {number if number is not None else '':>9} {time.perf_counter() - started:>7.2f} s   peak {peak:.1f} MB")
    tracemalloc.stop()
