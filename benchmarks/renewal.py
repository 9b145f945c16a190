"""A thousand locks that one process holds and keeps alive: threads, commands, and its share of a core."""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.commands import Counter, processes
from benchmarks.harness import Report
from goscope_django.locks import lock

LOCKS = 1_000
LEASE = 30


def _work(connection: Connection, counter: Counter) -> None:
    seconds = connection.recv()
    before = set(threading.enumerate())
    handles = [lock(f"renewal:{number}", LEASE).acquire() for number in range(LOCKS)]
    threads = set(threading.enumerate()) - before
    began, cpu, sent = time.monotonic(), time.process_time(), len(counter.sent)
    time.sleep(seconds)
    took, used = time.monotonic() - began, time.process_time() - cpu
    renewals = counter.sent[sent:]
    lost = sum(handle.lost.is_set() for handle in handles)
    connection.send({"threads": len(threads), "cpu": used / took, "took": took, "renewals": renewals, "lost": lost})
    for handle in handles:
        handle.release()


def run(report: Report, url: str, *, quick: bool) -> None:
    """All rows of renewal. Each lock is renewed at a third of its lease, so three rounds in full and one if quick."""
    with processes(1, url, _work) as (worker,):
        worker.send(12.0 if quick else 30.0)
        found: dict[str, Any] = worker.recv()
    moments = [moment for moment, _ in found["renewals"]]
    # What belongs to one round lies within the seconds in which the locks were acquired.
    rounds = sum(1 for before, after in zip([-60.0, *moments], moments, strict=False) if after - before > LEASE / 6)
    report.figures(f"{LOCKS:,} locks of one process, a lease of {LEASE} s, held for {found['took']:.0f} s, majority")
    ours = "goscope_django"
    report.figure("threads for renewal", ours, found["threads"], "threads", most=1)
    report.figure("commands", ours, len(moments) / max(1, rounds), "a round", most=LOCKS / 100)
    report.figure("commands", ours, len(moments) / found["took"], "a second")
    report.figure("CPU, all of the process", ours, found["cpu"] * 100, "% of a core", most=2.0)
    report.figure("lost", ours, found["lost"], "locks", most=0)
