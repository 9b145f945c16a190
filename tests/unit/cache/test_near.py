"""The near cache by itself: what is kept, for how long, what removes it, and that nobody can change it."""

from __future__ import annotations

import asyncio
import enum
import os
import random
import threading
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from pymongo.errors import AutoReconnect

from goscope_django import conf, locks, operations
from goscope_django.cache import MongoDBCache, computing
from goscope_django.cache.kept import Entry, Kept
from goscope_django.cache.near import MAX_AGE, Near
from goscope_django.cache.options import NearOptions, cache_options
from goscope_django.core.flow import Query
from goscope_django.core.ticks import tick
from goscope_django.mongodb.cache.flows import BATCH, MISSING, CacheFlows
from goscope_django.mongodb.cache.stream import CATCH_UP, ChangeStream
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import ServerClock
from goscope_django.process import counters
from tests.support.commands import on_server
from tests.support.near import OpenStream, asked, forget_those_with_open_streams, near_of
from tests.support.own_fields import make_stale

LONG = {"OPTIONS": {"NEAR": {"MAX_STALE": 3_600}}}


@pytest.fixture
def cache() -> Iterator[Any]:
    """One on mongomock, which has no change streams: it goes by time alone, for an hour."""
    with on_server("mongomock://near", caches={"default": LONG, "other": {}}):
        found = caches["default"]
        found.clear()
        near = near_of(found)
        found.get("anything")
        for one in threading.enumerate():
            if (
                one.name == "goscope-near"
            ):  # it finds out that there are no streams, and forgets what was kept till then
                one.join()
        assert near.stream.alone
        yield found
        found.clear()


def kept(cache: Any, key: str) -> bool:
    return f"cache::1:{key}" in near_of(cache).kept.entries


# Options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, NearOptions(10_000, 67_108_864, 1.0)),
        (False, None),
        (None, None),
        ({}, NearOptions()),
        ({"MAX_ENTRIES": 5, "MAX_BYTES": 7, "MAX_STALE": 0.25}, NearOptions(5, 7, 0.25)),
    ],
)
def test_the_option_is_true_or_says_how_much(given: object, expected: NearOptions | None) -> None:
    assert cache_options("", {"OPTIONS": {"NEAR": given}}).near == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (1, "NEAR"),
        ("yes", "NEAR"),
        ([], "NEAR"),
        ({"MAX_AGE": 3}, "MAX_AGE"),
        ({"MAX_STALES": 3}, "Did you mean 'MAX_STALE'"),
        ({"MAX_ENTRIES": 0}, "MAX_ENTRIES"),
        ({"MAX_ENTRIES": True}, "MAX_ENTRIES"),
        ({"MAX_BYTES": 1.5}, "MAX_BYTES"),
        ({"MAX_STALE": 0}, "MAX_STALE"),
        ({"MAX_STALE": -1}, "MAX_STALE"),
        ({"MAX_STALE": "1"}, "MAX_STALE"),
        ({"MAX_STALE": float("nan")}, "MAX_STALE"),
    ],
)
def test_what_the_option_can_not_be_is_named(given: object, named: str) -> None:
    with pytest.raises(conf.BadSettings, match=named):
        cache_options("", {"OPTIONS": {"NEAR": given}})
    with (
        on_server("mongomock://", caches={"default": {"OPTIONS": {"NEAR": given}}}),
        pytest.raises(ImproperlyConfigured),
    ):
        caches["default"].get("a")


# Who stays


def filled(kept: Kept, names: list[int], size: int = 1) -> float:
    """Read these; the share of hits."""
    hits = 0
    for name in map(str, names):
        found = kept.entries.get(name)
        if found is None:
            kept.put(Entry(name, name, 0, None, size, 0.0))
        else:
            found.uses += 1
            hits += 1
    return hits / len(names)


def test_it_holds_no_more_entries_and_bytes_than_it_may() -> None:
    few, small = Kept(50, 10**9), Kept(10**9, 5_000)
    numbers = random.Random(1)
    for _ in range(20):
        names = [int(numbers.paretovariate(0.7)) % 500 for _ in range(200)]
        filled(few, names)
        filled(small, names, size=numbers.randrange(10, 400))
        assert len(few) <= 50
        assert small.bytes <= 5_000
        assert small.bytes == sum(one.size for one in small.entries.values())
    assert few.evicted > 0
    assert small.evicted > 0


def test_an_entry_that_would_push_out_many_is_not_kept() -> None:
    kept = Kept(100, 10_000)
    kept.put(Entry("small", "small", 0, None, 100, 0.0))
    kept.put(Entry("large", "large", 0, None, 1_001, 0.0))
    assert list(kept.entries) == ["small"]
    kept.put(Entry("small", "small", 0, None, 1_001, 0.0))
    assert not kept.entries, "its old value must not stay"
    assert kept.bytes == 0


def test_a_walk_through_many_keys_does_not_flush_what_is_used() -> None:
    kept, hot = Kept(1_000, 10**9), list(range(500))
    for _ in range(3):
        filled(kept, hot)
    filled(kept, list(range(10_000, 20_000)))
    assert filled(kept, hot) > 0.9


# Hits


