"""Whatever is set comes back, equal and of the same type, through the real server; whatever text is a key."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.long import examples
from tests.support.values import same, values, values_and_pickled

pytestmark = [
    pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning"),
    # Hypothesis draws zones and dates that the server's driver warns of when it rounds them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tests.support"),
]
EXAMPLES = settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD_KEYS = [
    "$x",
    '{"$gt": 1}',
    "a.b",
    "",
    "k" * 10_000,
    "nul\0nul",
    "line\nline\r\n",
    " ",
    "ümläut 🔒",
    "*",
    "[a]",
    "\\",
    "^.*$",
]
texts = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module", autouse=True)
def server(mongo_url: str) -> Iterator[None]:
    with on_server(mongo_url):
        yield


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@EXAMPLES
@given(value=values_and_pickled)
@example(value={"$gt": 1, "a.b": {"": "$x"}, "_id": [None, {"__goscope__": 1}]})
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    before = copy.deepcopy(value)
    cache.set("value", value)
    assert same(value, before), "it is not changed on the way"
    assert same(cache.get("value"), value)
    cache.set_many({"many": value, "other": 1})
    assert same(cache.get_many(["many"])["many"], value)
    cache.delete("value")
    assert cache.add("value", value)
    assert same(cache.get("value"), value)


@settings(EXAMPLES, max_examples=examples(60))
@given(value=values_and_pickled)
def test_it_comes_back_natively_asynchronously(value: Any, runner: asyncio.Runner) -> None:
    async def there_and_back() -> Any:
        await cache.aset("avalue", value)
        return await cache.aget("avalue")

    assert same(runner.run(there_and_back()), value)
    assert same(cache.get("avalue"), value), "both colours read the same"


@settings(EXAMPLES, max_examples=examples(60))
@given(value=values)
def test_without_pickle_every_tagged_type_comes_back(value: Any, mongo_url: str) -> None:
    with on_server(mongo_url, caches={"default": {"OPTIONS": {"SERIALIZER": "bson"}}}):
        try:
            cache.set("bson", value)
        except (TypeError, ValueError):
            # A SafeString inside of a type that only pickle holds, or nesting without end: refused, never changed.
            return
        assert same(cache.get("bson"), value)


@settings(EXAMPLES, max_examples=examples(100))
@given(names=st.lists(texts, min_size=1, max_size=6, unique=True))
def test_any_text_is_a_key(names: list[str]) -> None:
    cache.clear()
    cache.set_many({name: f"value of {name}" for name in names})
    for name in names:
        assert cache.get(name) == f"value of {name}"
        assert cache.has_key(name)
    ours: Any = cache
    assert ours.keys() == sorted(names, key=lambda name: name.encode())
    assert cache.get_many(names) == {name: f"value of {name}" for name in names}
    first = names[0]
    assert cache.delete(first) is True
    assert cache.get(first) is None
    assert len(cache.get_many(names)) == len(names) - 1, "no key stands for another"


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: ascii(key)[:20])
def test_odd_keys(key: str, drive: Drive) -> None:
    drive(cache, "clear")
    drive(cache, "set", key, key)
    drive(cache, "set", f"{key}x", "another")
    assert drive(cache, "get", key) == key
    assert drive(cache, "add", key, 1) is False
    assert drive(cache, "touch", key, 60) is True
    assert drive(cache, "get_many", [key]) == {key: key}
    drive(cache, "set", key, 1)
    assert drive(cache, "incr", key) == 2
    assert sorted(drive(cache, "keys")) == sorted([key, f"{key}x"])
    escaped = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in key)
    assert drive(cache, "keys", escaped) == [key]
    assert drive(cache, "delete_pattern", f"{escaped}*") == 2


@settings(EXAMPLES, max_examples=examples(200))
@given(names=st.lists(st.text("abc*?[]^-\\", max_size=4), max_size=12, unique=True), data=st.data())
def test_patterns_match_as_fnmatch_does(names: list[str], data: st.DataObject) -> None:
    """Against a slow and obvious matcher, for patterns of ``*``, ``?`` and plain characters."""
    pattern = data.draw(st.text("abc*?", max_size=5))

    def matches(glob: str, text: str) -> bool:
        if not glob:
            return not text
        if glob[0] == "*":
            return any(matches(glob[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and glob[0] in ("?", text[0]) and matches(glob[1:], text[1:])

    cache.clear()
    cache.set_many(dict.fromkeys(names, 1))
    expected = sorted(name for name in names if matches(pattern, name))
    ours: Any = cache
    assert ours.keys(pattern) == expected
    assert ours.delete_pattern(pattern) == len(expected)
    assert ours.keys() == sorted(set(names) - set(expected))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("[ab]", ["a", "b"]),
        ("[^ab]", ["*", "-", "]", "c"]),
        ("[a-c]", ["a", "b", "c"]),
        ("[]a]", ["]", "a"]),
        ("[a-]", ["-", "a"]),
        (r"\*", ["*"]),
        (r"\[a]", ["[a]"]),
        ("[[]a]", ["[a]"]),
        ("[", []),
        ("?", ["*", "-", "]", "a", "b", "c"]),
    ],
)
def test_classes_and_escapes(pattern: str, found: list[str], drive: Drive) -> None:
    drive(cache, "clear")
    drive(cache, "set_many", dict.fromkeys(["a", "b", "c", "ab", "[a]", "*", "]", "-"], 1))
    assert drive(cache, "keys", pattern) == found
