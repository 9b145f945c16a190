"""Figures of real processes: an idle one has no thread, none is lost at the end or counted twice after a fork."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.cache import cache

from goscope_django import figures, runtime
from goscope_django.locks import lock
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.figures import Hour
from goscope_django.process import counters
from tests.support.commands import Recorder
from tests.support.manage import Ended, script, start_script
from tests.support.operations import own_store

PRELUDE = """
import threading, time
from django.core.cache import cache
from goscope_django import figures, runtime

def own_threads():
    return [one.name for one in threading.enumerate() if one.name == "goscope-figures"]

def until(test):
    deadline = time.monotonic() + 20
    while not test():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
"""


@pytest.fixture
def url(mongo_url: str) -> Iterator[str]:
    adapter = MongoDBAdapter.on(clients.store(mongo_url))
    adapter.ensure_indexes()
    yield mongo_url
    adapter.wipe()


def hour(url: str) -> Hour:
    return clients.store(url).run(stats.read, "", datetime.now(UTC))


def run(url: str, text: str, **more: Any) -> Ended:
    ended = script(url, PRELUDE + text, **more)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return ended


def test_a_process_that_does_nothing_has_no_thread(url: str) -> None:
    # The threads of the client that ready() used and closed take a moment to end.
    run(url, "until(lambda: threading.active_count() == 1)")


def test_the_thread_comes_with_the_first_count_and_goes_when_there_is_nothing_to_send(url: str) -> None:
    text = """
figures.INTERVAL = 0.05
cache.get("user:1")
assert own_threads()
until(lambda: not own_threads())
cache.get("user:1")
assert own_threads()
until(lambda: not own_threads())
"""
    run(url, text)
    assert hour(url).pairs["default", "user"]["misses"] == 2


def test_what_was_counted_is_sent_when_the_process_ends(url: str) -> None:
    run(url, "cache.get('user:1'); runtime.emit('lock_acquired', key='k', owner='o', token=1)")
    found = hour(url)
    assert found.aliases["default"] == {"misses": 1}
    assert sum(found.series["locks_acquired"]) == 1


@pytest.mark.parametrize("before", ["", "cache.get('early:1')"])
def test_what_a_test_environment_counts_is_not_sent_from_outside_of_it(url: str, before: str) -> None:
    """Also where tests run in a process that has used its own store before, and goes on with it afterwards."""
    text = f"""
from django.test.utils import setup_test_environment, teardown_test_environment

figures.INTERVAL = 0.05
{before}
until(lambda: not own_threads())
setup_test_environment()
cache.get("tests:1")
time.sleep(0.3)
assert not own_threads()
teardown_test_environment()
cache.get("late:0")  # a count that comes with those of the tests may be dropped with them
cache.get("late:1")
assert own_threads()
until(lambda: not own_threads())
cache.get("last:1")
"""
    run(url, text)
    found = {space: counts["misses"] for (_, space), counts in hour(url).pairs.items()}
    assert found.pop("late") >= 1
    assert found == {"last": 1, **({"early": 1} if before else {})}


def test_a_thread_that_runs_when_a_test_environment_begins_sends_nothing_of_it(url: str) -> None:
    text = """
from django.test.utils import setup_test_environment, teardown_test_environment

figures.INTERVAL = 0.3
cache.get("early:1")
setup_test_environment()
cache.get("tests:1")
until(lambda: not own_threads())
cache.get("tests:1")
teardown_test_environment()
cache.get("late:0")
cache.get("late:1")
"""
    run(url, text)
    assert set(hour(url).pairs) == {("default", "late")}


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "raise KeyboardInterrupt", "1 / 0"])
def test_in_whatever_way_it_ends_in_order(leave: str, url: str) -> None:
    script(url, f"{PRELUDE}\ncache.get('user:1')\n{leave}")
    assert hour(url).aliases["default"] == {"misses": 1}


def test_an_asynchronous_process_opens_no_second_client(url: str) -> None:
    text = """
import asyncio
figures.INTERVAL = 0.05

async def main():
    await cache.aget("user:1")
    for _ in range(400):
        if not own_threads():
            break
        await asyncio.sleep(0.02)
    assert not own_threads()
    await cache.aget("user:1")  # to be sent with the loop's end

asyncio.run(main())
assert not runtime.connection().opened
"""
    run(url, text)
    assert hour(url).pairs["default", "user"]["misses"] == 2


def test_loops_that_come_and_go_do_not_send_each_time(url: str) -> None:
    text = """
import asyncio
sent = []
deliver = figures._Flusher.deliver_here

async def counted(self, *args):
    sent.append(1)
    return await deliver(self, *args)

figures._Flusher.deliver_here = counted

def request():
    asyncio.run(cache.aget("user:1"))

for _ in range(5):
    thread = threading.Thread(target=request)
    thread.start()
    thread.join()
