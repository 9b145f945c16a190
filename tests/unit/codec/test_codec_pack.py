"""A plain dict is encoded by the codec itself: only where nothing is lost by it."""

from __future__ import annotations

import array
from enum import IntEnum
from typing import Any

import bson
import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings

from goscope_django.mongodb.codec.plain import MAX_DEPTH, RESERVED, packed
from tests.support.codec import KEY, signing, wire
from tests.support.long import examples
from tests.support.values import same, values_and_pickled


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled)
def test_packed_is_the_same_as_encoded(value: Any) -> None:
    """What ``pack`` encodes itself is just what ``encode`` would have left to the driver."""
    root = {"value": value}
    stored, encoded = signing.pack(KEY, root), signing.encode(KEY, root)
    if isinstance(stored, RawBSONDocument):
        assert encoded is root
        assert stored.raw == bson.encode(root)
    assert same(signing.decode(KEY, wire(stored)), root)


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Bytes(bytes):
    pass


class Mapping(dict[str, Any]):
    pass


class Sequence(list[Any]):
    pass


ODD = [
    *(Text("a"), Number(1), Real(1.0), Bytes(b"a"), Mapping(a=1), Sequence([1]), (1,), {1}, frozenset(), 1j, ...),
    *(
        bytearray(b"a"),
        memoryview(b"a"),
        array.array("i", [1]),
        Binary(b"a"),
        Binary(b"a", 5),
        Int64(1),
        2**63,
        -(2**64),
    ),
    *("\ud800", {1: 2}, {Text("a"): 1}, {"a\0b": 1}, {"$ref": "a", "$id": 1}, {RESERVED: 1}, len, object, Colour.RED),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_nothing_odd_is_packed(odd: Any, depth: int) -> None:
    """Types that an encoder takes for others, texts and numbers that it refuses, keys that mean something."""
    value: Any = odd
    for level in range(depth):
        value = [value, 1] if level % 2 else {"inner": value}
    assert packed({"some": "text", "value": value}) is None


def test_what_is_plain_is_packed_to_its_depth() -> None:
    plain: dict[str, Any] = {"a": [1, 2.5, None, True, b"b", "$x", {"$gt": {"a.b": ""}}, {}, []], "": {"ä": "ö"}}
    assert isinstance(signing.pack(KEY, plain), RawBSONDocument)
    value: Any = 1
    for depth in range(1, MAX_DEPTH + 4):
        value = {"a": value}
        assert same(signing.decode(KEY, wire(signing.pack(KEY, value))), value)
        assert (packed(value) is None) == (depth >= MAX_DEPTH)


def test_what_holds_itself_many_times_over_is_not_followed() -> None:
    wide: dict[str, Any] = {}
    wide["a"] = [wide, [[wide] * 1_000] * 1_000]
    assert packed(wide) is None


@pytest.mark.parametrize("value", [{"b": 1, "_id": 2, "a": 3}, {"_id": 2, "a": 3}, {"x": {"b": 1, "_id": 2}}], ids=str)
def test_fields_keep_their_order(value: dict[str, Any]) -> None:
    """PyMongo puts ``_id`` first in a document, and a value is not one."""
    read: Any = signing.decode(KEY, wire(signing.pack(KEY, value)))
    assert [list(one) for one in (read, read.get("x", {}))] == [list(one) for one in (value, value.get("x", {}))]
