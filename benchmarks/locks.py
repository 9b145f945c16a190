"""Locks: uncontended acquisition and release against the same two commands by hand."""

from __future__ import annotations

from typing import Any

from pymongo import MongoClient

from benchmarks.harness import Contender, Goal, Report
from benchmarks.raw import RawLock
from goscope_django import runtime


def run(report: Report, client: MongoClient[dict[str, Any]], database: str) -> None:
    """Acquire and release, at majority concern on both sides."""
    raw = RawLock(client, database, w="majority")
    provider = runtime.adapter().lock

    def pair() -> None:
        handle = provider.acquire("bench", 30_000)
        assert handle is not None
        handle.release()

    report.section("Lock, uncontended, majority (both)")
    report.compare(
        "acquire + release",
        [
            Contender("raw pymongo", lambda _: lambda: raw.pair("bench")),
            Contender("goscope_django", lambda _: pair),
        ],
        Goal("goscope_django", 0.95, 1.25),
    )
