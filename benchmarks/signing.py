"""What ``SIGN`` and ``COMPRESS`` cost: aliases with them against one without, on the same server, w:1."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from django.core.cache import caches

from benchmarks.cache import DICT, OURS, SMALL
from benchmarks.harness import Contender, Goal, Operation, Report

OPTIONS: dict[str, dict[str, Any]] = {
    "signed": {"SIGN": True},
    "compressed": {"COMPRESS": {"MIN_BYTES": 8_192}},
    "signed and compressed": {"SIGN": True, "COMPRESS": {"MIN_BYTES": 8_192}},
}


def settings_for(location: str) -> dict[str, Any]:
    """Entries for ``CACHES``."""
    backend = "goscope_django.cache.MongoDBCache"
    return {
        name: {"BACKEND": backend, "LOCATION": location, "KEY_PREFIX": name.replace(" ", "-"), "OPTIONS": options}
        for name, options in OPTIONS.items()
    }


def page(length: int) -> str:
    """HTML as a template makes it."""
    dice, rows = random.Random(1), []
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(3, 9))) for _ in range(800)]
    while sum(map(len, rows)) < length:
        rows.append(f'<li class="item"><a href="/p/{dice.randint(1, 9999)}">{" ".join(dice.choices(words, k=5))}</a>\n')
    return "".join(rows)


def run(report: Report) -> None:
    """All rows."""
    every = {OURS: caches["default"], **{name: caches[name] for name in OPTIONS}}
    values = {"100 B": SMALL, "10 KB dict": DICT, "100 KB page": page(100_000)}
    for cache in every.values():
        cache.set("count", 1)
        for name, value in values.items():
            cache.set(name.replace(" ", "-"), value)

    def compare(title: str, work: Callable[[Any], Operation], goal: Goal | None = None) -> None:
        report.compare(
            title,
            [Contender(name, lambda _, cache=cache: work(cache)) for name, cache in every.items()],  # type: ignore[misc]
            goal,
        )

    report.section("Cache, signed and compressed, 1 thread, w:1")
    for name, value in values.items():
        key = name.replace(" ", "-")
        compare(f"get {name}", lambda cache, key=key: lambda: cache.get(key), Goal("signed", 0.8, 0.9))  # type: ignore[misc]
        compare(
            f"set {name}",
            lambda cache, key=key, value=value: lambda: cache.set(key, value, 300),  # type: ignore[misc]
            Goal("signed", 0.8, 0.9),
        )
    compare("incr", lambda cache: lambda: cache.incr("count"), Goal("signed", 0.4, 0.5))
