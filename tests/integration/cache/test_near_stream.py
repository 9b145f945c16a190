"""The near cache on a real server: what others write, streams that break or hang, forks, ends, servers without streams.

The promise is about time, so here time is measured: no answer is older than ``MAX_STALE``, by a clock that goes on
while a process or a machine sleeps. How soon a change is seen beyond that is not asserted.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from pymongo import MongoClient

from goscope_django.cache.near import Near
from goscope_django.core.ticks import tick
from goscope_django.mongodb.cache import stream as streams
from goscope_django.mongodb.driver import client as clients
from tests.conftest import with_database
from tests.support.commands import Recorder, on_server
from tests.support.flights import wait_until
from tests.support.mongod import replica_set, temporary_mongod
from tests.support.near import near_of, opened
from tests.support.proxy import Proxy

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[3]
MAX_STALE = 1.0
NAMES = {"cache": "cache::1:k"}


class Place:
    """A server with a proxy in front, through which the cache goes, and a client that goes around it."""

    def __init__(self, port: int) -> None:
        self.proxy = Proxy(port)
        self.around: MongoClient[dict[str, Any]] = MongoClient("127.0.0.1", port, directConnection=True)
        self.recorder = Recorder()
        self.url = f"mongodb://127.0.0.1:{self.proxy.port}/near?directConnection=true&serverSelectionTimeoutMS=1000"

    @property
    def entries(self) -> Any:
        return self.around["near"]["go_goscope_cache"]

    def write(self, value: object) -> float:
        """Write it as Node does; when a majority had it."""
        self.entries.update_one({"key": NAMES["cache"]}, {"$set": {"value": value}}, upsert=True)
        return tick()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with replica_set(1) as server:
        found = Place(server.ports[0])
        yield found
        streams.stop_all()
        clients.close_all()
        found.around.close()
        found.proxy.close()


@pytest.fixture
def cache(place: Place) -> Iterator[Any]:
    """A near cache whose stream is open, with the entry ``k``."""
    place.proxy.heal()
    options = {"NEAR": {"MAX_STALE": MAX_STALE}}
    with on_server(
        place.url,
        caches={"default": {"OPTIONS": options}, "quiet": {"OPTIONS": {**options, "ON_ERROR": "ignore"}}},
        client_options={"event_listeners": [place.recorder]},
    ):
        found = caches["default"]
        found.clear()
        found.set("k", "old")
        opened(found)
        fill(found)
        yield found
        streams.stop_all()


def fill(cache: Any, key: str = "k") -> None:
    """Read until the entry is kept. The stream may still bring changes that came before."""
    deadline = time.monotonic() + 30
    while f"cache::1:{key}" not in near_of(cache).kept.entries:
        cache.get(key)
        assert time.monotonic() < deadline, "the entry is never kept"


def never_too_old(cache: Any, changed: float, new: object, *, key: str = "k") -> float:
    """Read until the new value comes; for how long the old one came. It fails if that was longer than is promised."""
    asked = tick()
    while True:
        if cache.get(key, "gone") == new:
            return asked - changed
        assert asked - changed <= MAX_STALE, "an answer was older than MAX_STALE"
        asked = tick()


def test_a_hit_sends_nothing(place: Place, cache: Any) -> None:
    place.recorder.clear()
    for _ in range(200):
        assert cache.get("k") == "old"
        assert cache.get_many(["k"]) == {"k": "old"}
    assert set(place.recorder.names) <= {"getMore"}


def test_a_reading_that_is_kept_is_one_command_to_the_primary(place: Place, cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2}, 300)
    place.recorder.clear()
    assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": 2}
    assert cache.get("c") is None
    sent = [one for one in place.recorder.commands if "getMore" not in one]
    assert [next(iter(one)) for one in sent] == ["find", "find"]
    fill(cache, "a")
    assert cache.get_many(["a"]) == {"a": 1}


def test_what_has_served_is_read_again_when_it_is_changed_elsewhere(place: Place, cache: Any) -> None:
    near = near_of(cache)
    keys, before = [f"k{number}" for number in range(20)], near.stream.events
    cache.set_many(dict.fromkeys(keys, "old"))
    wait_until(lambda: near.stream.events >= before + len(keys))  # else they pay for what is changed by this
    wait_until(lambda: len(cache.get_many(keys)) == len(near.kept.entries.keys() & {f"cache::1:{key}" for key in keys}))
    place.recorder.clear()
    assert cache.get_many(keys) == dict.fromkeys(keys, "old")
    place.entries.update_many({"key": {"$in": [f"cache::1:{key}" for key in keys]}}, {"$set": {"value": "new"}})
    wait_until(lambda: all((one := near.kept.entries.get(f"cache::1:{key}")) and one.value == "new" for key in keys))
    asked = place.recorder.names.count("find")
    assert asked < len(keys), "many with one command"
    assert cache.get_many(keys) == dict.fromkeys(keys, "new")
    assert place.recorder.names.count("find") == asked
    assert near.figures.renewed >= len(keys)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_value_that_ends_the_streams_thread_does_not_end_the_near_cache(
    place: Place, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def end(self: Near, executor: object) -> None:
        ended.set()
        raise SystemExit(3)

    with monkeypatch.context() as patched:
        patched.setattr(Near, "catch_up", end)
        place.write("new")
        assert ended.wait(20)
        wait_until(lambda: not near_of(cache).stream._running)
    assert not near_of(cache).kept.entries
    fill(cache)
    never_too_old(cache, place.write("newer"), "newer")


def test_what_this_process_sets_is_not_read_again(place: Place, cache: Any) -> None:
    def sent() -> list[str]:
        assert cache.get("k") is not None
        cache.set("k", {"new": 1})
        place.recorder.clear()
        assert cache.get("k") == {"new": 1}
        return place.recorder.names

    wait_until(lambda: "find" not in sent())  # while changes come from before, what is set may not be kept


def test_async_callers_read_and_keep_too(place: Place, cache: Any) -> None:
    async def read() -> list[Any]:
        await cache.aset("async", {"a": 1})
        deadline = time.monotonic() + 30
        while "cache::1:async" not in near_of(cache).kept.entries:
            await cache.aget("async")
            assert time.monotonic() < deadline
        place.recorder.clear()
        found = [await cache.aget("async"), await cache.aget_many(["async", "k"])]
        await cache.aset("async", 2)
        return [*found, await cache.aget("async")]

    assert asyncio.run(read()) == [{"a": 1}, {"async": {"a": 1}, "k": "old"}, 2]


def test_a_hit_of_what_may_be_stale_later_sends_nothing(place: Place, cache: Any) -> None:
    def again() -> Any:
        return cache.get_or_set("k", lambda: "computed", 60, stale=60)

    cache.delete("k")
    assert again() == "computed"
    deadline = time.monotonic() + 30
    while NAMES["cache"] not in near_of(cache).kept.entries:
        assert again() == "computed"
        assert time.monotonic() < deadline
    place.recorder.clear()
    for _ in range(200):
        assert again() == "computed"
    assert set(place.recorder.names) <= {"getMore"}
    changed = place.write("new")
    asked = tick()
    while again() != "new":
        assert asked - changed <= MAX_STALE, "an answer was older than MAX_STALE"
        asked = tick()


def by_delete_and_insert(place: Place) -> None:
    place.entries.delete_one({"key": NAMES["cache"]})
    place.entries.insert_one({"key": NAMES["cache"], "value": "new"})


def by_rename(place: Place) -> None:
    place.around["near"].create_collection("other")
    place.around["near"]["other"].rename("go_goscope_cache", dropTarget=True)


OTHERS: dict[str, tuple[Callable[[Place], object], str]] = {
    "update": (lambda place: place.write("new"), "new"),
    "replace": (
        lambda place: place.entries.replace_one({"_id": NAMES["cache"]}, {"key": NAMES["cache"], "value": "new"}),
        "new",
    ),
    "delete": (lambda place: place.entries.delete_one({"key": NAMES["cache"]}), "gone"),
    "delete and insert": (by_delete_and_insert, "new"),
    "clear": (lambda place: place.entries.delete_many({}), "gone"),
    "drop": (lambda place: place.entries.drop(), "gone"),
    "drop the database": (lambda place: place.around.drop_database("near"), "gone"),
    "rename": (by_rename, "gone"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_others_write_is_seen(place: Place, cache: Any, kind: str) -> None:
    change, new = OTHERS[kind]
    change(place)
    never_too_old(cache, tick(), new)
    # And the stream goes on, or another one does.
    cache.set("k", 1)
    fill(cache)
    never_too_old(cache, place.write(2), 2)


def test_an_entry_of_node_is_kept_and_removed_by_its_object_id(place: Place, cache: Any) -> None:
    place.entries.delete_many({})
    place.write({"n": 1})
    fill(cache)
    assert not isinstance(near_of(cache).kept.entries["cache::1:k"].name, str)
    for number in range(2, 6):
        never_too_old(cache, place.write({"n": number}), {"n": number})
        fill(cache)


def test_other_prefixes_send_no_changes(place: Place, cache: Any) -> None:
    before = near_of(cache).stream.events
    place.entries.insert_many([{"_id": f"blog:cache::1:{number}", "key": f"blog:{number}"} for number in range(50)])
    never_too_old(cache, place.write("new"), "new")
    fill(cache)
    never_too_old(cache, place.write("newer"), "newer")
    assert near_of(cache).stream.events - before <= 4


def test_changes_that_come_one_soon_after_the_other_are_brought_together(place: Place, cache: Any) -> None:
    def write(number: int) -> None:
        for value in range(200):
            place.entries.update_one({"key": f"cache::1:k{number}"}, {"$set": {"value": value}}, upsert=True)

    changes, before = near_of(cache).stream, near_of(cache).stream.events
    place.recorder.clear()
    began, deadline = tick(), time.monotonic() + 30
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    while changes.events < before + 800:
        time.sleep(0.001)
        assert time.monotonic() < deadline
    asked = place.recorder.names.count("getMore")
    assert asked <= (tick() - began) / streams._GATHER + 10
    cache.set("k", 1)
    fill(cache)
    never_too_old(cache, place.write("new"), "new")


def hold(place: Place, *names: str) -> Callable[[], None]:
    """Keep back the answers to these commands; what lets them go."""
    gate = threading.Event()

    def rewrite(name: str, answer: dict[str, Any]) -> dict[str, Any]:
        if name in names:
            gate.wait(20)
        return answer

    place.proxy.rewrite(rewrite)
    return gate.set


def test_silence_is_no_proof(place: Place, cache: Any) -> None:
    release = hold(place, "getMore")
    try:
        never_too_old(cache, place.write("new"), "new")
        place.recorder.clear()
        assert cache.get("k") == "new"
        assert "find" in place.recorder.names, "nothing is kept while nothing is proved"
    finally:
        release()


def test_this_test_sees_a_cache_that_takes_silence_for_a_proof(
    place: Place, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(place, "getMore")
    try:
        monkeypatch.setattr(near_of(cache).stream, "proof", float("inf"))
        with pytest.raises(AssertionError, match="older than MAX_STALE"):
            never_too_old(cache, place.write("new"), "new")
    finally:
        release()


def test_a_stream_that_breaks_begins_anew_without_what_was_kept(place: Place, cache: Any) -> None:
    near = near_of(cache)
    for _ in range(2):
        before = near.stream.generation
        place.proxy.lose_answers("getMore", 1)
        deadline = time.monotonic() + 30
        while near.stream.generation in (0, before):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not near.kept.entries
        fill(cache)
        never_too_old(cache, place.write(before), before)
        cache.set("k", "old")
        fill(cache)
    assert near.stream.breaks >= 2


def test_a_backlog_is_left_behind(place: Place, cache: Any) -> None:
    place.entries.insert_many([{"_id": f"cache::1:x{one}", "key": f"cache::1:x{one}"} for one in range(20_000)])
    place.entries.delete_many({"_id": {"$regex": "^cache::1:x"}})
    never_too_old(cache, place.write("new"), "new")
    fill(cache)
    never_too_old(cache, place.write("newer"), "newer")


def test_hits_serve_for_max_stale_while_the_server_is_away(place: Place, cache: Any) -> None:
    quiet = caches["quiet"]
    for _ in range(3):
        assert quiet.get("k") == "old"
    fill(quiet)
    gone = tick()
    for command in ("getMore", "find", "aggregate", "hello", "update"):
        place.proxy.refuse(command)
    try:
        asked = tick()
        while quiet.get("k") is not None:
            assert asked - gone <= MAX_STALE
            asked = tick()
        assert quiet.get("k", "default") == "default"
    finally:
        place.proxy.heal()


def test_a_set_through_another_client_of_this_process_is_no_exception(place: Place, cache: Any) -> None:
    asyncio.run(cache.aset("k", "async"))
    assert cache.get("k") == "async"


PROGRAM = """
import os, sys, time
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", GOSCOPE={"URL": sys.argv[1]}, INSTALLED_APPS=["goscope_django"], CACHES={"default": {
    "BACKEND": "goscope_django.cache.MongoDBCache", "OPTIONS": {"NEAR": {"MAX_STALE": 1.0}}}})
