"""A comparison that sees every difference between two values, also those that ``==`` does not."""

from __future__ import annotations

import enum
import struct
from collections import deque
from dataclasses import fields, is_dataclass
from datetime import datetime, time, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from bson.binary import Binary
from bson.code import Code
from bson.dbref import DBRef
from bson.regex import Regex
from django.http import HttpResponse


def same(left: Any, right: Any) -> bool:
    """Whether two values can't be told apart: one type all the way down, equal, NaN, -0.0, fold and zone included."""
    kind = type(left)
    if kind is not type(right):
        return False
    if isinstance(left, enum.Enum):
        # Where Python itself makes a combination of flags anew each time (3.11.2), two of them can but be equal.
        return left is right or (kind(left.value) is not left and bool(left.value == right.value))
    if kind in (list, tuple, deque):
        return len(left) == len(right) and all(map(same, left, right))
    if kind in (set, frozenset):
        rest = list(right)
        return len(left) == len(rest) and all(_take(item, rest) for item in left)
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if kind is HttpResponse or isinstance(left, HttpResponse):
        return same(_visible(left), _visible(right))
    return same_scalar(left, right)


def same_scalar(left: Any, right: Any) -> bool:
    """``same`` for two values of one type that is no container."""
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, complex):
        return same((left.real, left.imag), (right.real, right.imag))
    if isinstance(left, Decimal):
        return bool(left.as_tuple() == right.as_tuple())
    if isinstance(left, datetime | time):
        return (
            left.replace(tzinfo=None) == right.replace(tzinfo=None)
            and left.fold == right.fold
            and _zone(left.tzinfo) == _zone(right.tzinfo)
        )
    if isinstance(left, UUID):
        return left.int == right.int and left.is_safe is right.is_safe
    if isinstance(left, Regex):
        return same((left.pattern, int(left.flags)), (right.pattern, int(right.flags)))
    if isinstance(left, Code):
        return str(left) == str(right) and same(left.scope, right.scope)
    if isinstance(left, Binary):
        return left.subtype == right.subtype and bytes(left) == bytes(right)
    if isinstance(left, DBRef):
        return same(left.as_doc(), right.as_doc())
    if is_dataclass(left):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    return bool(left == right)


def _take(item: Any, rest: list[Any]) -> bool:
    for place, candidate in enumerate(rest):
        if same(item, candidate):
            del rest[place]
            return True
    return False


def _zone(zone: tzinfo | None) -> object:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    if zone is None:
        return None
    return type(zone), zone.utcoffset(None), zone.tzname(None)


def _visible(response: HttpResponse) -> dict[str, Any]:
    """What a view, a middleware or a client can see of a response; chunks of content are not told apart."""
    state: dict[str, Any] = dict(response.__dict__)
    for name in ("_resource_closers", "_handler_class", "text", "_container", "template_name", "context_data"):
        state.pop(name, None)
    state.pop("_post_render_callbacks", None)
    if type(response).__name__ == "TemplateResponse":
        state.pop("_request", None)
    state["headers"] = list(response.headers.items())
    state["cookies"] = [
        (name, morsel.key, morsel.value, morsel.coded_value, sorted(morsel.items()))
        for name, morsel in response.cookies.items()
    ]
    state["content"] = response.content
    state["status"] = response.status_code
    return dict(sorted(state.items()))