def test_a_hit_asks_nobody(cache: Any) -> None:
    cache.set_many({"a": 1, "b": [2], "c": {"d": datetime(2026, 1, 2, tzinfo=UTC)}, "e": (1, 2)})
    expected = {"a": 1, "b": [2], "c": {"d": datetime(2026, 1, 2, tzinfo=UTC)}, "e": (1, 2)}
    assert cache.get_many(["a", "b", "c", "e", "none"]) == expected
    caches["other"].set("none", 1)  # also a write of this process, but a miss was not kept anyway
    before = near_of(cache).figures.hits
    assert cache.get_many(["a", "b", "c", "e"]) == expected
    assert (cache.get("a"), cache.get("b"), asyncio.run(cache.aget("c"))) == (1, [2], expected["c"])
    assert near_of(cache).figures.hits == before + 7
    assert cache.get("none") == 1


def test_who_changes_what_he_got_changes_nothing_for_others(cache: Any) -> None:
    value = {"list": [1, 2], "when": datetime(2026, 1, 2, tzinfo=UTC), "set": {1}}
    cache.set_many({"mixed": value, "plain": [[1], {"a": []}]})
    for _ in range(3):
        found = cache.get("mixed")
        assert found == value
        found["list"].append(3)
        found["set"].add(4)
        found["more"] = 1
        plain = cache.get("plain")
        assert plain == [[1], {"a": []}]
        plain[0].append(2)
        plain[1]["a"].append(2)
    assert kept(cache, "mixed")
    assert kept(cache, "plain")


def test_types_are_those_that_the_server_would_give(cache: Any) -> None:
    from bson.binary import Binary
    from bson.int64 import Int64

    values = [
        True,
        0,
        1.5,
        "ü",
        b"\0",
        None,
        2**70,
        Int64(3),
        Binary(b"x", 5),
        [Binary(b"x", 5)],
        {"a": Int64(1)},
        {1: 2},
    ]
    for value in values:
        cache.set("x", value)
        expected = caches["other"].get("x")
        for _ in range(3):
            found = cache.get("x")
            assert (type(found), found) == (type(expected), expected)
            if isinstance(found, (list, dict)):
                inner = list(found.values()) if isinstance(found, dict) else found
                theirs = list(expected.values()) if isinstance(expected, dict) else expected
                assert [type(one) for one in inner] == [type(one) for one in theirs]


