"""What stands in the database is never executed: forged, moved, damaged and unknown entries read as misses."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import bson
import pytest
from django.core.cache import cache, caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.test import override_settings

from goscope_django import runtime
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.values import Point

FULL = "cache::1:k"
HOSTILE_ENVELOPES: list[tuple[str, Any]] = [
    ("raw bytes", lambda payload: payload),
    ("unsigned envelope", lambda payload: {"__goscope__": 1, "t": "pickle", "v": 0, "p": payload}),
    ("wrong signature", lambda payload: {"__goscope__": 1, "t": "pickle", "v": 0, "p": payload, "s": b"x" * 32}),
    ("empty signature", lambda payload: {"__goscope__": 1, "t": "pickle", "v": 0, "p": payload, "s": b""}),
    (
        "in a tree",
        lambda payload: {"__goscope__": 1, "t": "tree", "v": {"a": {"__goscope__": 1, "t": "pickle", "p": payload}}},
    ),
    ("another package's", lambda payload: {"pickled": True, "value": payload}),
]


@pytest.fixture(autouse=True)
def settings(request: pytest.FixtureRequest, store: str) -> Iterator[None]:
    url = "mongomock://forged" if store == "mongomock" else request.getfixturevalue("mongo_url")
    with on_server(url):
        cache.clear()
        yield


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def entries() -> Any:
    return runtime.connection().sync().database.go_goscope_cache


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize(("name", "envelope"), HOSTILE_ENVELOPES, ids=[name for name, _ in HOSTILE_ENVELOPES])
def test_a_planted_pickle_is_never_executed(
    name: str,
    envelope: Any,
    drive: Drive,
    tmp_path: Path,
    told: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    witness = tmp_path / "executed"
    payload = pickle.dumps(Bomb(witness))
    drive(cache, "set", "k", 1)
    planted = envelope(payload)
    entries().update_one({"key": FULL}, {"$set": {"value": planted}})
    with caplog.at_level(logging.WARNING, "goscope.cache"):
        found = [
            drive(cache, "get", "k", "a miss"),
            drive(cache, "get_many", ["k"]).get("k", "a miss"),
            drive(cache, "get_or_set", "k2", "a miss"),
        ]
    assert not witness.exists()
    if name in ("raw bytes", "another package's"):
        assert found[:2] == [planted, planted], "data that asks for nothing stays data"
        return
    assert found == ["a miss"] * 3
    assert [one["key"] for one in told] == [FULL, FULL]
    assert {one["reason"] for one in told} <= {"forged", "damaged"}
    assert len([one for one in caplog.records if "cache_entry_forged" in one.getMessage()]) == 2
    assert "mkdir" not in caplog.text
    assert drive(cache, "has_key", "k") is False
    assert drive(cache, "get_or_set", "k", lambda: 3) == 3
    assert drive(cache, "get", "k") == 3, "what is computed takes its place"
    drive(cache, "set", "k", 2)
    assert drive(cache, "get", "k") == 2, "the next set makes it good"


def test_a_signed_entry_is_bound_to_its_key(drive: Drive, told: list[dict[str, Any]]) -> None:
    value = Point(1, "x")
    drive(cache, "set", "k", value)
    drive(cache, "set", "other", 1)
    assert drive(cache, "get", "k") == value
    stored = entries().find_one({"key": FULL})
    entries().update_one({"key": "cache::1:other"}, {"$set": {"value": stored["value"]}})
    assert drive(cache, "get", "other", "a miss") == "a miss"
    assert [one["reason"] for one in told] == ["forged"]


@pytest.mark.parametrize("change", ["payload", "signature", "index", "format", "tag"])
def test_a_changed_entry_is_a_miss(change: str, drive: Drive, told: list[dict[str, Any]]) -> None:
    drive(cache, "set", "k", [Point(1, "x"), Decimal("1.5")])
    stored = entries().find_one({"key": FULL})["value"]
    changed = {
        "payload": {"p": bytes([stored["p"][0] ^ 1]) + stored["p"][1:]},
        "signature": {"s": bytes([stored["s"][0] ^ 1]) + stored["s"][1:]},
        "index": {"v": {"__goscope__": 1, "t": "pickle", "v": 7}},
        "format": {"__goscope__": 99},
        "tag": {"t": "nothing"},
    }[change]
    entries().update_one({"key": FULL}, {"$set": {"value": {**stored, **changed}}})
    assert drive(cache, "get", "k", "a miss") == "a miss"
    assert len(told) == 1


def test_another_secret_is_a_miss_and_a_fallback_is_not(drive: Drive, told: list[dict[str, Any]]) -> None:
    value = Point(1, "x")
    with override_settings(SECRET_KEY="old " * 20):
        drive(cache, "set", "k", value)
        assert drive(cache, "get", "k") == value
    with override_settings(SECRET_KEY="new " * 20, SECRET_KEY_FALLBACKS=["old " * 20]):
        assert drive(cache, "get", "k") == value
        drive(cache, "set", "fresh", value)
    with override_settings(SECRET_KEY="old " * 20):
        assert drive(cache, "get", "fresh", "a miss") == "a miss", "signed by the current secret, not by a fallback"
    with override_settings(SECRET_KEY="new " * 20, SECRET_KEY_FALLBACKS=[]):
        assert drive(cache, "get", "k", "a miss") == "a miss"
        assert drive(cache, "get", "fresh") == value
    assert [one["reason"] for one in told] == ["forged", "forged"]


def test_without_pickle_set_refuses_and_get_never_loads(
    request: pytest.FixtureRequest, store: str, drive: Drive
) -> None:
    url = "mongomock://forged" if store == "mongomock" else request.getfixturevalue("mongo_url")
    drive(cache, "set", "signed", Point(1, "x"))
    with on_server(url, caches={"default": {"OPTIONS": {"SERIALIZER": "bson"}}}):
        for method, args in (
            ("set", ("k", Point(1, "x"))),
            ("add", ("k", Point(1, "x"))),
            ("set_many", ({"k": [Point(1, "x")]},)),
        ):
            with pytest.raises(TypeError, match="Point"):
                drive(cache, method, *args)
        assert drive(cache, "get", "k") is None
        assert drive(cache, "get", "signed", "a miss") == "a miss", "not even what was signed rightly"
        drive(cache, "set", "k", (Decimal("1.5"), {1, 2}))
        assert drive(cache, "get", "k") == (Decimal("1.5"), {1, 2})


def test_odd_documents_are_no_errors(drive: Drive) -> None:
    """Rows of other programs, or none of their fields: read as what they are, or missed."""
    entries().insert_many([{"key": f"cache::1:{name}"} for name in ("bare",)])
    entries().insert_one({"key": "cache::1:far", "value": 1, "expiresAt": "tomorrow"})
    entries().insert_one({"key": "cache::1:own", "value": {"__goscope__": "x"}})
    assert drive(cache, "get", "bare", "a miss") in (None, "a miss")
    for name in ("far", "own"):
        drive(cache, "get", name)
        drive(cache, "ttl", name) if name != "far" else None
        drive(cache, "set", name, 5)
        assert drive(cache, "get", name) == 5
    assert sorted(drive(cache, "get_many", ["bare", "far", "own"])) in (["bare", "far", "own"], ["far", "own"])


def test_other_fields_of_an_entry_are_kept(drive: Drive) -> None:
    drive(cache, "set", "k", 1)
    entries().update_one({"key": FULL}, {"$set": {"tags": ["a"]}})
    drive(cache, "set", "k", 2)
    drive(cache, "touch", "k", 60)
    drive(cache, "incr", "k")
    found = entries().find_one({"key": FULL})
    assert (found["value"], found["tags"]) == (3, ["a"])


def test_plain_values_are_readable_by_anybody(drive: Drive) -> None:
    value = {"name": "x", "prices": [1, 2.5], "$set": None, "none": None}
    drive(cache, "set", "k", value)
    stored = entries().find_one({"key": FULL})["value"]
    assert bson.encode({"v": stored}) == bson.encode({"v": value})


def test_an_unknown_serializer_is_named() -> None:
    with (
        on_server("mongomock://forged", caches={"default": {"OPTIONS": {"SERIALIZER": "json"}}}),
        pytest.raises((ValueError, InvalidCacheBackendError), match=r"SERIALIZER.*'json'.*'auto', 'bson'"),
    ):
        caches["default"].get("k")
