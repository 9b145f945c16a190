"""A call through a closed circuit, in microseconds and commands."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from benchmarks.commands import counted, number_of
from benchmarks.harness import Report
from goscope_django.circuits import CircuitBreaker

OURS = "goscope_django"
CALLS = 10_000


def _nothing() -> None:
    pass


def _microseconds(operation: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in repeat(None, CALLS):
        operation()
    return (time.perf_counter() - started) / CALLS * 1e6


def _contenders() -> dict[str, Callable[[], object]]:
    breaker = CircuitBreaker("bench")
    decorated = breaker(_nothing)

    def block() -> None:
        with breaker:
            pass

    found: dict[str, Callable[[], object]] = {
        "bare function": _nothing,
        f"{OURS}, call": lambda: breaker.call(_nothing),
        f"{OURS}, decorated": decorated,
        f"{OURS}, with": block,
    }
    if importlib.util.find_spec("pybreaker"):
        import pybreaker

        peer: Any = pybreaker.CircuitBreaker()
        found["pybreaker, in memory, call"] = lambda: peer.call(_nothing)
    else:
        print("pybreaker is not installed: it is left out")
    return found


def run(report: Report, url: str) -> None:
    """All rows of the breaker."""
    report.figures("Circuit breaker, closed")
    contenders = _contenders()
    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for operation in contenders.values():
        operation()
    for _ in range(report.rounds * 3):
        for name in report.random.sample(list(contenders), len(contenders)):
            seen[name].append(_microseconds(contenders[name]))
    for name, some in seen.items():
        asked = name.startswith(OURS)
        median = statistics.median(some)
        report.figure("a call", name, median, "microseconds", most=3.0 if asked else None, reach=1.5 if asked else None)
    with counted(url) as counter:
        breaker = CircuitBreaker("bench:counted")

        def many(pause: float) -> None:
            for _ in range(1_000):
                breaker.call(_nothing)
                if pause:
                    time.sleep(pause)

        report.figure(
            "the first call in a process", OURS, number_of(counter, lambda: breaker.call(_nothing)), "commands"
        )
        # The circuits in use are read together once a second, by whichever call comes then: not in a few milliseconds.
        report.figure("1,000 calls in a row", OURS, number_of(counter, lambda: many(0)), "commands", most=0, reach=0)
        began, before = time.monotonic(), len(counter.sent)
        while time.monotonic() < began + 3:
            many(0)
        report.figure("calls without pause for 3 seconds", OURS, (len(counter.sent) - before) / 3, "commands a s")
        took, sent = time.monotonic(), number_of(counter, lambda: many(0.0009))
        took = time.monotonic() - took
        report.figure(
            f"1,000 calls spread over {took:.1f} seconds", OURS, sent, "commands", most=10, reach=round(took + 1)
        )
