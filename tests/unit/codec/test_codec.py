"""The codec: every value comes back as it was, and nothing that stands in the database is run."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import bson
import mongomock
import pytest
from bson.int64 import Int64
from hypothesis import HealthCheck, given, settings

from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.codec import CODEC_OPTIONS, FORMAT, Codec, TypeCodec
from goscope_django.mongodb.codec.plain import MAX_DEPTH, RESERVED
from goscope_django.mongodb.codec.types import BUILTIN_TYPES
from tests.support.codec import KEY, envelope, reason, signing, wire, without_pickle
from tests.support.long import examples
from tests.support.values import (
    ODD_KEYS,
    Basket,
    Point,
    plain_values,
    same,
    values_and_pickled,
)

many = settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def round_trip(value: object, codec: Codec = signing) -> Any:
    return codec.decode(KEY, wire(codec.encode(KEY, value)))


# Round trips


@many
@given(plain_values)
def test_plain_values_are_stored_as_they_are(value: Any) -> None:
    assert without_pickle.encode(KEY, value) is value
    assert same(round_trip(value, without_pickle), value)


@many
@given(values_and_pickled)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    assert same(round_trip(value), value)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled)
def test_mongomock_gives_the_same(value: Any) -> None:
    # It stores Python objects, and takes hardly any codec option.
    database: Any = mongomock.MongoClient().goscope
    collection = database.get_collection("c", codec_options=database.codec_options.with_options(tz_aware=True))
    collection.update_one({"_id": 1}, [{"$set": {"value": {"$literal": signing.encode(KEY, value)}}}], upsert=True)
    found = collection.find_one({"_id": 1})
    assert found is not None
    assert same(signing.decode(KEY, found["value"]), value)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled)
def test_encoding_changes_nothing_in_the_value(value: Any) -> None:
    before = pickle.dumps(value)
    signing.encode(KEY, value)
    assert pickle.dumps(value) == before


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_keys_that_mean_something_to_others_are_data(key: str, depth: int) -> None:
    value: Any = {key: 1, "$id": 2, "z": "x"}
    for _ in range(depth):
        value = [{"inner": value}]
    assert same(round_trip(value, without_pickle), value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        10**5000,
        -(10**5000),
        (),
        set(),
        {None: 1, (1, ("a",)): 2, True: 3, 2: 4, 1.5: 5, b"x": 6, frozenset({1}): 7},
        {"b": 1, "a": 2, "_id": 3},
        datetime.min.replace(tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999),  # noqa: DTZ001
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
        datetime(2024, 1, 1, tzinfo=UTC, fold=1),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "GMT")),
        datetime(2024, 1, 1, tzinfo=timezone(-timedelta(hours=23, microseconds=1), "odd")),
        {"$ref": "c", "$id": 1, "$db": "d"},
        [[{"$ref": "c", "$id": 1}]],
        {RESERVED: 1},
        {"x": {RESERVED: FORMAT, "t": "decimal", "v": "1"}},
        {"big": 2**40, "ints": [2**33] * 3, "at": datetime(2024, 1, 1, tzinfo=UTC)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_edges(value: Any) -> None:
    assert same(round_trip(value, without_pickle), value)


def test_a_zone_made_past_the_cache_is_pickled_and_comes_back() -> None:
    value = datetime(2024, 1, 1, tzinfo=ZoneInfo.no_cache("Europe/Paris"))
    assert same(round_trip(value), value)
    with pytest.raises(InvalidType, match=r"datetime\.datetime"):
        without_pickle.encode(KEY, value)


def test_what_is_tagged_stands_beside_what_is_plain() -> None:
    stored: Any = without_pickle.encode(KEY, {"price": Decimal("1.50"), "name": "pen", "sizes": [1, 2]})
    assert stored == envelope("tree", {"price": envelope("decimal", "1.50"), "name": "pen", "sizes": [1, 2]}), (
        "the plain parts stay readable"
    )
    assert next(iter(stored)) == RESERVED


def test_all_pickled_leaves_share_one_pickle_and_their_identity() -> None:
    basket = Basket("me", [])
    stored: Any = signing.encode(KEY, {"n": 1, "first": basket, "second": [basket, Basket("you", basket.items)]})
    assert stored["v"]["n"] == 1
    assert isinstance(stored["p"], bytes)
    back = signing.decode(KEY, wire(stored))
    assert isinstance(back, dict)
    assert back["first"] is back["second"][0]
    assert back["first"].items is back["second"][1].items


def test_an_aliased_list_comes_back_as_two() -> None:
    inner = (1,)
    left, right = round_trip([[inner], [inner]])
    assert left == right == [(1,)]
    assert left is not right


# Depth


def nested(levels: int, leaf: Any = 1) -> Any:
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("codec", [signing, without_pickle], ids=["pickle", "bson"])
def test_the_deepest_plain_value_is_stored_as_it_is(codec: Codec) -> None:
    value = nested(MAX_DEPTH)
    assert codec.encode(KEY, value) is value


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 300])
@pytest.mark.parametrize("leaf", [1, (1,)])
def test_what_is_deeper_is_pickled_as_a_whole_or_refused(levels: int, leaf: Any) -> None:
    value = nested(levels, leaf)
    stored: Any = signing.encode(KEY, value)
    assert stored["t"] == "pickle"
    assert signing.decode(KEY, wire(stored)) == value
    with pytest.raises(InvalidValue, match="nested deeper than"):
        without_pickle.encode(KEY, value)


def test_nested_tags_count_with_their_envelopes() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = (value,)
    stored: Any = signing.encode(KEY, value)
    assert stored["t"] == "pickle"
    assert round_trip(value) == value


def test_too_deep_even_for_a_pickle_is_refused() -> None:
    with pytest.raises(InvalidValue, match="too deeply"):
        signing.encode(KEY, nested(100_000))


def test_a_value_that_holds_itself() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    back = round_trip(loop)
    assert back[0] == 1
    assert back[1] is back
    with pytest.raises(InvalidValue, match="holds itself"):
        without_pickle.encode(KEY, loop)


def test_a_wide_value_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = [loop, (loop,), {"b": loop}] * 5
    back = round_trip(loop)
    assert back["a"][0] is back


# Refusals


@pytest.mark.parametrize("codec", [without_pickle, Codec()], ids=["pickle=False", "no signer"])
@pytest.mark.parametrize("value", [Point(1, 2), [{"a": Basket("me", [])}], {object()}, {Point(1, 2): 1}])
def test_without_pickle_an_unknown_type_is_refused_by_name(codec: Codec, value: Any) -> None:
    with pytest.raises(TypeError, match=r"values\.(Point|Basket)|builtins\.object") as caught:
        codec.encode(KEY, value)
    assert isinstance(caught.value, InvalidType)
    assert "pickle=True" in str(caught.value)


def test_errors_of_the_pickler_go_through() -> None:
    with pytest.raises(TypeError, match="generator"):
        signing.encode(KEY, [(str(n) for n in [1])])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        signing.encode(KEY, {"f": lambda: 1})


def test_a_local_enumeration_is_not_stored_by_a_name_that_nobody_finds() -> None:
    class Local(Enum):
        A = 1

    with pytest.raises((pickle.PicklingError, AttributeError)):
        signing.encode(KEY, Local.A)
    with pytest.raises(InvalidType):
        without_pickle.encode(KEY, Local.A)


def test_two_type_codecs_with_one_tag_are_refused() -> None:
    def pack(value: Any, child: Any) -> Any:
        return child(value)

    with pytest.raises(InvalidValue, match="'set'"):
        Codec(types=[*BUILTIN_TYPES, TypeCodec("set", (Point,), pack, pack)])


# What other writers leave


def test_foreign_values() -> None:
    foreign = {"long": Int64(5), "at": datetime(2024, 1, 1, tzinfo=UTC), "list": [Int64(2**40), {"x": Int64(1)}]}
    back: Any = signing.decode(KEY, wire(foreign))
    assert same(back, {"long": 5, "at": datetime(2024, 1, 1, tzinfo=UTC), "list": [2**40, {"x": 1}]})
    assert type(signing.decode(KEY, Int64(7))) is int


def test_dates_that_a_driver_gave_without_or_with_another_utc() -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001 - as PyMongo gives them by default
    expected = datetime(2024, 1, 1, tzinfo=UTC)
    other = naive.replace(tzinfo=bson.tz_util.utc)
    back: Any = signing.decode(KEY, {"a": naive, "b": [other], "c": {"d": [naive]}})
    assert same(back, {"a": expected, "b": [expected], "c": {"d": [expected]}})
    assert same(signing.decode(KEY, other), expected)


def test_documents_that_python_cannot_hold_do_not_fail_the_read() -> None:
    far = bson.encode({"value": bson.DatetimeMS(2**62)})
    assert bson.decode(far, codec_options=CODEC_OPTIONS)["value"] == bson.DatetimeMS(2**62)
    broken = bson.encode({"value": "abc"}).replace(b"abc", b"a\xffc")
    assert reason(bson.decode(broken, codec_options=CODEC_OPTIONS)["value"]) == "damaged"


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {"a": 1}])
def test_another_version_is_another_format(version: Any) -> None:
    assert reason({RESERVED: version, "t": "decimal", "v": "1"}) == "format"
    assert reason(envelope("tree", [{RESERVED: version, "t": "decimal", "v": "1"}])) == "format"


@pytest.mark.parametrize("tag", ["nothing", "", None, 1, ["tuple"], {"a": 1}])
def test_an_unknown_tag_is_another_format(tag: Any) -> None:
    assert reason(envelope(tag, [])) == "format"