WRITES: dict[str, Callable[[Any], object]] = {
    "set": lambda cache: cache.set("k", 2),
    "set_xx": lambda cache: cache.set("k", 2, xx=True),
    "set_zero": lambda cache: cache.set("k", 2, timeout=0),
    "set_many": lambda cache: cache.set_many({"k": 2, "l": 3}),
    "set_many_zero": lambda cache: cache.set_many({"k": 2}, timeout=0),
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k", "l"]),
    "touch_zero": lambda cache: cache.touch("k", 0),
    "expire_at": lambda cache: cache.expire_at("k", 1),
    "incr": lambda cache: cache.incr("k"),
    "decr": lambda cache: cache.decr("k"),
    "incr_version": lambda cache: cache.incr_version("k"),
    "delete_pattern": lambda cache: cache.delete_pattern("k*"),
    "delete_pattern_glob": lambda cache: cache.delete_pattern("?"),
    "clear": lambda cache: cache.clear(),
    "remove_all": lambda cache: cache.remove_all(),
    "strict": lambda cache: cache.strict().set("k", 2),
    "another alias": lambda cache: caches["other"].set("k", 2),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_write_of_this_process_is_seen_at_once(cache: Any, name: str) -> None:
    cache.set("k", 1)
    assert cache.get("k") == 1
    assert kept(cache, "k")
    WRITES[name](cache)
    assert not kept(cache, "k") or name == "set"
    assert cache.get("k", "none") == caches["other"].get("k", "none") != 1


def test_the_provider_without_django_is_this_process_too(cache: Any) -> None:
    from goscope_django import runtime

    cache.set("k", 1)
    assert cache.get("k") == 1
    runtime.adapter().cache.set(":1:k", 2)
    assert cache.get("k") == 2


def test_what_must_ask_the_server_does(cache: Any) -> None:
    cache.set("k", 1, 300)
    assert cache.get("k") == 1
    # Behind our back, as another process would.
    near_of(cache).stream._connection().sync().database["go_goscope_cache"].delete_many({})
    assert cache.get("k") == 1
    assert not cache.has_key("k")
    assert cache.ttl("k") == 0
    assert not cache.touch("k")
    with pytest.raises(ValueError, match="not found"):
        cache.incr("k")
    assert cache.strict().get("k") is None
    assert cache.add("k", 5)
    assert cache.get("k") == 5


def test_without_change_streams_an_entry_serves_for_max_stale_at_most() -> None:
    with on_server("mongomock://near-short", caches={"default": {"OPTIONS": {"NEAR": {"MAX_STALE": 0.2}}}}):
        cache: Any = caches["default"]
        cache.set("k", 1)
        while not near_of(cache).stream.alone:
            cache.get("k")
        raw = near_of(cache).stream._connection().sync().database["go_goscope_cache"]
        raw.update_one({"key": "cache::1:k"}, {"$set": {"value": 0}})
        for number in range(1, 4):
            cache.get("k")
            raw.update_one({"key": "cache::1:k"}, {"$set": {"value": number}})
            changed, asked = tick(), tick()
            while (found := cache.get("k")) != number:
                assert found == number - 1
                assert asked - changed <= 0.2
                asked = tick()


# Reading while something changes: the flow is run by hand


class Reading:
    """A near cache and one reading of ``cache:k`` that has not been answered yet."""

    def __init__(self) -> None:
        self.stream = OpenStream()
        self.near = Near(NearOptions(), self.stream)
        self.flows = CacheFlows(Codec(pickle=False))
        self.name: Any = "cache:k"

    def begin(self) -> None:
        self.flow = self.near.get(ServerClock(), self.flows, "cache:k")
        assert asked(self.flow).method == "fresh"

    def answer(self, value: Any = "old", served: str = "primary", **fields: Any) -> Any:
        now = datetime(2026, 1, 1)  # noqa: DTZ001  as the driver gives it
        row = {"_id": self.name, "key": "cache:k", "value": value, "expiresAt": None, "now": now, **fields}
        try:
            self.flow.send(([row], served))
        except StopIteration as stop:
            return stop.value
        raise AssertionError("it asks again")

    @property
    def kept(self) -> bool:
        return self.near.found(self.flows, "cache:k") is not MISSING


def read(change: Callable[[Reading], object], reading: Reading | None = None, **answer: Any) -> Reading:
    reading = reading or Reading()
    reading.begin()
    change(reading)
    assert reading.answer(**answer) == "old", "whoever asked gets what was read in any case"
    return reading


@pytest.fixture(autouse=True)
def no_listeners_left() -> Iterator[None]:
    yield
    forget_those_with_open_streams()


def test_what_was_read_is_kept() -> None:
    assert read(lambda reading: None).kept


def written_meanwhile(*keys: str, done: int) -> Callable[[Reading], None]:
    """This process writes these keys, or anything; so many of the writes have ended."""

    def change(reading: Reading) -> None:
        for key in keys or (None,):
            reading.near.writing(None if key is None else {key})
        for key in (keys or (None,))[:done]:
            reading.near.wrote(None if key is None else {key})

    return change


def changed_meanwhile(*names: str) -> Callable[[Reading], None]:
    """The stream tells of these."""

    def change(reading: Reading) -> None:
        for name in names or (reading.name,):
            reading.near.changed(name)

    return change


def empties(**now: Any) -> Callable[[Reading], None]:
    """The stream breaks, and is like this then."""

    def change(reading: Reading) -> None:
        reading.near.emptied()
        for name, value in now.items():
            setattr(reading.stream, name, value)

    return change


INTERRUPTIONS: dict[str, Callable[[Reading], object]] = {
    "a change": changed_meanwhile("cache:k"),
    "a change of the _id": changed_meanwhile(),
    "a write that ended": written_meanwhile("cache:k", done=1),
    "a write that runs": written_meanwhile("cache:k", done=0),
    "two writes, one of which runs": written_meanwhile("cache:k", "cache:k", done=1),
    "a clear that ended": written_meanwhile(done=1),
    "a clear that runs": written_meanwhile(done=0),
    "another stream": lambda one: setattr(one.stream, "generation", 2),
    "the stream broke": empties(generation=0),
    "another stream after a break": empties(generation=2),
    "another primary": lambda one: setattr(one.stream, "served", "another"),
    "no streams any more": lambda one: setattr(one.stream, "alone", True),
    "very many changes": changed_meanwhile("cache:k", *(f"cache:{number}" for number in range(12_000))),
}


@pytest.mark.parametrize("name", [*INTERRUPTIONS])
@pytest.mark.parametrize("name_of_it", ["cache:k", ObjectId("507f1f77bcf86cd799439011")], ids=["our _id", "Node's _id"])
def test_a_reading_that_may_be_old_is_not_kept(name: str, name_of_it: Any) -> None:
    reading = Reading()
    reading.name = name_of_it
    assert not read(INTERRUPTIONS[name], reading).kept


def test_these_tests_see_a_cache_that_keeps_late_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Near, "_note", lambda self, name: None)
    assert read(changed_meanwhile("cache:k")).kept
    assert read(written_meanwhile("cache:k", done=1)).kept


def side_by_side(number: int = 2) -> list[Reading]:
    """Readings of one near cache that have begun one after the other, and have not been answered."""
    first = Reading()
    others = [Reading() for _ in range(number - 1)]
    for one in others:
        one.near, one.stream = first.near, first.stream
    for one in (first, *others):
        one.begin()
    return [first, *others]


@pytest.mark.parametrize("values", [("old", "new"), ("new", "old"), (1, True), (-1, -2), ([1], [2])], ids=repr)
def test_of_readings_at_the_same_time_that_differ_none_is_kept(values: tuple[Any, Any]) -> None:
    first, second = side_by_side()
    assert second.answer(values[0]) == values[0]
    assert first.answer(values[1]) == values[1]
    assert not first.kept
    assert read(lambda one: None, first).kept, "the next one is"


@pytest.mark.parametrize("value", ["old", [1], {"a": (1, 2)}, Decimal("sNaN"), None, 1], ids=repr)
def test_readings_at_the_same_time_that_are_alike_are_kept(value: Any) -> None:
    for reading in (readings := side_by_side(4)):
        reading.answer(Codec(pickle=False).pack("cache:k", value))
    assert readings[0].kept