django.setup()
from django.core.cache import cache
from tests.support.near import near_of, opened

def kept():
    opened(cache)
    deadline = time.monotonic() + 30
    while "cache::1:k" not in near_of(cache).kept.entries:
        cache.get("k")
        assert time.monotonic() < deadline
cache.set("k", 0)
kept()
child = os.fork()
if child == 0:
    assert not near_of(cache).kept.entries, "the parent's entries"
    assert near_of(cache).stream.generation == 0
    kept()
    cache.set("k", 1)
    assert cache.get("k") == 1
    kept()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
deadline = time.monotonic() + 10
while cache.get("k") != 1:
    assert time.monotonic() < deadline, "the child's write is never seen"
kept()
print("done")
"""


def test_forks_have_streams_of_their_own_and_no_process_hangs_at_its_end(place: Place) -> None:
    started = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, place.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )
    assert (started.returncode, started.stdout, started.stderr) == (0, "done\n", "")


def test_a_standalone_server_has_no_streams_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_mongod(standalone=True) as server:
        url = with_database(server.uri, "alone")
        with on_server(url, caches={"default": {"OPTIONS": {"NEAR": {"MAX_STALE": MAX_STALE}}}}):
            cache: Any = caches["default"]
            with caplog.at_level(logging.WARNING, "goscope.near"):
                cache.set("k", 1)
                deadline = time.monotonic() + 30
                while not near_of(cache).stream.alone:
                    cache.get("k")
                    assert time.monotonic() < deadline
            assert "standalone" in caplog.text
            fill(cache)
            with MongoClient[dict[str, Any]](url) as around:
                around["alone"]["go_goscope_cache"].update_one({"key": "cache::1:k"}, {"$set": {"value": 2}})
                never_too_old(cache, tick(), 2)
            streams.stop_all()
        clients.close_all()
