"""Single flight: how long followers wait once the leader has its result, and what they send until then.

The wait is counted from the moment at which the leader's function returned, so it includes the publication (a write
at majority concern), to the moment at which the follower's call returned. The leader takes a random time, so that no
follower can learn how long to wait.
"""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.commands import Counter, processes
from benchmarks.harness import Report, percentile
from goscope_django.core.flow import carry_out
from goscope_django.decorators import single_flight
from goscope_django.http import requests

OURS = "goscope_django"
PROCESSES = 4
ANSWER = {"rows": [{"name": f"row {number}", "total": number * 1.5} for number in range(20)]}
_ended: list[float] = []
_begun = threading.Event()


@single_flight(key=lambda key, seconds: str(key), timeout=5, blocking_timeout=10)
def report_of(key: str, seconds: float) -> dict[str, Any]:
    """What is expensive."""
    _begun.set()
    time.sleep(seconds)
    _ended.append(time.monotonic())
    return ANSWER


def _follow(key: str, number: int) -> Callable[[], list[float]]:
    ends: list[float] = []

    def call() -> None:
        assert report_of(key, 0.0) == ANSWER
        ends.append(time.monotonic())

    threads = [threading.Thread(target=call) for _ in range(number)]
    for thread in threads:
        thread.start()

    def join() -> list[float]:
        for thread in threads:
            thread.join()
        return ends

    return join


def _work(connection: Connection, counter: Counter) -> None:
    while True:
        role, key, value = connection.recv()
        _ended.clear()
        _begun.clear()
        began, sent = time.monotonic(), len(counter.sent)
        if role == "lead":
            leading = threading.Thread(target=report_of, args=(key, value))
            leading.start()
            _begun.wait()
            connection.send("leading")
            leading.join()
            connection.send(_ended[0])
        else:
            ends = _follow(key, value)()
            assert not _ended, "a follower ran the function"
            connection.send((began, ends, len(counter.sent) - sent))


def _flight(workers: list[Connection], threads: int, seconds: float) -> tuple[list[float], list[float]]:
    """Of one flight: the wait of each follower, in seconds, and commands of each process for each 100 ms waited.

    The command by which a process enters the flight is not counted: who would have led sends it as well.
    """
    key = uuid.uuid4().hex
    leader, followers = workers[0], workers[1:]
    leader.send(("lead", key, seconds))
    leader.recv()
    for one in followers:
        one.send(("follow", key, threads))
    published = leader.recv()
    waits, rates = [], []
    for one in followers:
        began, ends, sent = one.recv()
        waits += [end - published for end in ends]
        rates.append((sent - 1) / max(1.0, (max(ends) - began) / 0.1))
    return waits, rates


def _requests(number: int) -> list[Any]:
    """Requests as a browser sends them, with a session, three cookies and twenty headers."""
    from django.contrib.sessions.backends.signed_cookies import SessionStore
    from django.test import RequestFactory

    headers = {f"HTTP_X_HEADER_{one}": "x" * 20 for one in range(18)}
    made: list[Any] = []
    for _ in range(number):
        one: Any = RequestFactory().get("/a?x=1", HTTP_COOKIE="s=abc; _ga=1; cart=2", HTTP_USER_AGENT="m", **headers)
        one.session, one.tenant = SessionStore("x"), "a"
        assert one.COOKIES
        made.append(one)
    return made


def _look(request: Any) -> None:
    """What a view reads: a cookie, two headers, the address and an attribute."""
    _ = request.COOKIES["cart"], request.headers["User-Agent"], request.headers.get("X-Header-1")
    _ = request.META["REMOTE_ADDR"], request.tenant


def _lead(request: Any) -> None:
    trace = requests.watch(request)
    _look(request)
    used = trace.end()
    carry_out(requests.read(request, "flight", used.reads, frozenset(), used))


def _recorded(report: Report, *, quick: bool) -> None:
    """What recorded reads cost: comparing on a hit, and noting while a leader's view runs."""
    report.figures("Single flight, recorded reads of a view that looks at five things, in one process")
    number = 500 if quick else 5_000
    reads = ("a:tenant", "c:cart", "m:HTTP_USER_AGENT", "m:HTTP_X_HEADER_1", "m:REMOTE_ADDR")

    def median(step: Callable[[Any], object]) -> float:
        times = []
        for one in _requests(number):
            began = time.perf_counter()
            step(one)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e6

    hit = median(lambda one: carry_out(requests.read(one, "flight", reads, frozenset())))
    report.figure("a hit: comparing what the leader read", OURS, hit, "us", reach=20.0, most=100.0)
    report.figure("a leader: noting and hashing", OURS, median(_lead) - median(_look), "us")


def run(report: Report, url: str, *, quick: bool) -> None:
    """All rows of single flight."""
    _recorded(report, quick=quick)
    report.figures(f"Single flight, a leader and followers in {PROCESSES - 1} other processes, majority")
    with processes(PROCESSES, url, _work) as workers:
        for worker in workers:
            worker.send(("lead", uuid.uuid4().hex, 0.0))  # warm up
            worker.recv()
            worker.recv()
        for threads in (1, 8):
            waits: list[float] = []
            rates: list[float] = []
            for _ in range(6 if quick else 16):
                waited, sent = _flight(workers, threads, report.random.uniform(0.2, 0.9))
                waits += waited
                rates += sent
            title = f"{threads} follower{'s' if threads > 1 else ''} a process"
            wait, rate = statistics.median(waits) * 1e3, statistics.median(rates)
            report.figure(f"{title}: wait, median", OURS, wait, "ms", most=150.0, reach=20.0)
            report.figure(f"{title}: wait, p99", OURS, percentile(waits, 0.99) / 1e3, "ms")
            each = "per 100 ms waited"
            report.figure(f"{title}: commands of a follower", OURS, rate / threads, each, most=1.0, reach=1 / threads)
            report.figure(f"{title}: commands of a process", OURS, rate, each)
