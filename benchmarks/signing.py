"""What ``SIGN`` and ``COMPRESS`` cost: aliases with them against one without, on the same server, w:1.

What they add is work of this process alone, so its CPU's time is printed too: other processes change it little.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import bson
from django.core.cache import caches

from benchmarks.cache import DICT, OURS, SMALL
from benchmarks.harness import Contender, Goal, Operation, Report
from goscope_django import runtime
from goscope_django.mongodb.codec import CODEC_OPTIONS, ENTRY_OPTIONS

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


def best(operation: Operation, seconds: float = 0.02, times: int = 15) -> float:
    """Microseconds of CPU that it takes, when nothing comes between."""
    found, number = float("inf"), 1
    for _ in range(times):
        began = time.process_time()
        for _ in range(number):
            operation()
        took = time.process_time() - began
        found = min(found, took / number * 1e6) if took else found
        number = max(number, int(number * seconds / max(took, seconds / 100)))
    return found


def costs(report: Report, values: dict[str, Any]) -> None:
    """CPU to make the bytes that are sent of a value, and a value of those that came back."""
    report.figures("Signed and compressed values: CPU of this process, encoding and decoding BSON included")
    codec, key = runtime.codec().of("go_goscope_cache"), "cache::1:k"
    codecs = {
        "plain": codec.sealing(),
        "signed": codec.sealing(every=True),
        "compressed": codec.sealing(min_bytes=8_192),
        "signed and compressed": codec.sealing(every=True, min_bytes=8_192),
    }
    for name, value in values.items():
        for kind, one in codecs.items():

            def write(one: Any = one, value: Any = value) -> bytes:
                return bson.encode({"value": one.pack(key, value)}, codec_options=CODEC_OPTIONS)

            data = write()

            def read(one: Any = one, data: bytes = data) -> object:
                return one.decode(key, bson.decode(data, ENTRY_OPTIONS)["value"])

            report.figure(f"write {name}", kind, best(write), "us")
            report.figure(f"read {name}", kind, best(read), "us")
            report.figure(f"size {name}", kind, len(data), "bytes")


def run(report: Report) -> None:
    """All rows."""
    every = {OURS: caches["default"], **{name: caches[name] for name in OPTIONS}}
    values = {"100 B": SMALL, "10 KB dict": DICT, "100 KB page": page(100_000)}
    costs(report, {"integer": 5, **values})
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
        key, goal = name.replace(" ", "-"), None if name == "100 KB page" else Goal("signed", 0.8, 0.9)
        compare(f"get {name}", lambda cache, key=key: lambda: cache.get(key), goal)  # type: ignore[misc]
        compare(
            f"set {name}",
            lambda cache, key=key, value=value: lambda: cache.set(key, value, 300),  # type: ignore[misc]
            goal,
        )
    compare("incr", lambda cache: lambda: cache.incr("count"), Goal("signed", 0.35, 0.5))