def test_readings_that_never_end_at_once_are_kept_when_they_are_alike_again() -> None:
    readings = side_by_side(3)
    for number in range(6):
        one = readings[number % 3]
        one.answer("old" if number == 1 else "new")
        one.begin()  # so one is always under way
    assert readings[0].kept
    assert readings[0].near.found(readings[0].flows, "cache:k") == "new"


def test_a_reading_that_found_nothing_is_not_followed_by_what_was_there_before() -> None:
    first, second = side_by_side()
    with pytest.raises(StopIteration):
        second.flow.send(([], "primary"))
    first.answer("old")
    assert not first.kept


@pytest.mark.parametrize("given", ["nothing", "not to be kept", "by another primary"])
def test_what_was_kept_goes_when_something_newer_was_given(given: str) -> None:
    reading = read(lambda one: None)
    assert reading.kept
    reading.begin()
    if given == "nothing":
        with pytest.raises(StopIteration):
            reading.flow.send(([], "primary"))
    elif given == "not to be kept":
        reading.name = 5
        reading.answer("new")
    else:
        reading.answer("new", served="another")
    assert not reading.kept


def test_what_was_kept_stays_when_the_same_was_given() -> None:
    reading = read(lambda one: None)
    reading.begin()
    reading.answer("old", served="another")
    assert reading.kept


def test_a_change_of_another_entry_does_not_matter() -> None:
    assert read(changed_meanwhile("cache:x")).kept
    assert read(written_meanwhile("cache:y", done=0)).kept


def test_a_reading_that_another_primary_answered_is_not_kept() -> None:
    assert not read(lambda one: None, served="unsure").kept


def test_a_reading_that_began_before_the_stream_is_not_kept() -> None:
    reading = Reading()
    reading.stream.generation = 0
    assert not read(lambda one: setattr(one.stream, "generation", 1), reading).kept


def test_a_reading_that_was_given_up_leaves_nothing_behind() -> None:
    reading = Reading()
    reading.begin()
    reading.flow.close()
    assert read(lambda one: None, reading).kept
    assert not reading.near._reading


@pytest.mark.parametrize("name_of_it", ["cache:other", 5, None, {"a": 1}], ids=repr)
def test_an_id_that_the_stream_says_nothing_of_is_not_kept(name_of_it: Any) -> None:
    reading = Reading()
    reading.name = name_of_it
    assert not read(lambda one: None, reading).kept


def test_an_entry_of_node_is_removed_by_its_object_id() -> None:
    reading = Reading()
    reading.name = ObjectId()
    assert read(lambda one: None, reading).kept
    entries = reading.near.kept.entries
    entries["cache:k"].uses = 0
    reading.near.changed(ObjectId())
    assert "cache:k" in entries
    reading.near.changed(reading.name)
    assert "cache:k" not in entries


# What was changed and had served is read again


class Answers:
    """An executor by which all readings find ``values`` (by stored key), or fail."""

    clock = ServerClock()

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: list[Any] = []

    def __call__(self, command: Any) -> Any:
        assert isinstance(command, Query)
        assert command.method == "fresh"
        self.asked.append(command.args[0])
        if not self.values:
            raise AutoReconnect("the server is away")
        now = datetime(2026, 1, 1)  # noqa: DTZ001  as the driver gives it
        return [
            {"_id": f"cache:{key}", "key": f"cache:{key}", "value": value, "expiresAt": None, "now": now}
            for key, value in self.values.items()
        ], "primary"


def served(reading: Reading | None = None) -> Reading:
    """One that is kept and has served."""
    reading = read(lambda one: None, reading)
    assert reading.kept
    return reading


def test_what_was_changed_and_has_served_is_read_again_at_once_and_serves_until_then() -> None:
    reading, executor = served(), Answers(k="new")
    reading.near.changed("cache:k")
    assert reading.near.found(reading.flows, "cache:k") == "old"
    reading.near.catch_up(executor)  # type: ignore[arg-type]
    assert executor.asked == [{"key": "cache:k"}]
    assert reading.near.found(reading.flows, "cache:k") == "new"
    reading.near.catch_up(executor)  # type: ignore[arg-type]
    assert len(executor.asked) == 1
    assert reading.near.figures.renewed == 1


def test_it_is_found_by_the_key_of_callers_as_before(cache: Any) -> None:
    cache.set("k", "old")
    assert cache.get("k") == cache.get("k") == "old"
    near = near_of(cache)
    near.changed("cache::1:k")
    raw = near.stream._connection().sync()
    raw.database["go_goscope_cache"].update_one({"key": "cache::1:k"}, {"$set": {"value": "new one"}})
    near.catch_up(raw)  # type: ignore[arg-type]
    assert near.kept.named["k"].value == "new one"
    assert near.kept.named["k"].counted == len("new one")
    assert cache.get("k") == "new one"


def test_what_has_not_served_is_removed() -> None:
    reading = read(lambda one: None)
    reading.near.changed("cache:k")
    assert not reading.kept
    reading.near.catch_up(Answers())  # type: ignore[arg-type]