assert not sent, sent
figures.flush()
"""
    run(url, text)
    assert hour(url).aliases["default"]["misses"] == 5


def test_a_forked_child_sends_its_own_counts_only(url: str) -> None:
    text = """
import os, sys
for _ in range(5):
    cache.get("user:1")
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert not own_threads()
        cache.get("user:1")
        sys.exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
cache.get("user:1")
"""
    run(url, text)
    assert hour(url).aliases["default"] == {"misses": 9}


def test_processes_add_up(url: str) -> None:
    text = """
figures.INTERVAL = 0.03
for number in range(300):
    cache.get(f"n{number % 5}:x")
    figures.count("flights_led")
"""
    processes = [start_script(url, PRELUDE + text) for _ in range(4)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    found = hour(url)
    assert found.aliases["default"] == {"misses": 1_200}
    assert {name: counts["misses"] for (_, name), counts in found.pairs.items()} == {f"n{n}": 240 for n in range(5)}
    assert found.totals is not None
    assert [sum(one.series["flights_led"]) for one in (found, found.day, found.totals)] == [1_200] * 3


def test_a_clock_that_is_wrong_changes_nothing(url: str) -> None:
    text = """
from datetime import timedelta
import goscope_django.figures as module

class Wrong(module.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + timedelta(hours=5, minutes=17)

module.datetime = Wrong
cache.get("user:1")
assert figures.flush()
cache.get("user:1")
assert figures.flush()
"""
    run(url, text)
    found = hour(url)
    assert found.series["cache_misses"][-1] + found.series["cache_misses"][-2] == 2
    assert found.pairs["default", "user"]["misses"] == 2


def test_without_a_server_nothing_is_said_and_the_end_is_not_held_up() -> None:
    text = """
figures.INTERVAL = 0.05
for _ in range(20):
    cache.get("user:1")
    time.sleep(0.01)
"""
    ended = script(
        "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=200",
        PRELUDE + text,
        goscope={"ON_ERROR": "ignore", "CONNECT_ON_READY": False},
    )
    assert ended.code == 0
    assert "figures" not in ended.err and "Traceback" not in ended.err


def test_what_was_counted_while_the_server_was_away_does_not_fall_into_a_later_hour(url: str) -> None:
    text = """
from goscope_django.mongodb.driver.store import Store
from goscope_django.exceptions import StoreUnavailable
run = Store.run

def away(*args, **kwargs):
    raise StoreUnavailable("away")

cache.get("user:1")
Store.run = away
assert not figures.flush()
figures._flusher._failing -= figures.FORGET + 1
assert not figures.flush()
Store.run = run
assert figures.flush()
cache.get("user:1")
"""
    run(url, text)
    assert hour(url).aliases["default"] == {"misses": 1}


def test_a_batch_is_one_command_whatever_is_in_it(mongo_url: str) -> None:
    recorder = Recorder()
    counters.forget()  # what other tests of this process have counted
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        cache.set("user:1", 1)
        with lock("k"):
            pass
        assert figures.flush()  # registers the names of the hour
        recorder.clear()
        cache.get("user:1")
        with lock("k"):
            pass
        sent = len(recorder.names)
        assert figures.flush()
        assert recorder.names[sent:] == ["update"]
        (command,) = recorder.commands[sent:]
        start = len(runtime.adapter().key_prefix)
        kinds = [one["q"]["_id"][start:].partition(":")[0] for one in command["updates"]]
        assert kinds == ["minute", "hour", "totals"]
        recorder.clear()
        found = runtime.adapter().store.run(stats.read, runtime.adapter().key_prefix, datetime.now(UTC))
        assert recorder.names == ["find"]
        assert found.totals is not None and found.totals.series["locks_acquired"] == (2,)


def test_with_names_it_is_still_one_command(mongo_url: str) -> None:
    recorder = Recorder()
    counters.forget()
    with own_store(mongo_url, FIGURES_PER_NAME=3, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        for expected in (["findAndModify", "findAndModify", "update"], ["update"]):
            with lock("k"):
                pass
            sent = len(recorder.names)
            assert figures.flush()
            told = recorder.names[sent:]
            assert told == expected or len(told) == 3  # an hour has just begun
        found = runtime.adapter().store.run(stats.read, runtime.adapter().key_prefix, datetime.now(UTC))
        assert sum(kinds["lock"]["k"][0] for kinds in found.named.values()) == 2


def test_a_killed_process_loses_what_it_had_not_sent_and_nothing_else(url: str) -> None:
    text = """
import os, signal
figures.count("flights_led", 2)
assert figures.flush()
figures.count("flights_led", 40)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert script(url, PRELUDE + text).code == -9
    run(url, "cache.get('user:1'); figures.count('flights_led', 3)")
    found = hour(url)
    assert found.totals is not None
    assert [sum(one.series["flights_led"]) for one in (found, found.day, found.totals)] == [5, 5, 5]
