"""The contract of ``CacheProvider``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django.testing.conformance.base import BAD_TTLS, SHORT, Conformance, Drive

VALUES = [
    0,
    -1,
    2**31,
    2**63 - 1,
    1.5,
    True,
    False,
    "",
    "text",
    "$x",
    "nul\0nul",
    b"\x00\xff",
    [],
    [1, [2, {"a": None}]],
    {},
    {"$gt": 1, "a.b": [1, "$x"], "": {"": 2}},
    datetime(2024, 2, 29, 1, 2, 3, 4_000, tzinfo=UTC),
    (1, (2, "x")),
    {1, 2},
    2**70,
]


class CacheConformance(Conformance):
    """Values with an expiry."""

    @pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
    def test_a_value_comes_back_as_it_was(self, provider: Any, drive: Drive, value: object) -> None:
        drive(provider, "set", "key", value)
        found = drive(provider, "get", "key")
        assert found == value
        assert type(found) is type(value)

    def test_a_missing_key(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "get", "key") is None
        assert drive(provider, "has", "key") is False
        assert drive(provider, "delete", "key") is False

    def test_none_is_a_value(self, provider: Any, drive: Drive) -> None:
        drive(provider, "set", "key", None)
        assert drive(provider, "get", "key") is None
        assert drive(provider, "has", "key") is True

    def test_set_overwrites_value_and_expiry(self, provider: Any, drive: Drive) -> None:
        drive(provider, "set", "key", 1, SHORT)
        drive(provider, "set", "key", 2)
        self.outlive()
        assert drive(provider, "get", "key") == 2
        drive(provider, "set", "key", 3, SHORT)
        self.outlive()
        assert drive(provider, "get", "key") is None

    def test_expiry_shows_everywhere(self, provider: Any, drive: Drive) -> None:
        drive(provider, "set", "key", 1, SHORT)
        drive(provider, "set", "stays", 1, timedelta(hours=1))
        assert drive(provider, "has", "key") is True
        self.outlive()
        assert drive(provider, "get", "key") is None
        assert drive(provider, "has", "key") is False
        assert drive(provider, "keys") == ["stays"]
        assert drive(provider, "delete", "key") is False

    def test_delete(self, provider: Any, drive: Drive) -> None:
        drive(provider, "set", "key", 1)
        assert [drive(provider, "delete", "key"), drive(provider, "delete", "key")] == [True, False]
        assert drive(provider, "get", "key") is None

    def test_an_anchored_pattern(self, provider: Any, drive: Drive) -> None:
        for key in ("a:1", "a:b"):
            drive(provider, "set", key, 1, 60_000)
        assert drive(provider, "keys", r"^a:\d$") == ["a:1"]

    def test_keys_and_pattern(self, provider: Any, drive: Drive) -> None:
        for key in ("b", "a", "ab", "a.b"):
            drive(provider, "set", key, 1)
        assert drive(provider, "keys") == ["a", "a.b", "ab", "b"]
        assert drive(provider, "keys", "a") == ["a"]
        assert drive(provider, "keys", "a.") == ["ab"]
        assert drive(provider, "keys", r"a\.b|b") == ["a.b", "b"]

    def test_many_keys(self, provider: Any, drive: Drive) -> None:
        for number in range(1_050):
            provider.set(f"k{number:04}", number)
        assert drive(provider, "keys") == [f"k{number:04}" for number in range(1_050)]

    def test_clear(self, provider: Any, drive: Drive) -> None:
        for key in ("a", "b"):
            drive(provider, "set", key, 1)
        drive(provider, "clear")
        assert drive(provider, "keys") == []

    @pytest.mark.parametrize("text", ["$x", '{"$gt": 1}', "a.b", "", "k" * 10_000, "nul\0nul", "a^b.*c"])
    def test_any_text_is_a_key(self, provider: Any, drive: Drive, text: str) -> None:
        drive(provider, "set", text, text)
        assert drive(provider, "get", text) == text
        assert drive(provider, "keys") == [text]
        assert drive(provider, "delete", text) is True

    def test_writers_at_once(self, provider: Any, drive: Drive) -> None:
        drive.together(12, lambda n: (provider, "set", ("key", n)))
        assert drive(provider, "get", "key") in range(12)
        assert drive(provider, "keys") == ["key"]

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_bad_ttls(self, provider: Any, drive: Drive, ttl: object) -> None:
        drive(provider, "set", "key", "before")
        with pytest.raises((ValueError, TypeError), match="ttl"):
            drive(provider, "set", "key", "after", ttl)
        assert drive(provider, "get", "key") == "before"

    @pytest.mark.parametrize("key", [None, 1, b"x", {"$gt": ""}, "\ud800", "k" * 100_000], ids=lambda k: repr(k)[:20])
    def test_bad_keys(self, provider: Any, drive: Drive, key: object) -> None:
        for method, args in (("get", (key,)), ("set", (key, 1)), ("delete", (key,)), ("has", (key,))):
            with pytest.raises((ValueError, TypeError), match="key"):
                drive(provider, method, *args)

    @pytest.mark.parametrize("pattern", ["(", "[", "*", 1], ids=repr)
    def test_bad_patterns(self, provider: Any, drive: Drive, pattern: object) -> None:
        with pytest.raises((ValueError, TypeError), match="pattern"):
            drive(provider, "keys", pattern)

    def test_a_value_over_the_limit(self, provider: Any, drive: Drive) -> None:
        drive(provider, "set", "key", "small")
        with pytest.raises(ValueError, match=r"key.*bytes"):
            drive(provider, "set", "key", "x" * (17 * 1024 * 1024))
        assert drive(provider, "get", "key") is None