def test_each_reading_is_paid_for_by_a_hit() -> None:
    reading, executor = read(lambda one: None), Answers(k="new")
    for hits, renewals in ((1, 1), (0, 0), (2, 2), (50, 4)):
        read(lambda one: None, reading)
        reading.near.kept.entries["cache:k"].uses += hits
        executor.asked.clear()
        for _ in range(10):
            reading.near.changed("cache:k")
            reading.near.catch_up(executor)  # type: ignore[arg-type]
        assert len(executor.asked) == renewals, hits
        assert "cache:k" not in reading.near.kept.entries


@pytest.mark.parametrize("since", [0.0, 0.9])
def test_what_serves_on_is_never_older_than_max_stale(since: float) -> None:
    reading = served()
    reading.stream.proof = tick() - since
    reading.near.changed("cache:k")
    until = reading.near.kept.entries["cache:k"].until
    assert until <= reading.stream.proof + 1.0
    assert until <= tick() + CATCH_UP
    reading.stream.proof = tick()
    reading.near.changed("cache:k")
    assert reading.near.kept.entries.get("cache:k", Entry("", "", 0, "", 0, 0)).until <= until


def test_what_can_not_be_read_again_is_removed() -> None:
    reading = served()
    reading.near.changed("cache:k")
    reading.near.catch_up(Answers())  # type: ignore[arg-type]
    assert not reading.kept


class Reported(Answers):
    """One that is to report something first: that an entry could not be decoded."""

    def __call__(self, command: Any) -> Any:
        rows, served = super().__call__(command)
        return [*rows, {**rows[0], "_id": "cache:bad", "key": "cache:bad", "value": {"__goscope__": "nothing"}}], served


def test_one_that_can_not_be_decoded_leaves_the_others() -> None:
    reading = served()
    bad = Entry("cache:bad", "cache:bad", 0, 1, 100, float("inf"))
    bad.uses = 1
    reading.near.kept.put(bad)
    reading.near.changed("cache:k")
    reading.near.changed("cache:bad")
    reading.near.catch_up(Reported(k="new"))  # type: ignore[arg-type]
    assert reading.near.found(reading.flows, "cache:k") == "new"
    assert "cache:bad" not in reading.near.kept.entries


class TooLarge(Answers):
    def __call__(self, command: Any) -> Any:
        return None, "primary"


def test_what_does_not_fit_in_one_reply_is_removed() -> None:
    reading = served()
    reading.near.changed("cache:k")
    reading.near.catch_up(TooLarge())  # type: ignore[arg-type]
    assert not reading.kept
    assert not reading.near.figures.renewed


class Ending(Answers):
    def __call__(self, command: Any) -> Any:
        raise SystemExit(3)


def test_what_ends_the_thread_leaves_nothing_old() -> None:
    reading = served()
    reading.near.changed("cache:k")
    with pytest.raises(SystemExit):
        reading.near.catch_up(Ending())  # type: ignore[arg-type]
    assert not reading.kept


def test_large_values_are_not_read_again() -> None:
    reading = served()
    large = Entry("cache:large", "cache:large", 0, b"", 2**20 + 1, float("inf"))
    large.uses = 1
    reading.near.kept.put(large)
    reading.near.changed("cache:large")
    assert "cache:large" not in reading.near.kept.entries
    reading.near.changed("cache:k")
    assert reading.kept


def test_what_has_served_often_is_read_again_after_others_made_room() -> None:
    kept = Kept(10, 10**6)
    often = Entry("often", "often", 0, 1, 10, 0)
    kept.put(often)
    often.uses, often.paid = 1_000, 997
    for number in range(30):
        kept.put(Entry(str(number), str(number), 0, 1, 10, 0))
    assert often.paid == 0


def test_what_is_gone_is_removed() -> None:
    reading = served()
    reading.near.changed("cache:k")
    reading.near.catch_up(Answers(x=1))  # type: ignore[arg-type]
    assert not reading.kept


def test_what_is_being_written_is_read_again_when_that_has_ended() -> None:
    reading, executor = served(), Answers(k="new")
    reading.near.writing({"cache:k"})
    reading.near.changed("cache:k")
    reading.near.catch_up(executor)  # type: ignore[arg-type]
    assert executor.asked == []
    reading.near.wrote({"cache:k"})
    reading.near.catch_up(executor)  # type: ignore[arg-type]
    assert reading.near.found(reading.flows, "cache:k") == "new"


def test_many_are_read_again_with_one_command_and_no_more_than_one() -> None:
    reading, executor = served(), Answers(x=1)
    entries = reading.near.kept
    for number in range(BATCH + 500):
        one = Entry(f"cache:{number}", f"cache:{number}", 0, 1, 100, float("inf"))
        one.uses = 1
        entries.put(one)
    for number in range(BATCH + 500):
        reading.near.changed(f"cache:{number}")
    assert len(entries) == BATCH + 1
    reading.near.catch_up(executor)  # type: ignore[arg-type]
    assert [len(one["key"]["$in"]) for one in executor.asked] == [BATCH]


# What this process sets


def setting(reading: Reading, value: Any = "new") -> Generator[Any, Any, None]:
    """A ``set`` that was sent and has not been answered."""
    flow = reading.near.set(ServerClock(), reading.flows, "cache:k", value, 300_000)
    asked(flow)
    reading.near.writing({"cache:k"})
    return flow


