"""Locks between processes: never two inside, takeovers, holders that sleep, are killed, fork or have a wrong clock."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from goscope_django import locks, runtime
from goscope_django.exceptions import LockNotAcquired
from goscope_django.fencing import fenced_update_one
from goscope_django.locks import lock
from tests.scripts.lock_worker import Worker
from tests.support.locks import raw, settings_for, without_ttl_monitor

pytestmark = pytest.mark.fleet


@pytest.fixture
def url(mongo_url: str) -> Iterator[str]:
    """No TTL monitor runs: nothing may depend on it."""
    with settings_for(mongo_url), without_ttl_monitor(mongo_url):
        runtime.adapter().ensure_indexes()
        for name in ("go_goscope_locks", "stock", "inside"):
            raw().database[name].delete_many({})
        yield mongo_url


@pytest.mark.parametrize(("processes", "threads", "rounds"), [(16, 1, 5), (4, 4, 6)])
def test_never_two_inside_and_tokens_that_rise(url: str, processes: int, threads: int, rounds: int) -> None:
    with Worker(url, "contend", "hot", processes, rounds, threads) as worker:
        entries = worker.read()
    assert len(entries) == processes * threads * rounds
    assert {inside for _, _, inside in entries} == {0}
    by_order = [token for token, _, _ in sorted(entries, key=lambda entry: entry[1])]
    assert by_order == sorted(set(by_order))
    assert locks.backend().get("hot") is None


def test_tokens_rise_where_locks_are_held_for_no_time_at_all(url: str) -> None:
    """A command that began before another holder came, and writes after it went, has an old time for its token."""
    provider, tokens, until = runtime.adapter().lock, [], time.monotonic() + 5

    def fight() -> None:
        while time.monotonic() < until:
            handle = provider.acquire("hot", 60_000)
            if handle is not None:
                tokens.append(handle.token)
                assert handle.release()

    threads = [threading.Thread(target=fight) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) > 50 and tokens == sorted(set(tokens))


def test_a_holder_that_sleeps_past_its_lease_learns_it_and_cannot_write(url: str) -> None:
    with Worker(url, "hold", "stock", 1) as worker:
        first = worker.begin()
        assert worker.ask("write") == "written"
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            with lock("stock", 30) as handle:
                assert handle.token > first
                stock = raw().database["stock"]
                fenced_update_one(stock, {"_id": "stock"}, {"$inc": {"writes": 1}}, handle)
                os.kill(worker.pid, signal.SIGCONT)
                assert worker.ask("write") == "stale"
                assert worker.ask("lost") is True
                assert worker.ask("told") == [first]
                assert worker.ask("valid") is False
                assert worker.ask("release") is False
                assert handle.is_valid()
                assert stock.find_one()["writes"] == 2
        finally:
            os.kill(worker.pid, signal.SIGCONT)


def test_a_holder_that_sleeps_for_less_keeps_its_lock(url: str) -> None:
    with Worker(url, "hold", "stock", 4) as worker:
        worker.begin()
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.ask("lost") is False
        assert worker.ask("write") == "written"


def test_a_holder_that_is_killed_is_followed_at_the_end_of_its_lease(url: str) -> None:
    with Worker(url, "hold", "stock", 2) as worker:
        first = worker.begin()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(LockNotAcquired):
            lock("stock", blocking=False).acquire()
        with lock("stock") as handle:
            assert handle.token > first


def test_a_living_holder_is_not_followed(url: str) -> None:
    with Worker(url, "hold", "stock", 0.6) as worker:
        worker.begin()
        with pytest.raises(LockNotAcquired):
            lock("stock", blocking_timeout=2).acquire()
        assert worker.ask("valid") is True
        assert worker.ask("release") is True
        with lock("stock", blocking=False):
            pass


def test_a_process_that_ends_with_a_lock_is_quiet(url: str) -> None:
    with Worker(url, "hold", "stock", 0.5) as worker:
        worker.begin()
        assert worker.end() == ""
        assert worker.process.returncode == 0
    with lock("stock"):
        pass


def test_a_forked_child_is_not_the_holder(url: str) -> None:
    with Worker(url, "hold", "stock", 30) as worker:
        worker.begin()
        answer = worker.ask("fork")
        assert answer == {"child": [True, False, False, "refused"], "parent": [False, True]}
        assert worker.ask("release") is True


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
@pytest.mark.parametrize("wrong", ["+1h", "-1h"])
def test_a_wrong_clock_changes_nothing(url: str, wrong: str) -> None:
    with Worker(url, "hold", "stock", 3, wrong_clock=wrong) as worker:
        first = worker.begin()
        # It is neither taken for expired, nor is its lease an hour longer.
        with pytest.raises(LockNotAcquired):
            lock("stock", blocking_timeout=4).acquire()
        assert worker.ask("valid") is True
        info = locks.backend().get("stock")
        assert info is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with lock("stock", 30) as handle:
            assert handle.token > first
            os.kill(worker.pid, signal.SIGCONT)
            assert worker.ask("write") == "written"  # nobody has written with a newer token yet ...
            assert worker.ask("lost") is True  # ... but it knows
            with Worker(url, "hold", "stock", 1.5, wrong_clock=wrong) as another:
                assert another.begin() is None
