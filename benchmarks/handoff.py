"""How fast a lock goes from its holder to the next waiter, in one process and between processes.

Eight callers wait. Each takes the lock once, holds it for about ten milliseconds and releases it. Measured is the time
from the moment the holder begins to release until the next caller has the lock, on the machine's monotonic clock, which
all processes share. If the lock ever had two holders, the benchmark would stop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.commands import Counter, processes
from benchmarks.harness import Report, percentile
from goscope_django.locks import lock

OURS = "goscope_django"
HOLD = (0.005, 0.015)
"""Seconds, at random: a fixed time would keep step with whoever polls at a fixed interval."""
WAITERS = 8
PROCESSES = 4
Span = tuple[float, float, int]
"""When a holder had the lock, when it began to give it back, and its place: the process's number."""


def _lock(contender: str, port: int | None, key: str) -> contextlib.AbstractContextManager[Any]:
    if contender == OURS:
        return lock(key, 30)
    import redis

    sleep = float(contender.rpartition(" ")[2])
    client = _clients.setdefault(threading.get_ident(), redis.Redis(port=port or 0))
    found: contextlib.AbstractContextManager[Any] = client.lock(key, timeout=30, sleep=sleep)
    return found


_clients: dict[int, Any] = {}


def _queue(contender: str, port: int | None, key: str, number: int, place: int) -> Callable[[], list[Span]]:
    """Let ``number`` threads wait for the lock; what is returned waits for them and tells when they had it."""
    spans: list[Span] = []

    def wait() -> None:
        with _lock(contender, port, key):
            got = time.monotonic()
            time.sleep(random.uniform(*HOLD))
            spans.append((got, time.monotonic(), place))

    threads = [threading.Thread(target=wait) for _ in range(number)]
    for thread in threads:
        thread.start()

    def join() -> list[Span]:
        for thread in threads:
            thread.join()
        _clients.clear()
        return spans

    return join


def _work(connection: Connection, counter: Counter) -> None:
    while True:
        contender, port, key, number, place = connection.recv()
        join = _queue(contender, port, key, number, place)
        connection.send("waiting")
        began, ended = connection.recv()
        spans = join()
        sent = sum(1 for moment, _ in list(counter.sent) if began <= moment < ended)
        connection.send((spans, sent))


class _Run:
    def __init__(self, port: int | None, workers: list[Connection], report: Report) -> None:
        self.port = port
        self.workers = workers
        self.report = report

    def chain(self, contender: str, places: int, waiters: int, held: float) -> tuple[list[Span], list[int]]:
        """Who had the lock in turn, this process first, and what each process sent in the ``held`` seconds before.

        With no ``places`` the waiters are threads of this process.
        """
        key, workers = f"handoff:{uuid.uuid4().hex}", self.workers[:places]
        join: Callable[[], list[Span]] | None = None
        with _lock(contender, self.port, key):
            if not workers:
                join = _queue(contender, self.port, key, waiters, -1)
            for place, worker in enumerate(workers):
                worker.send((contender, self.port, key, waiters // places, place))
            for worker in workers:
                worker.recv()
            time.sleep(0.15 + self.report.random.uniform(0, 0.1))  # until all stand in line, and out of step
            began = time.monotonic()
            time.sleep(held)
            released = time.monotonic()
        spans, sent = join() if join else [], []
        for worker in workers:
            worker.send((began, released))
        for worker in workers:
            some, number = worker.recv()
            spans += some
            sent.append(number)
        spans = [(began, released, -1), *sorted(spans)]
        assert len(spans) == waiters + 1
        return spans, sent

    def requests(self) -> int:
        """How many commands Redis has carried out."""
        if self.port is None:
            return 0
        import redis

        told: Any = redis.Redis(port=self.port).info("stats")
        return int(told["total_commands_processed"])

    def handoffs(self, contender: str, places: int, chains: int, seen: list[tuple[float, bool]]) -> None:
        """Seconds of each hand-off, and whether it went from one process to another."""
        for _ in range(chains):
            spans, _ = self.chain(contender, places, WAITERS, 0)
            for before, after in itertools.pairwise(spans):
                assert after[0] >= before[1], f"{contender}: two held the lock at a time"
                seen.append((after[0] - before[1], after[2] != before[2]))

    def told(self, title: str, seen: dict[str, list[float]]) -> None:
        medians = {}
        for contender, times in seen.items():
            ours = contender == OURS
            medians[contender] = statistics.median(times)
            self.report.figure(
                f"{title}, median", contender, medians[contender] * 1e3, "ms", most=25.0 if ours else None
            )
            self.report.figure(
                f"{title}, p99", contender, percentile(times, 0.99) / 1e3, "ms", most=75.0 if ours else None
            )
        for contender, median in medians.items():
            if contender != OURS:
                self.report.figure(f"{title}, ours is faster by", contender, median / medians[OURS], "times")


def run(report: Report, url: str, port: int | None, *, quick: bool) -> None:
    """All rows of the hand-off; ``port`` is Redis's, if there is one."""
    contenders = [OURS]
    if port is not None and importlib.util.find_spec("redis"):
        contenders += ["redis-py Lock, sleep 0.1", "redis-py Lock, sleep 0.01"]
    report.figures(f"Lock hand-off, {WAITERS} waiters that hold it for 5 to 15 ms each, majority")
    with processes(PROCESSES, url, _work) as workers:
        one = _Run(port, workers, report)
        layouts = {f"{WAITERS} threads": 0, f"{PROCESSES} processes of {WAITERS // PROCESSES}": PROCESSES}
        for places in layouts.values():  # warm up
            for contender in contenders:
                one.chain(contender, places, PROCESSES, 0)
        for title, places in layouts.items():
            seen: dict[str, list[tuple[float, bool]]] = {contender: [] for contender in contenders}
            for _ in range(1 if quick else 4):
                for contender in report.random.sample(contenders, len(contenders)):
                    one.handoffs(contender, places, 1 if contender.endswith(" 0.1") else 5, seen[contender])
            one.told(title, {name: [seconds for seconds, _ in some] for name, some in seen.items()})
            if places:
                crossed = {name: [seconds for seconds, other in some if other] for name, some in seen.items()}
                one.told("  from process to process", crossed)
        held = 2.0 if quick else 3.0
        for title, places in ((f"held, {WAITERS} threads of another process", 1), (f"held, {PROCESSES} processes", 4)):
            for contender in contenders:
                before = one.requests()
                _, sent = one.chain(contender, places, WAITERS, held)
                ours = contender == OURS
                # The hand-offs that follow are among Redis's requests: a few beside those of seconds of waiting.
                number = max(sent) if ours else (one.requests() - before) / places
                most = 40.0 if ours else None
                report.figure(f"{title}: commands", contender, number / held, "a s and process", most=most)
