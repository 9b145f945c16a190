"""Room, aliases, versions, key functions and times to live."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.cache import cache, caches

from goscope_django import runtime
from goscope_django.cache import headroom as cache_headroom
from goscope_django.cache import plain_key
from goscope_django.cache.computing import _computed_here
from goscope_django.cache.headroom import Headroom, headroom
from goscope_django.core.flow import Query
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import ServerClock
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server

LIMIT = 40


@pytest.fixture(params=["mongod", "mongomock"])
def url(request: pytest.FixtureRequest) -> Any:
    return "mongomock://options" if request.param == "mongomock" else request.getfixturevalue("mongo_url")


def entries() -> Any:
    return runtime.connection().sync().database.go_goscope_cache


def other_key(key: Any, key_prefix: str, version: int) -> str:
    return f"{version}/{key_prefix}/{key}"


def suffixing_key(key: Any, key_prefix: str, version: int) -> str:
    return f"{key}@{version}"


@pytest.mark.parametrize("frequency", [3, 0])
def test_room_is_bounded(url: str, drive: Drive, frequency: int) -> None:
    options = {"MAX_ENTRIES": LIMIT, "CULL_FREQUENCY": frequency}
    with on_server(
        url, caches={"default": {"OPTIONS": options, "KEY_PREFIX": f"room{frequency}{drive.kind}"}, "other": {}}
    ):
        drive(caches["other"], "clear")
        drive(caches["other"], "set_many", {f"o{n}": n for n in range(LIMIT)})
        for number in range(4 * LIMIT):
            drive(cache, "set", f"k{number}", number, 1_000 + number)
            assert len(drive(cache, "keys")) <= LIMIT
        kept = drive(cache, "keys")
        assert kept, "it does not empty itself"
        assert f"k{4 * LIMIT - 1}" in kept, "what was just set is there"
        assert len(drive(caches["other"], "keys")) == LIMIT, "another alias's entries do not count and are not culled"
        drive(cache, "set_many", {f"m{number}": 1 for number in range(LIMIT // 2)})
        assert len(drive(cache, "keys")) <= LIMIT + LIMIT // 2
        assert drive(cache, "add", "one-more", 1) is True
        assert drive(cache, "get", "one-more") == 1


def _write(turn: int, number: int) -> tuple[Any, str, tuple[Any, ...]]:
    return cache, "set", (f"{turn}-{number}", 1)


@pytest.mark.parametrize("writers", [2, 12])
def test_many_that_find_no_room_do_not_empty_it_together(mongo_url: str, drive: Drive, writers: int) -> None:
    limit = 300
    entry = {"OPTIONS": {"MAX_ENTRIES": limit}, "KEY_PREFIX": f"crowd{drive.kind}{writers}"}
    with on_server(mongo_url, caches={"default": entry}):
        drive(cache, "set_many", {f"k{number}": number for number in range(limit)})
        for turn in range(3):
            drive.together(writers, partial(_write, turn))
            assert len(drive(cache, "keys")) >= limit // 2


def test_entries_that_somebody_else_removes_made_room_as_well(mongo_url: str) -> None:
    flows, clock = CacheFlows(Codec()), ServerClock()
    cull = flows.cull(clock, "p:", 5)
    asked = [next(cull)]
    for answer in ([{"key": f"p:{number}"} for number in range(5)], SimpleNamespace(deleted_count=0)):
        with suppress(StopIteration):
            asked.append(cull.send(answer))
    assert [query.method for query in asked if isinstance(query, Query)] == ["find", "delete_many"]


def test_who_makes_room_may_fail_or_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(cache_headroom, "time", SimpleNamespace(monotonic=lambda: now[0]))
    room = Headroom(10, 3)
    assert room.take(1) is False
    assert room.take(1) is True, "one is at it"
    failing = room.cull(ServerClock(), CacheFlows(Codec()), "p:")
    next(failing)
    with pytest.raises(OSError, match="lost"):
        failing.throw(OSError("lost"))
    assert room.take(1) is False, "the next one tries"
    now[0] += cache_headroom.PATIENCE
    assert room.take(1) is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    room = headroom("forked", 10, 3)
    with room._lock:
        child = multiprocessing.get_context("fork").Process(target=room.take, args=(1,))
        child.start()
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()
    assert child.exitcode == 0


def test_what_ends_soonest_goes_first(url: str, drive: Drive) -> None:
    options = {"MAX_ENTRIES": LIMIT}
    with on_server(url, caches={"default": {"OPTIONS": options, "KEY_PREFIX": f"soon{drive.kind}"}}):
        for number in range(LIMIT):
            drive(cache, "set", f"k{number}", number, None if number % 2 else 100 + number)
        for number in range(6):
            drive(cache, "set", f"new{number}", number, 10_000)
        kept = drive(cache, "keys")
        assert {f"k{number}" for number in range(1, LIMIT, 2)} <= set(kept), "those that never end were spared"
        assert "k0" not in kept


def test_room_is_not_counted_at_every_write(mongo_url: str, drive: Drive) -> None:
    recorder = Recorder()
    entry = {"OPTIONS": {"MAX_ENTRIES": 5_000}, "KEY_PREFIX": f"count{drive.kind}"}
    with on_server(mongo_url, caches={"default": entry}, client_options={"event_listeners": [recorder]}):
        drive(cache, "set", "first", 1)
        recorder.clear()
        for number in range(300):
            drive(cache, "set", f"k{number}", number)
        # Once a second a write is a findAndModify, which also asks for the time. A count would be an aggregate.
        assert set(recorder.names) <= {"update", "findAndModify"}
        assert len(recorder.names) == 300


@pytest.mark.parametrize("prefix", ["a", "a:b", "", "a.*[", "ü", "nul\0"])
@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
def test_clear_removes_its_own_and_nothing_else(url: str, drive: Drive, prefix: str) -> None:
    prefixes = ["a", "a:b", "", "b", "a.*[", "axx[", "ü", "nul\0", "nul"]
    with on_server(url, caches={"default": {}, **{f"c{p}": {"KEY_PREFIX": p} for p in prefixes}}):
        entries().delete_many({"key": {"$gte": ""}})
        entries().insert_one({"key": "someone:else", "value": 1})
        for one in prefixes:
            for version in (1, 2, -3):
                drive(caches[f"c{one}"], "set", "1:k", one, version=version)
        drive(caches[f"c{prefix}"], "clear")
        for one in prefixes:
            for version in (1, 2, -3):
                found = drive(caches[f"c{one}"], "get", "1:k", version=version)
                assert found == (None if one == prefix else one), f"{one!r}, version {version}"
        assert entries().find_one({"key": "someone:else"}) is not None


def test_the_projects_prefix_keeps_projects_apart(url: str, drive: Drive) -> None:
    for project in ("one:", "two:", ""):
        with on_server(url, TEST={"URL": url, "KEY_PREFIX": project}):
            drive(cache, "clear")
            drive(cache, "set", "k", project)
    for project in ("one:", "two:", ""):
        with on_server(url, TEST={"URL": url, "KEY_PREFIX": project}):
            assert drive(cache, "get", "k") == project
            assert drive(cache, "keys") == ["k"]
    with on_server(url, TEST={"URL": url, "KEY_PREFIX": "one:"}):
        drive(cache, "clear")
    with on_server(url, TEST={"URL": url, "KEY_PREFIX": "two:"}):
        assert drive(cache, "get", "k") == "two:"


def test_versions(url: str, drive: Drive) -> None:
    with on_server(
        url, caches={"default": {}, "second": {"VERSION": 2}, "named": {"VERSION": "beta", "KEY_PREFIX": "n"}}
    ):
        drive(cache, "clear")
        drive(cache, "set", "k", "one")
        drive(cache, "set", "k", "two", version=2)
        assert drive(cache, "get", "k") == "one"
        assert drive(caches["second"], "get", "k") == "two"
        assert drive(cache, "keys", version=2) == ["k"]
        drive(cache, "set", "moving", 1, 100)
        assert drive(cache, "incr_version", "moving") == 2
        assert drive(cache, "get", "moving") is None
        assert drive(caches["second"], "get", "moving") == 1
        assert 90 < drive(caches["second"], "ttl", "moving") <= 100, "it keeps the time that it has left"
        assert drive(caches["second"], "decr_version", "moving") == 1
        assert drive(cache, "incr_version", "moving", 0) == 1
        assert drive(cache, "get", "moving") == 1, "it was there already"
        with pytest.raises(ValueError, match="not found"):
            drive(cache, "incr_version", "missing")
        drive(caches["named"], "set", "k", 1)
        drive(caches["named"], "clear")
        assert drive(caches["named"], "get", "k") is None
        assert drive(cache, "delete_pattern", "*", version=2) == 1
        assert drive(cache, "get", "k") == "one"


@pytest.mark.parametrize("delta", [True, 1.5, float("nan"), "1", None], ids=repr)
def test_a_version_moves_by_whole_numbers_only(url: str, drive: Drive, delta: Any) -> None:
    with on_server(url):
        drive(cache, "set", "moving", 1)
        for move in ("incr_version", "decr_version"):
            with pytest.raises(TypeError, match="delta="):
                drive(cache, move, "moving", delta)
        assert drive(cache, "get", "moving") == 1


def test_a_key_is_made_of_what_str_makes_of_it(url: str, drive: Drive) -> None:
    class Name:
        def __str__(self) -> str:
            return "text"

        def __format__(self, spec: str) -> str:
            return "format"

    with on_server(url, caches={"default": {}}):
        drive(cache, "set", Name(), 1)
        assert drive(cache, "get", "text") == 1, "as Django's own key function has it"
        name = Name()
        assert drive(cache, "get_many", [name]) == {name: 1}


@pytest.mark.parametrize("function", [plain_key, "goscope_django.cache.plain_key"], ids=["function", "dotted"])
def test_plain_keys_are_nodes_keys(url: str, drive: Drive, function: Any) -> None:
    with on_server(url, caches={"default": {"KEY_FUNCTION": function}}):
        drive(cache, "clear")
        drive(cache, "set", "foo", "bar")
        assert entries().find_one({"key": "cache:foo"})["value"] == "bar"
        assert runtime.adapter().cache.get("foo") == "bar"
        assert drive(cache, "keys", "f*") == ["foo"]
        drive(cache, "incr_version", "foo")
        assert drive(cache, "get", "foo") == "bar", "one key has all versions"
        runtime.adapter().cache.set("from the provider", 1)
        drive(cache, "clear")
        assert runtime.adapter().cache.keys() == [], "with a foreign key function everything goes"


def test_a_key_function_of_ones_own(url: str, drive: Drive) -> None:
    with on_server(url, caches={"default": {"KEY_FUNCTION": other_key, "KEY_PREFIX": "p"}}):
        drive(cache, "clear")
        drive(cache, "set", "k", 1)
        assert entries().find_one({"key": "cache:1/p/k"})["value"] == 1
        assert drive(cache, "keys", "*") == ["k"]
        assert drive(cache, "delete_pattern", "k*") == 1
    with on_server(url, caches={"default": {"KEY_FUNCTION": suffixing_key}}):
        drive(cache, "set", "k", 1)
        assert drive(cache, "get", "k") == 1
        for method in ("keys", "delete_pattern"):
            with pytest.raises(ValueError, match="KEY_FUNCTION"):
                drive(cache, method, "*")
        drive(cache, "clear")
        assert drive(cache, "get", "k") is None


def test_times_to_live(url: str, drive: Drive) -> None:
    with on_server(url, caches={"default": {"TIMEOUT": 50}, "forever": {"TIMEOUT": None}, "never": {"TIMEOUT": 0}}):
        drive(cache, "clear")
        drive(cache, "set", "default", 1)
        assert drive(cache, "ttl", "default") == 50
        drive(caches["forever"], "set", "k", 1)
        assert drive(caches["forever"], "ttl", "k") is None
        drive(caches["never"], "set", "k", 1)
        assert drive(caches["never"], "get", "k") is None
        assert drive(cache, "ttl", "missing") == 0 and drive(cache, "pttl", "missing") == 0
        for timeout, low, high in ((1.5, 1_000, 1_500), (timedelta(seconds=2), 1_500, 2_000), (0.001, 1, 1)):
            drive(cache, "set", "k", 1, timeout)
            assert drive(cache, "pttl", "k") in (0, *range(low, high + 1))
        for timeout in (0, -1, -0.5, timedelta(0), timedelta(seconds=-1)):
            drive(cache, "set", "k", 1)
            drive(cache, "set", "k", 2, timeout)
            assert drive(cache, "get", "k") is None, timeout
            drive(cache, "set", "k", 1)
            assert drive(cache, "touch", "k", timeout) is True
            assert drive(cache, "get", "k") is None
        drive(cache, "set", "k", 1, 100)
        assert drive(cache, "persist", "k") is True and drive(cache, "ttl", "k") is None
        assert drive(cache, "expire", "k", 10) is True and drive(cache, "ttl", "k") == 10
        assert drive(cache, "expire", "missing", 10) is False and drive(cache, "persist", "missing") is False


def test_an_expired_entry_is_gone_for_everything(url: str, drive: Drive) -> None:
    with on_server(url):
        drive(cache, "clear")
        for key in "abcdefgh":
            drive(cache, "set", key, 1, 0.03)
        while drive(cache, "get", "h") is not None:  # the last that was set
            pass
        assert drive(cache, "touch", "b", 100) is False and drive(cache, "get", "b") is None
        with pytest.raises(ValueError, match="not found"):
            drive(cache, "incr", "c")
        assert drive(cache, "has_key", "d") is False
        assert drive(cache, "delete", "e") is False
        assert drive(cache, "get_many", list("abcdefgh")) == {}
        assert drive(cache, "keys") == []
        assert drive(cache, "ttl", "f") == 0
        assert drive(cache, "add", "g", 2, 100) is True and drive(cache, "get", "g") == 2
        assert drive(cache, "get_or_set", "h", 3) == 3
        with pytest.raises(ValueError, match="not found"):
            drive(cache, "incr_version", "f")


def test_none_is_a_value(url: str, drive: Drive) -> None:
    with on_server(url):
        drive(cache, "clear")
        drive(cache, "set", "k", None)
        assert drive(cache, "get", "k", "a miss") is None
        assert drive(cache, "has_key", "k") is True
        assert drive(cache, "get_many", ["k"]) == {"k": None}
        assert drive(cache, "add", "k", 1) is False
        assert drive(cache, "get_or_set", "k", lambda: 1) is None


def test_a_sum_keeps_the_time_to_live(url: str, drive: Drive) -> None:
    with on_server(url):
        drive(cache, "set", "k", 5, 100)
        assert drive(cache, "incr", "k", 2) == 7 and drive(cache, "decr", "k") == 6
        assert 90 < drive(cache, "ttl", "k") <= 100
        drive(cache, "set", "k", 5, None)
        drive(cache, "incr", "k")
        assert drive(cache, "ttl", "k") is None


@pytest.mark.parametrize("value", [1.5, "1", True, None, [1], {"0": 1}, 2**70, (1,), b"1"], ids=repr)
def test_a_sum_with_anything_but_an_integer_is_an_error(url: str, drive: Drive, value: Any) -> None:
    with on_server(url):
        drive(cache, "set", "k", value)
        with pytest.raises(ValueError, match=r"k.*integer"):
            drive(cache, "incr", "k")
        assert drive(cache, "get", "k") == value, "the value is unchanged"


def test_a_sum_that_does_not_fit_is_an_error(mongo_url: str, drive: Drive) -> None:
    with on_server(mongo_url):
        for value, delta in ((2**63 - 1, 1), (-(2**63), -1), (2**62, 2**62)):
            drive(cache, "set", "k", value)
            with pytest.raises(ValueError, match="64 bits"):
                drive(cache, "incr", "k", delta)
            assert drive(cache, "get", "k") == value
        drive(cache, "set", "k", 2**31 - 1)
        assert drive(cache, "incr", "k") == 2**31
        for wrong in (1.5, "1", True, None):
            with pytest.raises(TypeError, match="delta"):
                drive(cache, "incr", "k", wrong)
        with pytest.raises(ValueError, match="delta"):
            drive(cache, "incr", "k", 2**63)


def test_who_computes_a_value_does_not_wait_for_it(mongo_url: str, drive: Drive) -> None:
    recorder = Recorder()
    wait = {"DEFAULT_LOCK_TIMEOUT": 2}
    with on_server(mongo_url, caches={"default": {}}, client_options={"event_listeners": [recorder]}, **wait):
        drive(cache, "delete", "own")
        recorder.clear()

        def layers() -> int:
            assert cache.get_or_set("own", lambda: 1) == 1
            return cache.get_or_set("own", lambda: 2) or 0

        async def alayers() -> int:
            assert await cache.aget_or_set("own", lambda: 1) == 1
            return await cache.aget_or_set("own", lambda: 2) or 0

        assert drive(cache, "get_or_set", "own", layers if drive.kind == "sync" else alayers) == 1
        locked = [one for one in recorder.commands if one.get("findAndModify") == "go_goscope_locks"]
        assert len(locked) == 1, "one attempt at the lock, the outer one's"


def test_who_computed_a_value_waits_for_others_again(url: str, drive: Drive) -> None:
    def fail() -> None:
        raise LookupError("no value")

    with on_server(url, caches={"default": {}}):
        with pytest.raises(LookupError):
            drive(cache, "get_or_set", "failing", fail)
        assert _computed_here.get() == frozenset()
