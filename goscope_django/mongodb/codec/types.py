"""How single types that BSON can't hold are stored as tagged BSON: one ``TypeCodec`` for each.

A ``pack`` function returns what BSON can hold and passes every inner value to ``child``; ``unpack`` does the reverse.
``unpack`` may be given anything that is in the database. So each checks the shape of its data before it uses it
(``bytearray(10**12)`` would allocate), and none imports a module or calls anything that the data names, except to look
up a member of an ``Enum`` that is already loaded.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from typing import Any, Final, TypeVar
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.int64 import Int64
from bson.regex import Regex
from bson.son import SON
from bson.timestamp import Timestamp

from goscope_django.exceptions import Undecodable

Child = Callable[[Any], Any]
T = TypeVar("T")

UNKNOWN: Final = object()
"""Returned by a ``pack`` function that can't store this particular value. It is pickled then."""


@dataclass(frozen=True, slots=True)
class TypeCodec:
    """How values of some types are stored as tagged BSON.

    ``tag`` names the format in the database and must never change its meaning. ``types`` are matched exactly;
    with ``subclasses`` also whatever derives from them, when no exact type fits. ``pack(value, child)`` returns
    BSON data, or ``UNKNOWN``, which it must decide before it calls ``child``. ``unpack(data, child)`` returns
    the value; any exception it raises makes the entry ``damaged``. A mutable result is a new object each time.
    """

    tag: str
    types: tuple[type, ...]
    pack: Callable[[Any, Child], object]
    unpack: Callable[[Any, Child], object]
    subclasses: bool = False


def damaged(message: str) -> Undecodable:
    """The error of an ``unpack`` function that finds data of the wrong shape."""
    return Undecodable("damaged", message)


def need(kind: type[T], data: object) -> T:
    """``data``, if it is of ``kind`` (int: not bool); otherwise ``Undecodable("damaged")``."""
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise damaged(f"stored data is {type(data).__name__}, expected {kind.__name__}")
    return data


def need_list(data: object, length: int) -> list[Any]:
    """``data``, if it is a list of exactly ``length`` elements; otherwise ``Undecodable("damaged")``."""
    items = need(list, data)
    if len(items) != length:
        raise damaged(f"stored data has {len(items)} elements, expected {length}")
    return items


# Time zones


