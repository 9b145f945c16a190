"""Expressions that the server computes: literals, tests of fields, conditions; and ranges of keys.

Rule of this file: it is the only place that spells ``$$NOW``, ``$$CLUSTER_TIME`` and ``$literal``. Expressions are
plain documents. What needs the time is a method of a ``Clock``, since mongomock has no server time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Expression = Any
COUNTABLE = 2**62


def literal(value: object) -> Expression:
    """``value`` as data, whatever it looks like (``"$x"``, ``{"$gt": 1}``)."""
    return {"$literal": value}


def or_null(field: str) -> Expression:
    """The field's value, ``null`` where it is missing."""
    return {"$ifNull": [f"${field}", None]}


def named(full: str) -> dict[str, Expression]:
    """The ``_id`` of a document that is found by ``key``: its own if there is one, else the key ``full``."""
    return {"_id": {"$ifNull": ["$_id", literal(full)]}}


def is_null(field: str) -> Expression:
    """True if the field is missing or null."""
    return {"$eq": [or_null(field), None]}


def countable(field: str) -> Expression:
    """The number in the field, 0 if there is none from 0 to 2**62."""
    # In the order of BSON's types only numbers are between two numbers, and NaN is not.
    counts = {"$and": [{"$gte": [f"${field}", 0]}, {"$lt": [f"${field}", COUNTABLE]}]}
    return {"$cond": [counts, f"${field}", 0]}


def array(field: str) -> Expression:
    """The array in the field, an empty one where there is none."""
    return {"$cond": [{"$isArray": or_null(field)}, f"${field}", []]}


def is_set(field: str) -> Expression:
    """True if the field is there and not null."""
    return {"$ne": [or_null(field), None]}


FAR = datetime(9999, 12, 31)  # noqa: DTZ001  as mongomock holds it


def conditions(test: Expression, changes: dict[str, Expression]) -> dict[str, Expression]:
    """A ``$set`` stage's fields that take ``changes`` where ``test`` holds and stay as they are where it does not."""
    return {field: {"$cond": [test, value, f"${field}"]} for field, value in changes.items()}


def just(item: Expression) -> Expression:
    """An array of one evaluated item. A server would take a list with an expression in it, mongomock does not."""
    return {"$map": {"input": [0], "as": "x", "in": item}}


def instant(value: Any) -> datetime | None:
    """An aware UTC datetime from what a driver gave (mongomock gives naive ones or a zone of its own)."""
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def prefix_range(prefix: str, after: str | None = None) -> dict[str, str]:
    """A filter for the keys that begin with ``prefix`` (behind ``after``, if given): a range, so an index serves it."""
    test = {"$gt": after} if after is not None else {"$gte": prefix}
    # The next text in code point order, which is UTF-8's byte order and so the index's.
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position])
        if point < 0x10FFFF:
            point = 0xE000 if point == 0xD7FF else point + 1
            return {**test, "$lt": prefix[:position] + chr(point)}
    return test
