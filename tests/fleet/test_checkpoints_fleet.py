"""Tasks in processes that are killed, stopped and woken, that start together, and whose clocks are wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.checkpoints.queries import TaskQueryFlows
from goscope_django.mongodb.checkpoints.values import TaskInfo

pytestmark = [pytest.mark.real, pytest.mark.fleet]
ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "scripts" / "task_worker.py"


class Worker:
    """One process of ``task_worker``."""

    def __init__(self, url: str, prefix: str, mode: str, *, faketime: str | None = None, **options: Any) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        environ.pop("DJANGO_SETTINGS_MODULE", None)
        if faketime is not None:
            environ.update(LD_PRELOAD=library(), FAKETIME=faketime, FAKETIME_DONT_FAKE_MONOTONIC="1")
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), url, prefix, mode, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=ROOT,
        )

    def heard(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            pytest.fail(f"the worker ended with {self.process.wait(10)}: {self.process.stderr.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def library() -> str:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib"):
        path = Path(folder) / "faketime" / "libfaketime.so.1"
        if path.exists():
            return str(path)
    pytest.skip("libfaketime is not installed")


class Fleet:
    """Workers on a prefix of their own, and what they left in the store."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self.prefix = f"{uuid.uuid4().hex[:8]}:"
        self.stack = stack
        client = stack.enter_context(MongoClient[dict[str, Any]](url))
        self.adapter = MongoDBAdapter(client.get_default_database(), key_prefix=self.prefix)
        self.adapter.connect()

    def worker(self, mode: str, **options: Any) -> Worker:
        worker = Worker(self.url, self.prefix, mode, **options)
        self.stack.callback(worker.close)
        return worker

    def info(self, task_id: str) -> TaskInfo:
        flows = TaskQueryFlows(self.adapter.checkpoint.flows)
        found = self.adapter.store.run(flows.get, task_id)
        assert found is not None
        return found


@pytest.fixture
def fleet(mongo_url: str) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(mongo_url, stack)


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_loop_killed_at_three_random_places_processes_every_item_and_repeats_only_what_was_unsaved(
    fleet: Fleet, tmp_path: Path
) -> None:
    path, items, every = tmp_path / "numbers", 600, 25
    seed = random.randrange(10**6)
    places = sorted(random.Random(seed).sample(range(20, items - 20), 3))
    options = {"path": str(path), "items": items, "pause": 0.002, "every": every, "lease": 1.0}
    written = []
    for place in places:
        worker = fleet.worker("numbers", **options)
        until(lambda place=place: max(lines(path), default=-1) >= place)  # type: ignore[misc]
        worker.signal(signal.SIGKILL)
        worker.end()
        written.append(len(lines(path)))
    worker = fleet.worker("numbers", **options)
    assert worker.heard() == {"what": "started", "attempt": 4, "resumed": True}, f"seed {seed}"
    assert worker.heard()["what"] == "completed"
    assert worker.end() == 0
    found = lines(path)
    assert set(found) == set(range(items)), f"seed {seed}: items were lost"
    repeats = len(found) - items
    assert repeats <= 3 * (every + 1), f"seed {seed}: {repeats} repeats"
    assert max(Counter(found).values()) <= 4
    assert fleet.info("numbers").status == "completed"


def test_after_sigterm_the_next_worker_goes_on_at_once_and_repeats_one_item_at_most(
    fleet: Fleet, tmp_path: Path
) -> None:
    path = tmp_path / "numbers"
    options = {"path": str(path), "items": 60, "pause": 0.02, "every": 1000, "lease": 300}
    worker = fleet.worker("numbers", **options)
    until(lambda: len(lines(path)) >= 20)
    worker.signal(signal.SIGTERM)
    assert worker.end() == 143
    assert fleet.info("numbers").status == "interrupted"
    worker = fleet.worker("numbers", **options)
    assert worker.heard() == {"what": "started", "attempt": 2, "resumed": True}
    assert worker.heard()["what"] == "completed"
    found = lines(path)
    assert set(found) == set(range(60))
    assert len(found) <= 61


@pytest.mark.parametrize("mode", ["zombie", "blind"])
def test_a_worker_that_wakes_up_after_a_takeover_can_not_save(fleet: Fleet, mode: str) -> None:
    zombie = fleet.worker(mode, lease=0.7)
    first = zombie.heard()
    zombie.signal(signal.SIGSTOP)
    until(lambda: fleet.info("zombie").stalled)
    heir = fleet.worker("zombie", lease=60)
    second = heir.heard()
    assert second["token"] > first["token"]
    zombie.signal(signal.SIGCONT)
    zombie.go_on()
    assert [zombie.heard()["what"] for _ in range(2)] == ["refused", "lost"]
    assert zombie.end() == 0
    latest = fleet.adapter.checkpoint.load_latest("zombie")
    assert latest is not None
    assert (latest.data, latest.sequence) == ("mine", 2)
    heir.go_on()
    assert heir.heard()["what"] == "saved"
    assert heir.end() == 0
    assert fleet.info("zombie").status == "completed"


def test_of_eight_processes_that_start_the_same_task_one_runs_it(fleet: Fleet) -> None:
    workers = [fleet.worker("once", hold=True, lease=30) for _ in range(8)]
    said = Counter(worker.heard()["what"] for worker in workers)
    assert said == {"started": 1, "running": 7}
    found = fleet.adapter.checkpoint.list("once")
    assert [one.sequence for one in found] == [1]


def test_a_clock_that_is_an_hour_off_takes_nothing_away_and_writes_no_wrong_times(fleet: Fleet) -> None:
    late = fleet.worker("once", hold=True, lease=30, faketime="-2h")
    said = late.heard()
    assert time.time() - said["wall"] > 7_000, "the clock was not faked"
    until(lambda: fleet.adapter.checkpoint.load_latest("once") is not None)
    early = fleet.worker("once", hold=False, lease=30, faketime="+2h")
    refused = early.heard()
    assert refused["what"] == "running"
    assert 0 < refused["retry_after"] <= 30
    info = fleet.info("once")
    assert not info.stalled
    latest = fleet.adapter.checkpoint.load_latest("once")
    assert latest is not None
    now = datetime.now(UTC)
    for moment in (info.started_at, info.heartbeat_at, latest.timestamp):
        assert moment is not None
        assert abs((moment - now).total_seconds()) < 120
    late.signal(signal.SIGTERM)
    assert late.end() == 143
    again = fleet.worker("once", hold=False, lease=30, faketime="+2h")
    assert again.heard()["what"] == "started"
    assert again.heard()["what"] == "completed"
