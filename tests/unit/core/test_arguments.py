"""What callers hand over: units, limits, and errors that name the argument, the value and what is allowed."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goscope_django.cache.globs import Glob
from goscope_django.cache.options import delta_of, milliseconds_of
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue

NO_DURATIONS: list[Any] = [True, False, "5", b"5", None, [], {}, ..., 5j]
NEVER: list[Any] = [math.nan, math.inf, -math.inf, -1, timedelta(-1), 10**30, timedelta.max]


@pytest.mark.parametrize(("value", "found"), [(1, 1), (86_400_000, 86_400_000), (timedelta(seconds=1.5), 1_500)])
def test_a_ttl_is_whole_milliseconds_or_a_timedelta(value: Any, found: int) -> None:
    assert arguments.ttl_milliseconds(value) == found


@pytest.mark.parametrize("value", [*NO_DURATIONS, 1.0, 1.5], ids=repr)
def test_a_ttl_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"lease=.*milliseconds") as caught:
        arguments.ttl_milliseconds(value, "lease")
    assert isinstance(caught.value, InvalidType)


@pytest.mark.parametrize("value", [0, -1, timedelta(0), timedelta(-1), 10**30, timedelta.max], ids=repr)
def test_a_ttl_that_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="ttl=") as caught:
        arguments.ttl_milliseconds(value)
    assert isinstance(caught.value, InvalidValue)


@pytest.mark.parametrize(
    ("value", "found"),
    [(1, 1_000), (0.5, 500), (0.0001, 1), (1.0005, 1_001), (0.1 + 0.2, 300), (timedelta(microseconds=1), 1)],
)
def test_seconds_become_milliseconds_rounded_up(value: Any, found: int) -> None:
    assert arguments.duration_milliseconds(value, "timeout") == found
    assert arguments.duration_seconds(value, "timeout") == found / 1_000


@pytest.mark.parametrize("value", NO_DURATIONS, ids=repr)
def test_a_duration_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"timeout=.*seconds"):
        arguments.duration_milliseconds(value, "timeout")


@pytest.mark.parametrize("value", [*NEVER, 0, 0.0, timedelta(0)], ids=repr)
def test_a_duration_that_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="timeout="):
        arguments.duration_milliseconds(value, "timeout")
    if value == 0 or value == timedelta(0):
        assert arguments.duration_milliseconds(value, "timeout", zero=True) == 0
    else:
        with pytest.raises(ValueError, match="timeout="):
            arguments.duration_milliseconds(value, "timeout", zero=True)


@settings(deadline=None)
@given(st.floats(1e-9, 3e10) | st.integers(1, 31_557_600_000))
def test_no_duration_is_shortened(value: float) -> None:
    found = arguments.duration_milliseconds(value, "timeout")
    assert found >= 1
    assert -1e-6 <= found - value * 1_000 < 1 + 1e-6 or math.isclose(found, value * 1_000, rel_tol=1e-12)


@pytest.mark.parametrize(("value", "found"), [(None, None), (0, 0), (-1, 0), (-0.5, 0), (timedelta(-1), 0), (1, 1_000)])
def test_timeouts_of_a_cache(value: Any, found: int | None) -> None:
    assert milliseconds_of(value) == found


def test_counts() -> None:
    assert arguments.count(1, "n") == 1
    assert arguments.count(0, "n", least=0) == 0
    for value in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="n="):
            arguments.count(value, "n")
    for value in (0, -1, 2**63):
        with pytest.raises(ValueError, match="n="):
            arguments.count(value, "n")


def test_summands() -> None:
    assert [delta_of(value) for value in (0, -5, 2**63 - 1)] == [0, -5, 2**63 - 1]
    for value in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="delta="):
            delta_of(value)
    for value in (2**63, -(2**63)):
        with pytest.raises(ValueError, match="delta="):
            delta_of(value)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_any_text_that_utf8_carries_is_a_key(text: str) -> None:
    assert arguments.key(text) == text


def test_keys_that_are_none() -> None:
    wrong: list[Any] = [None, 1, b"x", {}, ["x"]]
    for value in wrong:
        with pytest.raises(TypeError, match=r"name=.*text"):
            arguments.key(value, "name")
    assert arguments.key("k" * 65_536)
    assert arguments.key("ä" * 32_768)
    for text in ("k" * 65_537, "ä" * 32_769, "\ud800"):
        with pytest.raises(ValueError, match="name="):
            arguments.key(text, "name")


def test_long_values_are_shortened_in_errors() -> None:
    with pytest.raises(ValueError, match=r"\.\.\.") as caught:
        arguments.key("k" * 100_000)
    assert len(str(caught.value)) < 200


def test_patterns() -> None:
    assert arguments.pattern(None) is None
    found = arguments.pattern("a.*")
    assert found is not None and found.fullmatch("abc")
    compiled = re.compile("x")
    assert arguments.pattern(compiled) is compiled
    for value in (1, b"a", re.compile(b"x")):
        with pytest.raises(TypeError, match="pattern="):
            arguments.pattern(value)
    for text in ("(", "[", "*", "(?P<a", "a{99999999999999999999}"):
        with pytest.raises(ValueError, match="pattern="):
            arguments.pattern(text)


@pytest.mark.parametrize(
    ("pattern", "prefix", "only"),
    [
        ("a*", "a", True),
        ("*", "", True),
        ("a", "a", False),
        ("a?*", "a", False),
        ("a**", "a", False),
        (r"a\**", "a", False),
    ],
)
def test_what_a_glob_begins_with(pattern: str, prefix: str, only: bool) -> None:
    glob = Glob(pattern)
    assert (glob.prefix, glob.only_prefix) == (prefix, only)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"a[\]]b", ["a]b"], [r"a\]b", r"a\b"]),
        (r"a[^\]]b", ["axb", r"a\b"], ["a]b"]),
        (r"a[\\]b", [r"a\b"], ["a]b"]),
        (r"a[\-x]b", ["a-b", "axb"], ["a.b"]),
        ("a[]]b", ["a]b"], ["axb"]),
        ("a[^]]b", ["axb"], ["a]b"]),
        ("a[x-]b", ["axb", "a-b"], ["ayb"]),
        ("a[x-z]b", ["ayb"], ["a-b"]),
        ("a[&&||[[]b", ["a&b", "a|b", "a[b"], ["axb"]),
        ("a[+--]b", ["a,b", "a-b"], ["a.b"]),
        ("a[^^]b", ["axb"], ["a^b"]),
        ("a[b", ["a[b"], ["ab"]),
        ("[^", ["[^"], ["x"]),
        ("[\\", ["[\\"], ["["]),
    ],
)
def test_classes_of_a_glob(pattern: str, matching: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [text for text in (*matching, *others) if glob.matches(text)] == matching


def test_a_glob_that_can_not_be_sent_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"pattern=.*lone surrogates"):
        Glob("user:\ud800*")
