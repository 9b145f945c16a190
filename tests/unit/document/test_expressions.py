"""What the server computes: the server and mongomock agree, and ranges hold the keys that begin with a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import mongomock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient

from goscope_django.core.flow import Query
from goscope_django.mongodb.document.clock import TOKEN_STEPS, Clock, ServerClock
from goscope_django.mongodb.document.expressions import (
    FAR,
    conditions,
    instant,
    is_null,
    is_set,
    literal,
    or_null,
    prefix_range,
)
from goscope_django.mongodb.driver.execute import MockExecutor, SyncExecutor

texts = st.text(st.characters(codec="utf-8"), max_size=8)
HOUR = timedelta(hours=1)


def inside(text: str, test: dict[str, str]) -> bool:
    return all(
        {"$gte": text >= bound, "$gt": text > bound, "$lt": text < bound}[operator] for operator, bound in test.items()
    )


@settings(deadline=None)
@given(prefix=texts, text=texts, extra=texts)
def test_a_range_holds_what_begins_with_the_prefix_and_nothing_else(prefix: str, text: str, extra: str) -> None:
    assert inside(text, prefix_range(prefix)) == text.startswith(prefix)
    assert inside(prefix + extra, prefix_range(prefix))


@settings(deadline=None)
@given(prefix=texts, extra=texts, text=texts)
def test_a_page_begins_behind_a_key(prefix: str, extra: str, text: str) -> None:
    after = prefix + extra
    assert inside(text, prefix_range(prefix, after)) == (text.startswith(prefix) and text > after)


@pytest.mark.parametrize("prefix", ["", "\U0010ffff", "a\U0010ffff", "\ud7ff", "\0", "a\0"])
def test_prefixes_at_the_edges(prefix: str) -> None:
    for text in ("", "a", "b", "\ue000", "\U0010ffff", "\U0010ffffx", "a\U0010ffffz", "\ud7ffz", "\0", "a\0b"):
        assert inside(text, prefix_range(prefix)) == text.startswith(prefix)
    for bound in prefix_range(prefix).values():
        bound.encode()  # no bound holds what UTF-8 can't carry


class Place:
    """A collection and the executor and clock that belong to it."""

    def __init__(self, executor: SyncExecutor | MockExecutor) -> None:
        self.executor = executor
        self.clock: Clock = executor.clock

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.executor(Query("go_goscope_expressions", method, *args, **kwargs))


@pytest.fixture(params=["mongod", "mongomock"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "mongomock":
        yield Place(MockExecutor(mongomock.MongoClient()["x"]))
        return
    with MongoClient[dict[str, Any]](request.getfixturevalue("mongo_url")) as client:
        database = client.get_default_database()
        database.go_goscope_expressions.delete_many({})
        yield Place(SyncExecutor(database))


def planted(place: Place) -> None:
    now = datetime.now(UTC)
    place("insert_one", {"_id": "missing"})
    place("insert_one", {"_id": "null", "expiresAt": None})
    place("insert_one", {"_id": "past", "expiresAt": now - HOUR})
    place("insert_one", {"_id": "ahead", "expiresAt": now + HOUR})


def computed(place: Place, expression: Any) -> dict[str, Any]:
    """What an expression gives for each planted document."""
    for name in ("missing", "null", "past", "ahead"):
        place("update_one", {"_id": name}, [{"$set": {"result": {"$cond": [expression, True, False]}}}])
    return {one["_id"]: one["result"] for one in place("find", {})}


def test_an_instant_that_is_missing_or_null_never_passes(place: Place) -> None:
    planted(place)
    live = {"missing": True, "null": True, "past": False, "ahead": True}
    assert computed(place, place.clock.live()) == live
    assert computed(place, place.clock.passed()) == {name: not value for name, value in live.items()}
    assert computed(place, is_null("expiresAt")) == {"missing": True, "null": True, "past": False, "ahead": False}
    assert computed(place, is_set("expiresAt")) == {"missing": False, "null": False, "past": True, "ahead": True}


def test_filters_for_what_has_expired(place: Place) -> None:
    planted(place)
    assert [one["_id"] for one in place("find", place.clock.expired_filter("expiresAt"))] == ["past"]
    assert sorted(one["_id"] for one in place("find", {"$expr": place.clock.live()})) == ["ahead", "missing", "null"]


def test_instants_from_now(place: Place) -> None:
    place("insert_one", {"_id": 1, "ms": 3_600_000, "backup": None})
    fields = {"after": place.clock.after(3_600_000), "before": place.clock.before(3_600_000), "now": place.clock.now()}
    place("update_one", {"_id": 1}, [{"$set": fields}])
    found = place("find_one", {"_id": 1})
    now = instant(found["now"])
    assert now is not None and abs(now - datetime.now(UTC)) < timedelta(minutes=1)
    for name, sign in (("after", 1), ("before", -1)):
        moment = instant(found[name])
        assert moment is not None and abs(moment - now - sign * HOUR) < timedelta(seconds=1)
        assert moment.microsecond % 1_000 == 0


def test_the_servers_time_comes_with_a_result(place: Place) -> None:
    place("insert_one", {"_id": 1, "a": 5})
    found = place("find_one", {"_id": 1}, {"a": True, **place.clock.stamp()})
    assert found["a"] == 5
    assert abs(place.clock.read_stamp(found) - datetime.now(UTC)) < timedelta(minutes=1)


def test_tokens_grow(place: Place) -> None:
    tokens = []
    for number in range(5):
        place("update_one", {"_id": number}, [{"$set": {"token": place.clock.token()}}], upsert=True)
        tokens.append(int(place("find_one", {"_id": number})["token"]))
    assert tokens == sorted(set(tokens))
    seconds = tokens[0] // TOKEN_STEPS
    assert abs(seconds - datetime.now(UTC).timestamp()) < 60, "its upper part is the time in seconds"
    assert tokens[-1] < 2**53, "every language can hold it"


def test_without_cluster_time_the_wall_clock_gives_tokens_of_the_same_scale(mongo_url: str) -> None:
    clock = ServerClock()
    with MongoClient[dict[str, Any]](mongo_url) as client:
        collection = client.get_default_database().go_goscope_expressions
        for cluster_time in (True, False):
            clock.cluster_time = cluster_time
            collection.update_one({"_id": cluster_time}, [{"$set": {"token": clock.token()}}], upsert=True)
        one, other = (int(found["token"]) for found in collection.find({"_id": {"$type": "bool"}}))
        collection.delete_many({})
    assert abs(one - other) < 60 * TOKEN_STEPS


@pytest.mark.parametrize("value", ["$x", "$$NOW", {"$gt": 1}, {"a.b": ["$y"]}, ["$$ROOT"], {"$literal": 1}, "", None])
def test_literals_are_data(value: Any, place: Place) -> None:
    place("update_one", {"_id": 1}, [{"$set": {"value": literal(value), "x": "seen"}}], upsert=True)
    assert place("find_one", {"_id": 1})["value"] == value


def test_conditions_change_all_fields_or_none(place: Place) -> None:
    changes = {"a": literal(2), "new": literal("n")}
    for test, found in ((False, {"a": 1}), (True, {"a": 2, "new": "n"})):
        place("delete_many", {})
        place("insert_one", {"_id": 1, "a": 1})
        place("update_one", {"_id": 1}, [{"$set": conditions(test, changes)}])
        document = place("find_one", {"_id": 1})
        assert {name: value for name, value in document.items() if name != "_id" and value is not None} == found


def test_instants() -> None:
    naive = datetime(2024, 1, 1, 12)  # noqa: DTZ001 - mongomock gives such
    assert instant(naive) == datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert instant(FAR) == FAR.replace(tzinfo=UTC)
    assert instant(None) is None and instant("2024") is None
    assert or_null("a") == {"$ifNull": ["$a", None]}
