"""Which values BSON holds without loss, so that the codec stores them as they are.

Most values are such *plain* ones, so the fast paths of the codec are here: ``packed`` and ``surely_plain`` before
writing and ``settle`` after reading look at a whole dict or list at once.
"""

from __future__ import annotations

import gc
import marshal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Final

import bson
from bson.binary import Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.decimal128 import Decimal128
from bson.errors import InvalidDocument
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

RESERVED: Final = "__goscope__"
"""First key of every envelope. Without ``$``, so that every server and tool accepts it as a field name."""

MAX_DEPTH: Final = 80
"""BSON levels of one value. Servers refuse documents of 180 levels (some services: 100)."""

READY: Final = frozenset({NoneType, bool, int, float, bytes, str})
"""Types that PyMongo gives back exactly as they were."""


_BUILT_IN: Final = READY | {dict, list} if sys.implementation.name == "cpython" else frozenset()
"""Types whose whole contents the garbage collector of this Python shows."""

_MOST_AT_ONCE: Final = 2_000
"""Items of one level. A list that holds itself many times over has a million on the next."""

_RESERVED_BYTES: Final = RESERVED.encode()

CODEC_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    tz_aware=True,
    tzinfo=UTC,
    # One document with a date or a text that Python can't hold must not make a whole batch unreadable.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="surrogateescape",
)
"""For all reads and writes. Int64 is left to ``Codec.decode``: a type registry would cost each command more."""

ENTRY_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    datetime_conversion=CODEC_OPTIONS.datetime_conversion,
    unicode_decode_error_handler=CODEC_OPTIONS.unicode_decode_error_handler,
)
"""For entries of the cache. Their own dates are only compared with each other, so they get no time zone: that would
take longer than the rest of a small entry. The codec gives the dates inside a value their zone."""


class TooDeep(Exception):
    """Nested deeper than MAX_DEPTH; a container that contains itself is so, too."""


# What BSON holds without loss


def encodable(text: str) -> bool:
    """Whether ``text`` is valid Unicode, without lone surrogates, so that BSON can hold it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_keys(value: dict[Any, Any]) -> bool:
    """Whether all keys are of exact type str and mean nothing to BSON, PyMongo or this codec."""
    for key in value:
        if type(key) is not str or "\0" in key or not encodable(key):
            return False
    # PyMongo turns {"$ref": ..., "$id": ...} into a DBRef, and servers check the order of these fields.
    return RESERVED not in value and "$ref" not in value


def _plain_int(value: int) -> bool:
    return INT64_MIN <= value <= INT64_MAX


def _plain_datetime(value: datetime) -> bool:
    return value.tzinfo is UTC and not value.microsecond % 1000 and not value.fold


def _plain_binary(value: Binary) -> bool:
    return value.subtype != 0  # subtype 0 is read back as bytes


def _plain_timestamp(value: Timestamp) -> bool:
    return value.time != 0 or value.inc != 0  # servers replace Timestamp(0, 0) by their own time


def _plain_regex(value: Regex[Any]) -> bool:
    pattern = value.pattern
    return type(pattern) is str and "\0" not in pattern and encodable(pattern) and not value.flags & ~0b1111110


def _plain_code(value: Code) -> bool:
    return value.scope is None and encodable(str(value))


ATOMS: Final = frozenset({NoneType, bool, float, bytes, ObjectId, Decimal128, MinKey, MaxKey})
"""Types of which every value is BSON as it is."""

CHECKS: Final[Mapping[type, Callable[[Any], bool]]] = {
    str: encodable,
    int: _plain_int,
    datetime: _plain_datetime,
    Binary: _plain_binary,
    Timestamp: _plain_timestamp,
    Regex: _plain_regex,
    Code: _plain_code,
}
"""Types of which some values are BSON as they are: those for which the predicate holds."""


def surely_plain(value: object) -> bool:
    """Whether all of a dict or list is plain. False also where that is not sure; ``_Writer`` then decides.

    Raises ``TooDeep``. Keys are collected and looked at together, which is a fifth quicker than one by one.
    """
    keys: list[Any] = []
    if not _all_plain(value, keys, 1):
        return False
    if not keys:
        return True
    if set(map(type, keys)) != {str}:
        return False
    text = "".join(keys)
    return "\0" not in text and "$ref" not in text and RESERVED not in text and encodable(text)


def _all_plain(value: Any, keys: list[Any], depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise TooDeep
    if type(value) is dict:
        keys += value
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is str:
            if not item.isascii() and not encodable(item):
                return False
        elif kind is int:
            if not INT64_MIN <= item <= INT64_MAX:
                return False
        elif kind is dict or kind is list:
            if not _all_plain(item, keys, depth + 1):
                return False
        elif kind not in ATOMS:
            check = CHECKS.get(kind)
            if check is None or not check(item):
                return False
    return True


def built_in(value: object) -> bool:
    """Whether ``value`` and all inside of it are of exact built-in types that BSON has; ``False`` also where that is
    not sure."""
    # Level by level, without a loop over it: exact types that hold nothing but what they hold.
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if len(level) > _MOST_AT_ONCE or not _BUILT_IN.issuperset(map(type, level)):
            return False
        level = gc.get_referents(*level)
        if not level:
            return True
    return False


def packed(value: dict[str, Any]) -> RawBSONDocument | None:
    """The BSON of a dict that is plain throughout; ``None`` if it is not, or not surely.

    Python's garbage collector and PyMongo's encoder together find all that ``surely_plain`` looks for, and what is
    encoded here need not be encoded again. That takes half the time for a dict of 10 KB.
    """
    if not built_in(value):
        return None
    try:
        # Refuses keys that are no text or hold NUL, text that is not Unicode and integers over 64 bits.
        data = bson.encode(value)
    except (InvalidDocument, OverflowError, UnicodeError):
        return None
    if _RESERVED_BYTES in data or (b"$" in data and b"$ref" in data):
        return None
    if "_id" in value and next(iter(value)) != "_id":  # PyMongo puts it first in what it takes for a whole document
        return None
    return RawBSONDocument(data)


def settled(stored: object) -> object:
    """An Int64 as int, a date in exactly ``timezone.utc``; all else as it is."""
    if type(stored) is Int64:
        return int(stored)
    if type(stored) is datetime and stored.tzinfo is not UTC:  # mongomock takes no tzinfo option
        return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)
    return stored


def settle(stored: Any) -> None:
    """``settled`` for all inside of a dict or list that PyMongo decoded, in place."""
    try:
        # The quickest way to learn that all inside is of exact built-in types: it refuses Int64 and dates.
        marshal.dumps(stored)
    except ValueError:
        _settle(stored)


def _settle(stored: Any) -> None:
    for place, item in stored.items() if type(stored) is dict else enumerate(stored):
        kind = type(item)
        if kind in READY:
            continue
        if kind is dict or kind is list:
            _settle(item)
        elif kind is Int64:
            stored[place] = int(item)
        elif kind is datetime and item.tzinfo is not UTC:
            stored[place] = settled(item)