def _zone(tz: tzinfo | None) -> object:
    """A time zone as BSON data: null, an offset in microseconds with its name, or a key; else ``UNKNOWN``."""
    if tz is None:
        return None
    if type(tz) is timezone:
        offset = tz.utcoffset(None)
        name = tz.tzname(None)
        return [offset // timedelta(microseconds=1), name if name != timezone(offset).tzname(None) else None]
    if type(tz) is ZoneInfo and tz.key:
        try:
            if ZoneInfo(tz.key) is tz:  # not so for zones from a file or outside the cache
                return tz.key
        except (KeyError, ValueError, OSError):
            pass
    return UNKNOWN


def _unzone(data: object) -> tzinfo | None:
    if data is None:
        return None
    if isinstance(data, str):
        return ZoneInfo(data)
    microseconds, name = need_list(data, 2)
    offset = timedelta(microseconds=need(int, microseconds))
    return timezone(offset) if name is None else timezone(offset, need(str, name))


def _pack_moment(value: datetime | time, child: Child) -> object:
    zone = _zone(value.tzinfo)
    if zone is UNKNOWN:
        return UNKNOWN
    return [value.replace(tzinfo=None).isoformat(), child(zone), value.fold]


def _unpack_datetime(data: object, child: Child) -> datetime:
    text, zone, fold = need_list(data, 3)
    return datetime.fromisoformat(need(str, text)).replace(tzinfo=_unzone(child(zone)), fold=need(int, fold))


def _unpack_time(data: object, child: Child) -> time:
    text, zone, fold = need_list(data, 3)
    return time.fromisoformat(need(str, text)).replace(tzinfo=_unzone(child(zone)), fold=need(int, fold))


# Containers


def _pack_items(value: Any, child: Child) -> object:
    return [child(item) for item in value]


MOST_ALIKE: Final = 64
"""Members of a set or keys of a dict that may have one hash. Each is compared with all of them before it, so a few
thousand that somebody has planted (multiples of 2**61 - 1, for example) would keep a process busy for minutes."""


def _alike(items: Collection[Any]) -> bool:
    """Whether more than ``MOST_ALIKE`` of ``items`` have one hash. Takes as long as hashing them once."""
    return len(items) > MOST_ALIKE and max(Counter(map(hash, items)).values()) > MOST_ALIKE


def _pack_set(value: Any, child: Child) -> object:
    return UNKNOWN if _alike(value) else _pack_items(value, child)


def _pack_dict(value: Mapping[Any, Any], child: Child) -> object:
    return UNKNOWN if _alike(value) else _pack_pairs(value, child)


def _pack_pairs(value: Mapping[Any, Any], child: Child) -> object:
    return [[child(key), child(item)] for key, item in value.items()]


def _unpack_pairs(kind: Callable[[list[tuple[Any, Any]]], T]) -> Callable[[Any, Child], T]:
    def unpack(data: object, child: Child) -> T:
        pairs = [need_list(pair, 2) for pair in need(list, data)]
        found = [(child(key), child(item)) for key, item in pairs]
        if _alike([key for key, _ in found]):
            raise damaged("too many keys of a stored dict have one hash")
        return kind(found)

    return unpack


def _unpack_items(kind: Callable[[list[Any]], T]) -> Callable[[Any, Child], T]:
    def unpack(data: object, child: Child) -> T:
        return kind([child(item) for item in need(list, data)])

    return unpack


def _unpack_set(kind: Callable[[list[Any]], T]) -> Callable[[Any, Child], T]:
    def unpack(data: object, child: Child) -> T:
        found = [child(item) for item in need(list, data)]
        if _alike(found):
            raise damaged("too many members of a stored set have one hash")
        return kind(found)

    return unpack


# Scalars

_ANY_TEXT: Final = ("utf-8", "surrogatepass")


def _scalar(
    tag: str, kind: type, pack: Callable[[Any], object], stored: type, unpack: Callable[[Any], object]
) -> TypeCodec:
    """A codec for values without inner values, kept as data of type ``stored``."""
    return TypeCodec(tag, (kind,), lambda value, _: pack(value), lambda data, _: unpack(need(stored, data)))


def _pack_int(value: int) -> str:
    # Python refuses to convert very long integers to and from decimal text; hexadecimal has no such limit.
    return str(value) if value.bit_length() <= 2048 else hex(value)


def _pack_uuid(value: UUID) -> object:
    return [str(value), None if value.is_safe is SafeUUID.unknown else value.is_safe.value]


def _unpack_uuid(data: object) -> UUID:
    text, safe = need_list(data, 2)
    return UUID(need(str, text), is_safe=SafeUUID(safe))


def _unpack_timedelta(data: object) -> timedelta:
    days, seconds, microseconds = need_list(data, 3)
    return timedelta(need(int, days), need(int, seconds), need(int, microseconds))


def _unpack_complex(data: object) -> complex:
    real, imaginary = need_list(data, 2)
    return complex(need(float, real), need(float, imaginary))


# Classes with inner values


def _enum_class(module: str, qualname: str) -> type[Enum] | None:
    """The ``Enum`` of that name, if its module is loaded already. Imports nothing and calls nothing.

    Names are looked up in ``__dict__``: ``getattr`` could run a module's ``__getattr__``, which may import.
    """
    found: object = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    if isinstance(found, type) and issubclass(found, Enum):
        return found
    return None


def _combination(kind: type[Enum], bits: int) -> Enum | None:
    """The flags that ``bits`` are; ``None`` where the class makes something else of them.

    Before Python 3.11.4 two of them need not be identical, and bits that no flag has may become no flags at all.
    """
    flags = kind(bits)
    return flags if type(flags) is kind and flags.value == bits else None


def _pack_enum(value: Enum, child: Child) -> object:
    kind = type(value)
    if _enum_class(kind.__module__, kind.__qualname__) is not kind:
        return UNKNOWN  # local or shadowed
    where = [kind.__module__, kind.__qualname__]
    name = value.name
    if kind.__members__.get(name) is value:
        return [*where, child(name), None]
    bits: object = value.value
    if isinstance(value, Flag) and type(bits) is int and _combination(kind, bits) is not None:
        return [*where, None, child(bits)]
    return UNKNOWN


def _unpack_enum(data: object, child: Child) -> Enum:
    module, qualname, name, bits = need_list(data, 4)
    kind = _enum_class(need(str, module), need(str, qualname))
    if kind is None:
        raise damaged("a stored enumeration is not (or not yet) loaded in this process")
    if name is not None:
        return kind.__members__[need(str, child(name))]
    if not issubclass(kind, Flag):
        raise damaged("a stored enumeration has no name")
    flags = _combination(kind, need(int, child(bits)))
    if flags is None:
        raise damaged("a stored enumeration is of flags that it does not have")
    return flags


def _unpack_dbref(data: object, child: Child) -> DBRef:
    fields = _unpack_pairs(dict)(data, child)
    return DBRef(fields.pop("$ref"), fields.pop("$id"), fields.pop("$db", None), **fields)


def _unpack_regex(data: object, child: Child) -> Regex[Any]:
    pattern, flags = need_list(data, 2)
    return Regex(child(pattern), need(int, flags))


def _unpack_code(data: object, child: Child) -> Code:
    text, scope = need_list(data, 2)
    return Code(need(str, child(text)), child(scope))


BUILTIN_TYPES: Final[tuple[TypeCodec, ...]] = (
    TypeCodec("tuple", (tuple,), _pack_items, _unpack_items(tuple)),
    TypeCodec("set", (set,), _pack_set, _unpack_set(set)),
    TypeCodec("frozenset", (frozenset,), _pack_set, _unpack_set(frozenset)),
    TypeCodec("dict", (dict,), _pack_dict, _unpack_pairs(dict)),
    TypeCodec("ordereddict", (OrderedDict,), _pack_dict, _unpack_pairs(OrderedDict)),
    TypeCodec("son", (SON,), _pack_dict, _unpack_pairs(SON)),
    _scalar("str", str, lambda value: value.encode(*_ANY_TEXT), bytes, lambda data: data.decode(*_ANY_TEXT)),
    _scalar("int", int, _pack_int, str, lambda data: int(data, 0)),
    _scalar("bytearray", bytearray, bytes, bytes, bytearray),
    _scalar("complex", complex, lambda value: [value.real, value.imag], list, _unpack_complex),
    _scalar("decimal", Decimal, str, str, Decimal),
    _scalar("uuid", UUID, _pack_uuid, list, _unpack_uuid),
    _scalar("date", date, date.isoformat, str, date.fromisoformat),
    _scalar(
        "timedelta", timedelta, lambda value: [value.days, value.seconds, value.microseconds], list, _unpack_timedelta
    ),
    TypeCodec("datetime", (datetime,), _pack_moment, _unpack_datetime),
    TypeCodec("time", (time,), _pack_moment, _unpack_time),
    TypeCodec("enum", (Enum,), _pack_enum, _unpack_enum, subclasses=True),
    _scalar("int64", Int64, int, int, Int64),
    _scalar("datetimems", DatetimeMS, int, int, DatetimeMS),
    _scalar("binary", Binary, bytes, bytes, lambda data: Binary(data, 0)),
    _scalar("timestamp", Timestamp, lambda value: value.time, int, lambda data: Timestamp(data, 0)),
    TypeCodec("regex", (Regex,), lambda value, child: [child(value.pattern), int(value.flags)], _unpack_regex),
    TypeCodec("code", (Code,), lambda value, child: [child(str(value)), child(value.scope)], _unpack_code),
    TypeCodec("dbref", (DBRef,), lambda value, child: _pack_pairs(value.as_doc(), child), _unpack_dbref),
)
"""Every tagged type that needs no Django."""
