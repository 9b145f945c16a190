"""Values of every kind that the documentation names, and a comparison that sees every difference between two of them.

Used by the codec's own tests and by those that send values through a server.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.son import SON
from bson.timestamp import Timestamp
from django.utils.safestring import SafeString
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.support.comparison import same as same  # noqa: PLC0414 - offered here as well

# Classes of our own


class Colour(enum.Enum):
    RED = "red"
    GREEN = ("g", 2)
    CRIMSON = "red"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2**70


class Mode(enum.StrEnum):
    READ = "r"
    WRITE = "w"


class Permission(enum.Flag):
    VIEW = 1
    CHANGE = 2
    DELETE = 4


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Ejecting(enum.IntFlag, boundary=enum.EJECT):
    ONE = 1


class Pretender:
    """Looks like an enumeration, and is none."""

    __members__: ClassVar = {"x": 1}


class Outer:
    class Inner(enum.Enum):
        NESTED = None


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024 - a class without annotations is the point


@dataclass
class Basket:
    owner: str
    items: list[Any]


class Shout(str):
    """A subclass of str, which must not come back as a str."""

    __slots__ = ()


# Strategies

MEMBERS: list[enum.Enum] = [
    *Colour,
    *Level,
    *Mode,
    *Permission,
    Permission.VIEW | Permission.DELETE,
    Permission(0),
    Bits.ONE | Bits.TWO,
    Bits(0),
    Bits(64),
    Ejecting.ONE,
    Outer.Inner.NESTED,
]

ODD_KEYS = [
    "",
    "$gt",
    "$ref",
    "$id",
    "$db",
    "$literal",
    "a.b",
    ".",
    "_id",
    "0",
    "-1",
    "__goscope__",
    "nul\0",
    "\ud800",
    "é",
]

_text = st.one_of(st.text(max_size=20), st.text(st.characters(categories=["Cs", "Lu", "Cc"]), max_size=5))
_offsets = st.builds(timedelta, seconds=st.integers(-86399, 86399), microseconds=st.integers(0, 999_999)).filter(
    lambda offset: abs(offset) < timedelta(days=1)
)
_zones: SearchStrategy[tzinfo | None] = st.one_of(
    st.none(),
    st.just(UTC),
    st.builds(timezone, _offsets),
    st.builds(timezone, _offsets, st.text(max_size=5)),
    st.sampled_from(["Europe/Paris", "America/New_York", "Asia/Kathmandu", "UTC"]).map(ZoneInfo),
)
_moments = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.datetimes(), _zones, st.sampled_from([0, 1])
)
_dates_of_bson = st.datetimes().map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC, fold=0)
)
_times = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), _zones, st.sampled_from([0, 1])
)

plain_scalars: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    _dates_of_bson,
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.sampled_from(
        [
            Decimal128("1.50"),
            Decimal128("-0"),
            MinKey(),
            MaxKey(),
            Timestamp(1, 0),
            Regex("^a", re.IGNORECASE),
            Code("f()"),
        ]
    ),
    st.builds(Binary, st.binary(max_size=16), st.sampled_from([1, 5, 6, 128])),
    st.binary(min_size=16, max_size=16).map(lambda data: Binary(data, 4)),
)
"""Scalars that are stored as they are."""

hashable_scalars: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**5000), 2**5000),
    st.floats(),
    _text,
    st.binary(max_size=8),
    st.complex_numbers(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.sampled_from([Decimal("1E+400000"), Decimal("-0.00"), Decimal("-NaN123"), Decimal("Infinity")]),
    st.uuids(),
    st.builds(UUID, int=st.integers(0, 2**128 - 1), is_safe=st.sampled_from(SafeUUID)),
    _moments,
    st.dates(),
    _times,
    st.timedeltas(),
    st.sampled_from(MEMBERS),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    _text.map(SafeString),
)
"""Scalars that may be keys and elements of sets."""

scalars: SearchStrategy[Any] = st.one_of(
    plain_scalars,
    hashable_scalars,
    st.binary(max_size=8).map(bytearray),
    st.binary(max_size=8).map(lambda data: Binary(data, 0)),
    st.just(Decimal("sNaN7")),
    st.integers(-(2**63), 2**63 - 1).map(DatetimeMS),
    st.builds(Regex, st.sampled_from(["a", b"b", "nul\0"]), st.sampled_from([0, int(re.MULTILINE | re.VERBOSE), 256])),
    st.sampled_from([Timestamp(0, 0), Code("f()", {}), Code("f()", {"x": (1,)}), Code("\ud800")]),
    st.builds(DBRef, st.text(max_size=3), st.integers()),
    st.just(DBRef("c", (1,), "db", extra={1})),
)
"""Scalars of every type that needs no pickle."""

pickled: SearchStrategy[Any] = st.one_of(
    st.builds(Point, st.integers(), st.text(max_size=3)),
    st.builds(Basket, st.text(max_size=3), st.lists(st.integers(), max_size=3)),
    st.builds(Shout, st.text(max_size=3)),
    st.just(range(3)),
    st.builds(deque, st.lists(st.integers(), max_size=3)),
)
"""Values of types that only a pickle can hold."""

hashables: SearchStrategy[Any] = st.recursive(
    hashable_scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=4,
)

keys: SearchStrategy[Any] = st.one_of(st.text(max_size=5), st.sampled_from(ODD_KEYS), hashables)


def _containers(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(st.characters(categories=["L", "N"]), max_size=5), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.lists(st.tuples(keys, inner), max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=3), inner, max_size=2).map(SON),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    )


plain_values: SearchStrategy[Any] = st.recursive(
    plain_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(st.characters(categories=["L", "N", "P"]), max_size=5),
                st.sampled_from(["", "$gt", "a.b", "_id", "0"]),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
"""Values that are stored as they are."""

values: SearchStrategy[Any] = st.recursive(scalars, _containers, max_leaves=12)
"""Values that need no pickle, nested. (A SafeString needs none where the codec knows Django's types.)"""

values_and_pickled: SearchStrategy[Any] = st.recursive(st.one_of(scalars, pickled), _containers, max_leaves=12)
"""Values of every type, some of which only a pickle can hold."""
