"""``SIGN`` and ``COMPRESS``: what is not signed is a miss for every method, and nobody but us can make what is read."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.http import HttpResponse
from django.test import override_settings
from django.utils.safestring import SafeString, mark_safe

from goscope_django import runtime
from goscope_django.exceptions import Contended, InvalidValue
from goscope_django.mongodb.cache import flows
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server
from tests.support.values import Point

FULL = "cache::1:k"
LARGE = {"rows": [{"name": f"row {number}", "ok": True} for number in range(2_000)]}
ALIASES: dict[str, dict[str, Any]] = {
    "default": {"OPTIONS": {"SIGN": True}},
    "plain": {},
    "small": {"OPTIONS": {"COMPRESS": {}}},
    "both": {"OPTIONS": {"SIGN": True, "COMPRESS": {"MIN_BYTES": 100}}},
}
FOREIGN: list[Any] = [
    "text",
    7,
    {"a": 1},
    [1],
    None,
    {"__goscope__": 1, "t": "safestring", "v": "<script>"},
    [{"__goscope__": 1, "t": "sealed", "v": b"x", "s": b"x"}],
]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def settings(request: pytest.FixtureRequest, store: str, recorder: Recorder) -> Iterator[None]:
    url = "mongomock://signed" if store == "mongomock" else request.getfixturevalue("mongo_url")
    options = {} if store == "mongomock" else {"event_listeners": [recorder]}
    with on_server(url, caches=ALIASES, client_options=options):
        cache.clear()
        yield


def entries() -> Any:
    return runtime.connection().sync().database.go_goscope_cache


def plant(value: Any, key: str = FULL) -> None:
    """Put a value there as somebody does who can write to the database."""
    entries().update_one({"key": key}, {"$set": {"value": value, "expiresAt": None}}, upsert=True)


@pytest.mark.parametrize("alias", ["default", "both", "small"])
def test_every_method_works_as_ever(alias: str, drive: Drive, told: list[dict[str, Any]]) -> None:
    subject = caches[alias]
    for value in (None, 0, LARGE, (1, {Decimal("1.50")}), Point(1, "x")):
        drive(subject, "set", "k", value, 60)
        found = drive(subject, "get", "k", "a miss")
        assert (found, type(found)) == (value, type(value))
        assert drive(subject, "has_key", "k") is True
        assert drive(subject, "get_many", ["k", "other"]) == {"k": value}
        assert 50 <= drive(subject, "ttl", "k") <= 60
        assert drive(subject, "add", "k", "another") is False
        assert drive(subject, "touch", "k", 100) is True
        assert 90 <= drive(subject, "ttl", "k") <= 100
        assert drive(subject, "expire", "k", 90) is drive(subject, "persist", "k") is True
        assert drive(subject, "ttl", "k") is None
        assert drive(subject, "get", "k", "a miss") == value, "the expiry is not signed"
        assert drive(subject, "set", "k", value, nx=True) is False
        assert drive(subject, "set", "k", value, xx=True) is True
        assert drive(subject, "keys", "*") == ["k"]
        assert drive(subject, "expire_at", "k", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) is True
        assert drive(subject, "incr_version", "k") == 2
        assert drive(subject, "get", "k", "a miss", version=2) == value
        assert drive(subject, "delete", "k", version=2) is True
        assert drive(subject, "add", "k", value) is True
        assert drive(subject, "delete", "k") is True
        assert drive(subject, "has_key", "k") is False
        assert drive(subject, "get_or_set", "k", lambda: value) == value  # noqa: B023 - called at once
        assert drive(subject, "get_or_set", "k", "another") == value
        drive(subject, "delete", "k")
    many = {"a": 1, "b": LARGE, "c": {3}}
    assert drive(subject, "set_many", many, 60) == []
    assert drive(subject, "get_many", many) == many
    drive(subject, "delete_many", many)
    assert drive(subject, "get_many", many) == {}
    assert told == []


@pytest.mark.parametrize("value", FOREIGN, ids=repr)
def test_what_nobody_signed_is_a_miss_for_every_method(value: Any, drive: Drive, told: list[dict[str, Any]]) -> None:
    plant(value)
    assert drive(cache, "get", "k", "a miss") == "a miss"
    assert drive(cache, "get_many", ["k"]) == {}
    assert [one["reason"] for one in told] == ["forged", "forged"]
    assert drive(cache, "has_key", "k") is False
    assert drive(cache, "ttl", "k") == 0
    for method, args in (("touch", ("k", 60)), ("persist", ("k",)), ("expire_at", ("k", 4e9))):
        assert drive(cache, method, *args) is False
    assert drive(cache, "set", "k", "new", xx=True) is False
    for method in ("incr", "decr", "incr_version"):
        with pytest.raises(ValueError, match="not found"):
            drive(cache, method, "k")
    assert entries().find_one({"key": FULL})["value"] == value, "it was left alone"
    assert drive(cache, "add", "k", "ours") is True
    assert drive(cache, "get", "k") == "ours"
    plant(value)
    assert drive(cache, "get_or_set", "k", lambda: "computed") == "computed"
    assert drive(cache, "get", "k") == "computed"
    plant(value)
    drive(cache, "set", "k", "set")
    assert drive(cache, "get", "k") == "set"
    plant(value)
    assert drive(cache, "set", "k", "nx", nx=True) is True


@pytest.mark.parametrize("value", [mark_safe("<b>"), HttpResponse(b"page"), {"user": 1}], ids=["safe", "page", "dict"])
def test_safe_strings_responses_and_data_can_not_be_planted(
    value: Any, drive: Drive, told: list[dict[str, Any]]
) -> None:
    drive(caches["plain"], "set", "k", value)
    found = drive(caches["plain"], "get", "k")
    assert type(found) is type(value)
    assert drive(cache, "get", "k", "a miss") == "a miss"
    drive(cache, "set", "k", value)
    for alias in ("default", "plain"):
        found = drive(caches[alias], "get", "k")
        assert type(found) is type(value)
    assert not isinstance(value, SafeString) or isinstance(found, SafeString)
    assert len(told) == 1


@pytest.mark.parametrize("alias", ["default", "both"])
def test_a_signed_entry_can_not_be_moved_or_changed(alias: str, drive: Drive, told: list[dict[str, Any]]) -> None:
    subject = caches[alias]
    for value in (5, LARGE):
        drive(subject, "set", "k", value)
        drive(subject, "set", "other", 1)
        stored = entries().find_one({"key": FULL})["value"]
        plant(stored, "cache::1:other")
        assert drive(subject, "get", "other", "a miss") == "a miss"
        for name in ("v", "s"):
            plant({**stored, name: bytes([stored[name][0] ^ 1]) + stored[name][1:]})
            assert drive(subject, "get", "k", "a miss") == "a miss"
            assert drive(subject, "has_key", "k") is False
            assert drive(subject, "ttl", "k") == 0
            assert drive(caches["plain"], "get", "k", "a miss") == "a miss", "verified where it need not be signed"
            with pytest.raises(ValueError, match="not found"):
                drive(subject, "incr", "k")
            assert drive(subject, "get_or_set", "k", lambda: "anew") == "anew", "what is computed takes its place"
    assert {one["reason"] for one in told} == {"forged"}


def test_an_older_entry_of_the_same_key_is_genuine(drive: Drive) -> None:
    """Not promised: what the database holds can be put back, and its expiry changed."""
    drive(cache, "set", "k", "old")
    old = entries().find_one({"key": FULL})["value"]
    drive(cache, "set", "k", "new", 60)
    plant(old)
    assert drive(cache, "get", "k") == "old"
    assert drive(cache, "ttl", "k") is None


def test_secrets_rotate(drive: Drive, told: list[dict[str, Any]]) -> None:
    for alias in ("default", "both"):
        subject = caches[alias]
        with override_settings(SECRET_KEY="old " * 20):
            drive(subject, "set", "k", LARGE)
            drive(subject, "set", "n", 1)
        with override_settings(SECRET_KEY="new " * 20, SECRET_KEY_FALLBACKS=["old " * 20]):
            assert drive(subject, "get", "k") == LARGE
            assert drive(subject, "incr", "n") == 2
        with override_settings(SECRET_KEY="new " * 20, SECRET_KEY_FALLBACKS=[]):
            assert drive(subject, "get", "k", "a miss") == "a miss"
            assert drive(subject, "get", "n", "a miss") == 2, "signed anew when it was written"
    assert [one["reason"] for one in told] == ["forged"] * 2


def test_what_is_compressed_or_signed_is_read_by_every_alias(drive: Drive, told: list[dict[str, Any]]) -> None:
    for writer in ("default", "both", "small"):
        drive(caches[writer], "set", "k", LARGE)
        for reader in ALIASES:
            assert drive(caches[reader], "get", "k") == LARGE
    drive(caches["plain"], "set", "k", LARGE)
    for reader in ALIASES:
        expected = "a miss" if reader in ("default", "both") else LARGE
        assert drive(caches[reader], "get", "k", "a miss") == expected
    assert len(told) == 2


def test_only_what_gets_smaller_is_compressed(drive: Drive) -> None:
    subject = caches["small"]
    noise = random.Random(1).randbytes(20_000)
    value: Any
    for value in ("x" * 8_191, b"x" * 8_191, noise, 5, None, {"a": "x" * 8_000}):
        drive(subject, "set", "k", value)
        assert entries().find_one({"key": FULL})["value"] == value, "as any shell reads it"
    for value in ("x" * 8_192, LARGE, [1] * 5_000):
        drive(subject, "set", "k", value)
        stored = entries().find_one({"key": FULL})["value"]
        assert stored["t"] == "sealed" and stored["z"] > 8 * len(stored["v"]) // 4
        assert drive(subject, "get", "k") == value


def test_a_value_over_16_megabytes_is_stored_if_it_is_small_enough_compressed(drive: Drive, store: str) -> None:
    if store == "mongomock":
        pytest.skip("mongomock: has no limit of size")
    if drive.kind == "async":
        pytest.skip("the same flow, and it takes seconds")
    subject, text = caches["small"], "0123456789" * 2_000_000
    with pytest.raises(InvalidValue, match="16777216"):
        drive(caches["plain"], "set", "k", text)
    drive(subject, "set", "k", text)
    assert drive(subject, "get", "k") == text
    with pytest.raises(InvalidValue, match="16777216") as caught:
        drive(subject, "set", "k", random.Random(1).randbytes(17_000_000))
    assert "cache::1:k" in str(caught.value) or "':1:k'" in str(caught.value)
    assert drive(subject, "get", "k", "a miss") == "a miss", "none is better than an old one"
    assert drive(subject, "set_many", {"a": random.Random(1).randbytes(17_000_000), "b": text}) == ["a"]
    assert drive(subject, "get_many", ["a", "b"]) == {"b": text}


# Counters


@pytest.mark.parametrize("alias", ["default", "both"])
def test_counters(alias: str, drive: Drive) -> None:
    subject = caches[alias]
    drive(subject, "set", "k", 5, 60)
    assert drive(subject, "incr", "k") == 6
    assert drive(subject, "incr", "k", 2**40) == 6 + 2**40
    assert drive(subject, "decr", "k", 2**40 + 7) == -1
    assert drive(subject, "incr", "k", 0) == -1
    assert 50 <= drive(subject, "ttl", "k") <= 60, "its timeout stays"
    assert entries().find_one({"key": FULL})["value"]["t"] == "sealed"
    drive(subject, "set", "k", 2**63 - 1)
    with pytest.raises(ValueError, match="64 bits"):
        drive(subject, "incr", "k")
    assert drive(subject, "get", "k") == 2**63 - 1
    assert drive(subject, "incr", "k", -1) == 2**63 - 2
    for value in (True, 1.5, "5", None, 2**70, [1], {"a": 1}):
        drive(subject, "set", "k", value)
        with pytest.raises(ValueError, match="not an integer"):
            drive(subject, "incr", "k")
        assert drive(subject, "get", "k") == value
    with pytest.raises(ValueError, match="not found"):
        drive(subject, "incr", "missing")


def test_an_alias_that_does_not_sign_counts_on_from_what_is_signed(drive: Drive) -> None:
    for value in ({"a": 1}, {}, {"t": "sealed"}, [1], [{"a": 1}]):
        drive(caches["plain"], "set", "k", value)
        with pytest.raises(ValueError, match="not an integer"):
            drive(caches["plain"], "incr", "k")
        assert drive(caches["plain"], "get", "k") == value
    drive(cache, "set", "k", 5)
    assert drive(caches["plain"], "incr", "k") == 6
    assert entries().find_one({"key": FULL})["value"] == 6
    assert drive(caches["plain"], "incr", "k") == 7
    assert drive(cache, "get", "k", "a miss") == "a miss"


def test_no_signed_increment_is_lost(drive: Drive) -> None:
    drive(cache, "set", "k", 0)
    sums = drive.together(40, lambda number: (cache, "incr", ("k",)))
    assert sorted(sums) == list(range(1, 41)), "each sum was given out once"
    assert drive(cache, "get", "k") == 40


def test_one_who_is_always_too_late_is_told_so(
    drive: Drive, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "SWAPS", 3)
    drive(cache, "set", "k", 0)
    make, taken = flows.CacheFlows._live, []

    def faster(self: Any, clock: Any, key: str) -> Any:
        """Another writer comes between each read and write."""
        taken.append(key)
        if len(taken) % 2 == 0:
            changed = self.codec.pack(FULL, 1_000 + len(taken))
            entries().update_one({"key": FULL}, {"$set": {"value": changed}})
        return make(self, clock, key)

    with monkeypatch.context() as patch:
        patch.setattr(flows.CacheFlows, "_live", faster)
        with pytest.raises(Contended, match="nothing was changed"):
            drive(cache, "incr", "k")
    assert drive(cache, "get", "k") == 1_006
    assert drive(cache, "incr", "k") == 1_007
    assert told == []


def test_commands(drive: Drive, recorder: Recorder, store: str) -> None:
    if store == "mongomock":
        pytest.skip("mongomock: sends no commands")
    subject = caches["both"]

    def sent() -> list[str]:
        """Reads and writes. Once a second a write asks for the server's time as well, by another command, and a batch
        asks for it before."""
        return ["read" if name == "find" else "write" for name in recorder.names if name != "hello"]

    drive(subject, "set", "warm", 1)
    for method, args, expected in (
        ("set", ("k", 1), ["write"]),
        ("get", ("k",), ["read"]),
        ("has_key", ("k",), ["read"]),
        ("add", ("k", 1), ["write"]),
        ("touch", ("k", 60), ["write"]),
        ("ttl", ("k",), ["read"]),
        ("persist", ("k",), ["write"]),
        ("get_many", (["k", "l"],), ["read"]),
        ("set_many", ({"k": 1, "l": 2},), ["write"]),
        ("incr", ("k",), ["read", "write"]),
        ("decr", ("k",), ["read", "write"]),
        ("get_or_set", ("k", 5), ["read"]),
    ):
        recorder.clear()
        drive(subject, method, *args)
        assert sent() == expected, method
    drive(caches["plain"], "set", "k", 1)
    for key, expected in (("k", ["findAndModify"]), ("missing", ["findAndModify"])):
        recorder.clear()
        try:
            drive(caches["plain"], "incr", key)
        except ValueError:
            assert key == "missing"
        assert recorder.names == expected, "one command, as ever"


def test_node_values_are_read_without_the_option_and_missed_with_it(drive: Drive, told: list[dict[str, Any]]) -> None:
    """Node's ``set`` replaces the value, and every mark of ours with it."""
    for alias in ("default", "both", "small"):
        drive(caches[alias], "set", "k", LARGE)
        now = dt.datetime.now(dt.UTC)
        entries().update_one(
            {"key": FULL}, {"$set": {"key": FULL, "value": {"by": "node"}, "expiresAt": None, "updatedAt": now}}
        )
        assert drive(caches["plain"], "get", "k") == drive(caches["small"], "get", "k") == {"by": "node"}
        assert drive(cache, "get", "k", "a miss") == "a miss"
    assert len(told) == 3
