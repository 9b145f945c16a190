"""What flows, codec and the making of keys cost, in microseconds, without a server."""

from __future__ import annotations

import statistics
import time
from typing import Any

from django.core.cache import caches

from benchmarks.cache import DICT, SMALL
from goscope_django import runtime
from goscope_django.core.flow import Flow, ask, run
from goscope_django.mongodb.document.clock import Clock


def _flow(clock: Clock | None) -> Flow[Any]:
    return (yield from ask("collection", "find_one", {}))


def microseconds(operation: Any, number: int = 20_000) -> float:
    """Median cost of one call."""
    samples = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(number):
            operation()
        samples.append((time.perf_counter() - started) / number * 1e6)
    return statistics.median(samples)


def report() -> None:
    """Print one line for each part."""
    codec = runtime.codec()
    cache: Any = caches["default"]
    cache.get("warm")
    plain = {"value": DICT}
    print("\nPrice of the abstraction (microseconds a call, no server)\n")
    for name, operation in (
        ("a flow of one command, beside its command", lambda: run(_flow(None), lambda command: None)),
        ("key making", lambda: cache._keys.stored("some:key", None)),
        ("settings looked at", cache._backing.resolve),
        ("encode 100 B", lambda: codec.encode("key", SMALL)),
        ("decode 100 B", lambda: codec.decode("key", SMALL)),
    ):
        print(f"{name:<44} {microseconds(operation):>8.2f}")
    print(f"{'encode 10 KB dict':<44} {microseconds(lambda: codec.encode('key', DICT), 500):>8.2f}")
    print(f"{'decode 10 KB dict':<44} {microseconds(lambda: codec.decode('key', plain['value']), 500):>8.2f}")