def answered(reading: Reading, flow: Generator[Any, Any, None], primary: object = "primary") -> None:
    reading.near.wrote({"cache:k"})
    with pytest.raises(StopIteration):
        asked(flow, {"now": datetime(2026, 1, 1)}, primary)  # noqa: DTZ001  as the driver gives it


@pytest.mark.parametrize("value", ["new", 1, None, b"b", [1, {"a": 2.5}], {"a": ["b"]}], ids=repr)
def test_what_is_set_takes_the_place_of_what_was_read(value: Any) -> None:
    reading = served()
    flow = setting(reading, value)
    assert reading.near.found(reading.flows, "cache:k") == "old", "until the write has ended"
    answered(reading, flow)
    assert reading.near.found(reading.flows, "cache:k") == value
    assert reading.near.kept.entries["cache:k"].until <= tick() + MAX_AGE


def test_a_value_that_is_changed_after_it_was_set_is_kept_as_it_was() -> None:
    reading, value = served(), {"a": [1]}
    flow = setting(reading, value)
    value["a"].append(2)
    answered(reading, flow)
    assert reading.near.found(reading.flows, "cache:k") == {"a": [1]}


def test_what_is_set_with_one_list_in_two_places_is_kept_as_it_would_be_read_back() -> None:
    reading, one = served(), [1]
    answered(reading, setting(reading, {"a": one, "b": one}))
    found = reading.near.found(reading.flows, "cache:k")
    found["a"].append(2)
    assert found == {"a": [1, 2], "b": [1]}


def test_a_write_that_comes_between_the_end_of_a_set_and_its_keeping_is_the_newer_one() -> None:
    reading = served()
    flow = setting(reading, "older")
    reading.near.wrote({"cache:k"})
    written_meanwhile("cache:k", done=1)(reading)
    with pytest.raises(StopIteration):
        asked(flow, {"now": datetime(2026, 1, 1)})  # noqa: DTZ001  as the driver gives it
    assert not reading.kept


def test_what_was_set_while_the_primary_changed_is_not_kept() -> None:
    reading = served()
    answered(reading, setting(reading), primary="another")
    assert not reading.kept


@pytest.mark.parametrize("why", ["it has ended", "the collection is sharded"])
def test_what_is_set_is_not_kept_in_place_of_one_that_may_not_be_the_same_document(why: str) -> None:
    reading, clock = served(), ServerClock()
    if why == "it has ended":
        reading.near.kept.entries["cache:k"].until = tick()
    else:
        clock.by_id = False
    flow = reading.near.set(clock, reading.flows, "cache:k", "new", None)
    asked(flow)
    reading.near.writing({"cache:k"})
    answered(reading, flow)
    assert not reading.kept


@pytest.mark.parametrize("value", [Decimal(1), (1, 2), UUID(int=1)], ids=repr)
def test_of_what_may_be_read_back_otherwise_nothing_is_kept(value: Any) -> None:
    reading = served()
    answered(reading, setting(reading, value))
    assert not reading.kept


def test_what_was_never_read_is_not_kept() -> None:
    reading = Reading()
    answered(reading, setting(reading))
    assert not reading.kept


def test_an_entry_of_node_is_not_kept_when_it_is_set() -> None:
    reading = Reading()
    reading.name = ObjectId()
    served(reading)
    answered(reading, setting(reading))
    assert not reading.kept


def another_reading(reading: Reading) -> None:
    other = Reading()
    other.near, other.stream = reading.near, reading.stream
    other.begin()
    other.answer("newer")


MEANWHILE = dict(INTERRUPTIONS)
MEANWHILE["another reading gave another value"] = another_reading
MEANWHILE["another set"] = lambda one: answered(one, setting(one, "other"))


@pytest.mark.parametrize("name", MEANWHILE)
def test_what_is_set_is_not_kept_if_anything_else_happened(name: str) -> None:
    reading = served()
    flow = setting(reading)
    MEANWHILE[name](reading)
    answered(reading, flow)
    reading.near.wrote({"cache:k"})  # of what still runs
    assert not reading.kept


def test_what_is_sent_again_in_another_way_is_not_kept() -> None:
    reading = served()
    flow = setting(reading)
    reading.near.wrote({"cache:k"})
    reading.near.writing({"cache:k"})  # by the key of a document that has an _id of Node's
    answered(reading, flow)
    assert not reading.kept
    assert not reading.near._setting


def test_the_next_set_is_kept_again() -> None:
    reading = served()
    for name in ("a write that runs", "a change"):
        flow = setting(reading)
        MEANWHILE[name](reading)
        answered(reading, flow)
        reading.near.wrote({"cache:k"})
        served(reading)
        answered(reading, setting(reading, "newest"))
        assert reading.near.found(reading.flows, "cache:k") == "newest"


def test_a_reading_that_began_before_a_set_does_not_replace_what_was_set() -> None:
    reading = served()
    reading.begin()
    answered(reading, setting(reading))
    reading.answer("old")
    assert not reading.kept


def test_a_write_that_failed_leaves_nothing() -> None:
    reading = served()
    flow = setting(reading)
    reading.near.wrote({"cache:k"})
    with pytest.raises(AutoReconnect):
        flow.throw(AutoReconnect("its answer was lost"))
    assert not reading.kept
    assert not reading.near._reading


