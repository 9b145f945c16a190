"""Globs: matched as Redis matches them, and in bounded work whatever the pattern and the key."""

from __future__ import annotations

import faulthandler

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from goscope_django.cache.globs import Glob
from tests.support.long import examples

ALPHABET = "ab\n-"
KEYS = st.text(ALPHABET, max_size=12)
ONE = {"?": set(ALPHABET), "[ab]": {"a", "b"}, "[^a]": {"b", "\n", "-"}, "[a-b]": {"a", "b"}, "\\*": {"*"}}
PATTERNS = st.lists(st.sampled_from([*"ab\n-*", *ONE]), max_size=10)


def matches(pattern: list[str], key: str) -> bool:
    """The definition, by a table of all places: for each the part of the pattern before it matches the key before."""
    reached = {0}
    for part in pattern:
        if part == "*":
            reached = set(range(min(reached), len(key) + 1)) if reached else reached
        else:
            chars = ONE.get(part, {part})
            reached = {at + 1 for at in reached if at < len(key) and key[at] in chars}
    return len(key) in reached


@given(PATTERNS, KEYS)
@settings(max_examples=examples(400), deadline=None)
@example(["*", "a", "b", "*", "a", "b"], "ab")
@example(["*", "a", "?", "*", "a"], "aaa")
@example(["a", "*", "*", "a"], "a")
def test_it_matches_what_the_definition_says(pattern: list[str], key: str) -> None:
    assert Glob("".join(pattern)).matches(key) is matches(pattern, key)
    assert Glob("".join(pattern)).matches("x:" + key, 2) is matches(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("*a*a*a*a*b", "a" * 120),
        ("*a" * 400 + "*b", "a" * 1_000),
        ("*?" * 400 + "b", "a" * 1_000),
        ("*[a-c]*" * 100 + "d", "abc" * 300),
        ("*" + "a" * 400 + "b*" + "a" * 400 + "b", "a" * 1_000),
        ("*\\*a" * 200 + "[^*]", "*a" * 400 + "*"),
    ],
)
def test_no_pattern_makes_a_key_take_long(pattern: str, key: str) -> None:
    faulthandler.dump_traceback_later(60, exit=True)  # the interpreter is not interrupted while it matches
    try:
        assert not Glob(pattern).matches(key)
    finally:
        faulthandler.cancel_dump_traceback_later()
