"""Values at the server's limit and very long keys: nothing stale is left, and the error says what is too large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache

from goscope_django import runtime
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server

LIMIT = 16 * 1024 * 1024

pytestmark = pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")


@pytest.fixture(autouse=True)
def settings(mongo_url: str) -> Iterator[None]:
    with on_server(mongo_url):
        cache.clear()
        yield


def sized(number: int, kind: str) -> Any:
    return {"text": "x" * number, "bytes": b"x" * number, "list": ["x" * (number // 2), "x" * (number - number // 2)]}[
        kind
    ]


@pytest.mark.parametrize("kind", ["text", "bytes", "list"])
@pytest.mark.parametrize("over", [-60, 0, 5_000, 17_000, LIMIT * 2])
def test_a_value_over_the_limit_is_an_error_and_leaves_nothing_stale(over: int, kind: str, drive: Drive) -> None:
    value = sized(LIMIT + over, kind)
    drive(cache, "set", "large", "before")
    with pytest.raises(ValueError, match=r"large.* bytes.*16777216") as caught:
        drive(cache, "set", "large", value)
    assert "xxx" not in str(caught.value)
    assert drive(cache, "get", "large") is None
    with pytest.raises(ValueError, match=r"large.* bytes"):
        drive(cache, "add", "large", value)
    drive(cache, "set", "large", "before")
    assert drive(cache, "set_many", {"a": over, "large": value, "b": over}) == ["large"]
    assert drive(cache, "get_many", ["a", "large", "b"]) == {"a": over, "b": over}


def test_a_value_just_under_the_limit_is_stored(drive: Drive) -> None:
    for number in (LIMIT - 200, LIMIT - 2_000):
        drive(cache, "set_many", {"large": "y" * number, "other": 1})
        assert len(drive(cache, "get", "large")) == number
        drive(cache, "set", "large", "z" * number)
        assert drive(cache, "get", "large")[-1] == "z"


def test_many_very_long_keys_fit_in_no_command_and_work_all_the_same(drive: Drive) -> None:
    keys = [f"{number:04}".ljust(60_000, "ä" if number % 2 else "k")[:30_000] for number in range(500)]
    assert drive(cache, "set_many", dict.fromkeys(keys, 1)) == []
    assert drive(cache, "get_many", keys) == dict.fromkeys(keys, 1)
    assert drive(cache, "keys", "*") == sorted(keys)
    assert drive(cache, "delete_pattern", "*k") == 250
    drive(cache, "delete_many", keys)
    assert drive(cache, "keys", "*") == []


def test_errors_quote_no_values(mongo_url: str, drive: Drive) -> None:
    """What the driver says of a failed bulk write holds the whole command."""
    database = runtime.connection().sync().database
    database.command("collMod", "go_goscope_cache", validator={"nothing": {"$exists": True}})
    try:
        from goscope_django.exceptions import StoreError

        for method, args in (("set", ("k", "top-secret")), ("set_many", ({"k": "top-secret", "l": "top-secret"},))):
            with pytest.raises(StoreError, match="failed validation") as caught:
                drive(cache, method, *args)
            assert "top-secret" not in str(caught.value)
    finally:
        database.command("collMod", "go_goscope_cache", validator={})