def test_expiry_is_counted_from_before_the_reading_by_the_servers_time() -> None:
    before = tick()
    ends = datetime(2026, 1, 1, 0, 0, 20)  # noqa: DTZ001
    reading = read(lambda one: None, expiresAt=ends)
    entry = reading.near.kept.entries["cache:k"]
    assert before + 19.9 < entry.until <= tick() + 20
    reading = read(lambda one: None)
    entry = reading.near.kept.entries["cache:k"]
    assert before + MAX_AGE <= entry.until <= tick() + MAX_AGE


def test_a_hit_needs_a_proof_that_is_new_enough() -> None:
    reading = read(lambda one: None)
    reading.stream.proof = tick() - 0.5
    assert reading.kept
    reading.stream.proof = tick() - 1.01
    assert not reading.kept
    reading.stream.proof = tick()
    assert reading.kept, "it is there still: only the proof was missing"


@pytest.mark.parametrize(
    "value", [[{"a": 1, "b": {"a": 2}}] * 3, [{1: 2}, {True: 3}, {1.0: 4}], {"": [{}, []]}], ids=repr
)
def test_what_serves_with_common_keys_is_the_same(cache: Any, value: Any) -> None:
    cache.set("k", value)
    for _ in range(4):
        found = cache.get("k")
        assert repr(found) == repr(value)
        assert all(one is not two for one, two in zip(found, cache.get("k"), strict=True) if isinstance(one, dict))


def test_an_array_as_a_key_is_nobodys_entry() -> None:
    reading = Reading()
    reading.begin()
    assert reading.answer(key=["cache:k"]) is MISSING
    assert not reading.kept


def test_caches_of_one_place_share_what_they_keep(cache: Any) -> None:
    entry = {"BACKEND": "goscope_django.cache.MongoDBCache", **LONG}
    other: Any = MongoDBCache("", {name: value for name, value in entry.items() if name != "BACKEND"})
    cache.set("k", 1)
    assert cache.get("k") == 1
    other.get("k")
    assert near_of(other) is near_of(cache)


def test_hits_are_counted_for_the_alias_and_its_namespace(cache: Any) -> None:
    cache.set("user:1", "x" * 10)
    cache.get("user:1")
    row = cache._figures.row("user:1")
    before = list(row)
    for _ in range(5):
        cache.get("user:1")
    assert (row[counters.HITS] - before[counters.HITS], row[counters.READ] - before[counters.READ]) == (5, 50)
    assert row[counters.MISSES] == before[counters.MISSES]
    sums = counters.Counted().events
    cache.get("user:1")
    assert counters.Counted().events["near_hits"] == sums["near_hits"] + 1


def test_a_key_is_not_taken_for_another_that_equals_it(cache: Any) -> None:
    class Kind(str, enum.Enum):  # noqa: UP042  whose text is not its value
        A = "a"

    assert Kind.A.value == "a"
    assert str(Kind.A) != "a"
    cache.set("a", 1)
    cache.set(Kind.A, 2)
    for _ in range(3):
        assert (cache.get("a"), cache.get(Kind.A)) == (1, 2)
    cache.set(5, "number")
    cache.set("5", "number too")
    for _ in range(3):
        assert cache.get(5) == cache.get("5") == "number too"


def test_another_version_or_prefix_of_the_object_is_another_key(cache: Any) -> None:
    cache.set("k", "one")
    cache.set("k", "two", version=2)
    for _ in range(3):
        assert (cache.get("k"), cache.get("k", version=2)) == ("one", "two")
    cache.version = 2
    try:
        for _ in range(3):
            assert (cache.get("k"), cache.get("k", version=1)) == ("two", "one")
    finally:
        cache.version = 1
    assert cache.get("k") == "one"
    cache.key_prefix = "other"
    try:
        assert cache.get("k") is None
    finally:
        cache.key_prefix = ""
    assert cache.get("k") == "one"


def test_aliases_with_other_options_share_nothing_that_they_may_not() -> None:
    signed = {"OPTIONS": {**LONG["OPTIONS"], "SIGN": True}}
    prefixed = {**LONG, "KEY_PREFIX": "p"}
    with on_server("mongomock://near-options", caches={"default": LONG, "signed": signed, "prefixed": prefixed}):
        plain, sealed, other = (caches[name] for name in ("default", "signed", "prefixed"))
        plain.set("k", 1)
        for _ in range(3):
            assert plain.get("k") == 1
            assert sealed.get("k") is None, "it is not signed"
            assert other.get("k") is None
        sealed.set("k", 2)
        for _ in range(3):
            assert (plain.get("k"), sealed.get("k")) == (2, 2)


def test_a_removed_entry_is_not_found_by_the_key_either() -> None:
    kept = Kept(2, 10**6)
    for number in range(5):
        entry = Entry(f"cache:{number}", f"cache:{number}", 0, None, 1, 0.0)
        kept.put(entry)
        kept.call(entry, str(number), [0], 0)
        assert kept.named.keys() == {one.key for one in kept.entries.values()}
    gone = kept.entries["cache:4"]
    kept.remove("cache:4")
    kept.call(gone, "late", [0], 0)
    assert "4" not in kept.named
    assert "late" not in kept.named
    kept.clear()
    assert not kept.named


