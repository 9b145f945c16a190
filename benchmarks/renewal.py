"""A thousand locks that one process holds and renews: its threads, commands, and share of a core."""

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
    threads = [one.name for one in threading.enumerate() if one not in before]
    began, cpu, sent = time.monotonic(), time.process_time(), len(counter.sent)
    time.sleep(seconds)
    took, used = time.monotonic() - began, time.process_time() - cpu
    lost = sum(handle.lost.is_set() for handle in handles)
    found = {"threads": threads, "cpu": used / took, "took": took, "commands": counter.sent[sent:], "lost": lost}
    connection.send(found)
    for handle in handles:
        handle.release()


def run(report: Report, url: str, *, quick: bool) -> None:
    """All rows of renewal. Each lock is renewed at a third of its lease, so three rounds in full and one if quick."""
    with processes(1, url, _work) as (worker,):
        worker.send(12.0 if quick else 30.0)
        found: dict[str, Any] = worker.recv()
    moments = [moment for moment, command in found["commands"] if command.endswith(" go_goscope_locks")]
    # What belongs to one round lies within the seconds in which the locks were acquired.
    rounds = sum(1 for before, after in zip([-60.0, *moments], moments, strict=False) if after - before > LEASE / 6)
    report.figures(f"{LOCKS:,} locks of one process, a lease of {LEASE} s, held for {found['took']:.0f} s, majority")
    ours = "goscope_django"
    renewing = sum("renewal" in name for name in found["threads"])
    report.figure("threads that renew", ours, renewing, "threads", most=1)
    report.figure("threads of ours, with the one for figures", ours, len(found["threads"]), "threads")
    report.figure("commands that renew", ours, len(moments) / max(1, rounds), "a round", most=LOCKS / 100)
    report.figure("commands, all", ours, len(found["commands"]) / found["took"], "a second")
    report.figure("CPU, all of the process", ours, found["cpu"] * 100, "% of a core", most=2.0)
    report.figure("lost", ours, found["lost"], "locks", most=0)
