"""Signed and compressed entries with tags and a time until which they are fresh: each holds, and Node mixes none."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache, caches

from goscope_django import runtime
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server

FULL = "cache::1:k"
LARGE = {"rows": ["a row"] * 500}
ALIASES: dict[str, dict[str, Any]] = {
    "default": {"OPTIONS": {"SIGN": True, "COMPRESS": {"MIN_BYTES": 100}}},
    "plain": {},
}


@pytest.fixture(params=["mongod", "mongomock"], autouse=True)
def settings(request: pytest.FixtureRequest) -> Iterator[None]:
    url = "mongomock://own" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with on_server(url, caches=ALIASES):
        cache.clear()
        yield


def entries() -> Any:
    return runtime.connection().sync().database.go_goscope_cache


def let_it_get_stale() -> None:
    moment = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    entries().update_one({"key": FULL}, {"$set": {"freshUntil": moment}})


@pytest.mark.parametrize("value", [5, LARGE])
def test_an_invalidated_tag_makes_a_signed_entry_a_miss(drive: Drive, value: Any) -> None:
    drive(cache, "set", "k", value, 60, tags=("product:7",))
    assert drive(cache, "get", "k") == value
    assert drive(cache, "touch", "k", 100) and drive(cache, "persist", "k")
    assert drive(cache, "get", "k") == value
    if value == 5:
        assert drive(cache, "incr", "k") == 6
    drive(cache, "invalidate_tags", "product:7")
    assert drive(cache, "get", "k", "a miss") == "a miss"
    assert drive(cache, "get_many", ["k"]) == {}
    assert drive(cache, "has_key", "k") is drive(cache, "touch", "k", 5) is False
    assert drive(cache, "ttl", "k") == 0
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr", "k")
    assert drive(cache, "add", "k", "new") is True
    assert drive(cache, "get", "k") == drive(caches["plain"], "get", "k") == "new"


def test_a_stale_value_is_served_only_if_it_is_signed(drive: Drive) -> None:
    def fails() -> Any:
        raise LookupError("down")

    for planted, expected in ((None, LARGE), ("planted", None)):
        drive(cache, "delete", "k")
        assert drive(cache, "get_or_set", "k", lambda: LARGE, 60, stale=600) == LARGE
        let_it_get_stale()
        assert drive(cache, "get", "k", "a miss") == "a miss"
        if planted is not None:
            entries().update_one({"key": FULL}, {"$set": {"value": planted}})
        if expected is None:
            with pytest.raises(LookupError):
                drive(cache, "get_or_set", "k", fails, 60, stale=600)
            assert drive(cache, "get_or_set", "k", lambda: "computed", 60, stale=600) == "computed"
        else:
            assert drive(cache, "get_or_set", "k", fails, 60, stale=600) == expected


def test_node_overwrites_it_and_nothing_of_ours_is_mixed_in(drive: Drive) -> None:
    for expires_at in (None, dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)):
        for how in ("tags", "stale"):
            if how == "tags":
                drive(cache, "set", "k", LARGE, 60, tags=("product:7",))
            else:
                drive(cache, "delete", "k")
                drive(cache, "get_or_set", "k", lambda: LARGE, 60, stale=600)
            updated_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
            theirs = {"key": FULL, "value": {"by": "node"}, "expiresAt": expires_at, "updatedAt": updated_at}
            entries().update_one({"key": FULL}, {"$set": theirs})
            drive(cache, "invalidate_tags", "product:7")
            let_it_get_stale()
            assert drive(cache, "get", "k", "a miss") == "a miss"
            plain = caches["plain"]
            assert drive(plain, "get", "k", "a miss") == {"by": "node"}
            assert drive(plain, "touch", "k", 600) is True
            assert drive(plain, "get", "k", "a miss") == {"by": "node"}, "touch brings nothing of ours back"
            assert drive(cache, "touch", "k", 600) is False
            assert drive(cache, "add", "k", "ours") is True
            assert drive(cache, "get", "k") == drive(plain, "get", "k") == "ours"