def test_the_state_says_what_this_process_keeps(cache: Any) -> None:
    cache.set("k", "x")
    cache.get("k")
    cache.get("k")
    (alias,) = [one for one in operations.state().cache.aliases if one.alias == "default"]
    assert alias.near is not None
    assert alias.near.entries >= 1
    assert alias.near.hits >= 1
    assert alias.near.stream == "none"
    assert alias.near.process.endswith(f":{os.getpid()}")
    (other,) = [one for one in operations.state().cache.aliases if one.alias == "other"]
    assert other.near is None


def test_an_entry_with_tags_is_read_and_not_kept(cache: Any) -> None:
    cache.set("k", 1, tags=("product:7",))
    for _ in range(3):
        assert cache.get("k") == 1
        assert cache.get_many(["k"]) == {"k": 1}
    assert not kept(cache, "k")
    cache.invalidate_tags("product:7")
    assert cache.get("k") is None
    assert cache.get_many(["k"]) == {}


def owned(**fields: Any) -> dict[str, Any]:
    written_at = datetime(2025, 12, 31)  # noqa: DTZ001  as the driver gives it
    ends = datetime(2026, 1, 1, 0, 0, 50)  # noqa: DTZ001
    times = {"updatedAt": written_at, "expiresAt": ends}
    return {**times, "ownFor": times, **fields}


def test_a_value_is_kept_until_it_is_not_fresh_any_more() -> None:
    fresh = datetime(2026, 1, 1, 0, 0, 5)  # noqa: DTZ001
    reading = read(lambda one: None, **owned(freshUntil=fresh))
    assert reading.near.kept.entries["cache:k"].until <= tick() + 5
    # Node has written it since, so the field says nothing.
    later = datetime(2026, 1, 1, 0, 0, 1)  # noqa: DTZ001
    reading = read(lambda one: None, **owned(freshUntil=fresh, updatedAt=later))
    assert reading.near.kept.entries["cache:k"].until > tick() + 40


def test_a_stale_value_is_a_miss_and_not_kept() -> None:
    reading = Reading()
    reading.begin()
    past = datetime(2025, 12, 31, 23)  # noqa: DTZ001
    assert reading.answer(**owned(freshUntil=past)) is MISSING
    assert not reading.kept


def test_a_fresh_value_that_may_be_stale_later_is_kept(cache: Any) -> None:
    def never() -> Any:
        raise AssertionError("it is there")

    assert cache.get_or_set("k", lambda: [1], 60, stale=60) == [1]
    for _ in range(3):
        assert cache.get_or_set("k", never, 60, stale=60) == [1]
        assert asyncio.run(cache.aget_or_set("k", never, 60, stale=60)) == [1]
    assert kept(cache, "k")
    assert near_of(cache).figures.hits >= 5
    cache.get_or_set("k", never, 60, stale=60).append(2)
    assert cache.get_or_set("k", never, 60, stale=60) == [1]


def test_a_stale_value_serves_and_is_not_kept(cache: Any) -> None:
    cache.get_or_set("k", lambda: "old", 60, stale=60)
    make_stale("k")
    with locks.lock("get_or_set:cache::1:k"):  # somebody else computes
        assert cache.get_or_set("k", lambda: "new", 60, stale=60) == "old"
        assert not kept(cache, "k")
    computing._elsewhere.clear()
    assert cache.get_or_set("k", lambda: "new", 60, stale=60) == "new"
    assert cache.get("k") == "new"


@pytest.mark.parametrize("alias", ["default", "other"])
def test_many_come_in_the_order_in_which_they_were_asked_for(cache: Any, alias: str) -> None:
    asked = [f"key-{number}" for number in random.Random(1).sample(range(100), 20)]
    found = caches[alias]
    found.set_many(dict.fromkeys(sorted(asked), 1))
    for _ in range(2):
        found.get(asked[7])  # one of them may be near
        assert list(found.get_many([*asked[:10], "none", *asked[10:]])) == asked
        assert list(asyncio.run(found.aget_many(asked))) == asked


def test_what_another_secret_signed_is_not_near_either() -> None:
    signed = {"OPTIONS": {"NEAR": {"MAX_STALE": 3_600}, "SIGN": True}}
    with on_server("mongomock://near-secret", caches={"default": signed}):
        subject: Any = caches["default"]
        subject.set("k", 1)
        while not kept(subject, "k"):  # the stream finds out that there are none
            assert subject.get("k") == 1
        with override_settings(SECRET_KEY="another"):
            assert subject.get("k") is None
        with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
            assert subject.get("k") == 1


@pytest.mark.parametrize(("max_stale", "wait"), [(0.001, 0.02), (0.06, 0.02), (0.3, 0.1), (1.0, 1 / 3), (3_600.0, 1.0)])
def test_the_server_is_asked_three_times_in_max_stale_and_never_without_end(max_stale: float, wait: float) -> None:
    subject = ChangeStream(lambda: pytest.fail("it opens nothing"), "cache:")
    Near(NearOptions(max_stale=max_stale), subject)
    assert subject.wait == pytest.approx(wait)
