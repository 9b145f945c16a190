"""Workers are killed at random instants: business data and record are there once, together, whoever is killed when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient

from tests.support.mongod import temporary_mongod

pytest.importorskip("django_mongodb_backend", reason="django-mongodb-backend is not installed")
pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow]

WORKER = Path(__file__).parent.parent / "scripts" / "exactly_once_worker.py"
TOGETHER = 5
"""Keys that are worked on at the same time, each by two workers."""


class Workers:
    """A process that has loaded Django and forks workers."""

    def __init__(self, url: str, database: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WORKER), url, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=WORKER.parent.parent.parent,
            env={**os.environ, "PYTHONPATH": str(WORKER.parent.parent.parent)},
        )

    def _ask(self, line: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, key: str, order: str, seconds: float) -> int:
        return self._ask(f"{key} {order} {seconds}")

    def ended(self, pid: int) -> int:
        return self._ask(f"wait {pid}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture
def server() -> Iterator[str]:
    """A server that soon gives up the transactions of the dead; by default it does after a minute."""
    with temporary_mongod() as mongod, MongoClient[dict[str, Any]](mongod.uri) as client:
        client.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": 1})
        client["shop"].create_collection("shop_order")
        yield mongod.uri


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("orders", "kills"), [(("outside", "inside"), 50), (("task", "task"), 25)], ids=["calls", "tasks"]
)
def test_a_kill_at_any_instant_leaves_data_and_record_once_and_together(
    server: str, orders: tuple[str, str], kills: int
) -> None:
    assert urlsplit(server).path in ("", "/")
    workers = Workers(server, "shop")
    keys, killed = [f"order-{number}" for number in range(kills)], 0
    try:
        for start in range(0, kills, TOGETHER):
            doomed, others = [], []
            for number, key in enumerate(keys[start : start + TOGETHER], start):
                # Half of them last longer than the lease, which is renewed meanwhile.
                order, seconds = orders[number % 2], (0.05, 0.35)[number // 2 % 2]
                instant = time.monotonic() + random.uniform(0, 3.2 * seconds)
                doomed.append((instant, workers.start(key, order, seconds)))
                others.append(workers.start(key, order, seconds))
            for instant, pid in sorted(doomed):
                time.sleep(max(0.0, instant - time.monotonic()))
                os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so the pid is still its own
            killed += sum(workers.ended(pid) == -signal.SIGKILL for _, pid in doomed)
            assert [workers.ended(pid) for pid in others] == [0] * TOGETHER
    finally:
        workers.close()
    with MongoClient[dict[str, Any]](server) as client:
        found = Counter(one["name"] for one in client["shop"]["shop_order"].find())
        results = client["shop"]["go_goscope_idempotency"].find({"key": {"$not": {"$regex": "^claim:"}}})
        records = Counter(one["key"].split()[-1] for one in results)
    assert found == Counter(f"{key} {part}" for key in keys for part in ("first", "second"))
    assert records == Counter(keys if "task" not in orders else ())
    assert killed > kills / 4  # the others had ended before
