"""Reading a field of a stored document, whoever wrote it: Node, an operator in a shell, or a faulty program.

Rule of this file: every function takes any value and never raises. ``expressions.instant`` does the same for times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bson.code import Code

LEAST: Final = -(2**63)
MOST: Final = 2**63 - 1


def whole(value: object, otherwise: int = 0) -> int:
    """A whole number of 64 bits, ``otherwise`` for anything else; fractions are cut off."""
    found = whole_or_none(value)
    return otherwise if found is None else found


def whole_or_none(value: object) -> int | None:
    """A whole number of 64 bits, ``None`` for anything else; fractions are cut off."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if LEAST <= int(value) <= MOST else None


def number(value: object) -> float | None:
    """A finite number, ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def text(value: object) -> str | None:
    """Text, ``None`` for anything else. BSON's code is none, though PyMongo makes a ``str`` of it: it can't be hashed,
    and no filter for a text finds it."""
    return str(value) if isinstance(value, str) and not isinstance(value, Code) else None


NOT_A_LIST: Final = {"$exists": False}
"""The test of ``<field>.0`` by which a range of texts leaves out lists, since it finds those that hold such a text."""


def named_by_text(found: Iterable[Mapping[str, Any]], name: str = "key") -> list[Any]:
    """The documents whose ``name`` is text. A range of texts finds lists too that hold one of them."""
    return [one for one in found if text(one.get(name)) is not None]


def document(value: object) -> dict[str, Any]:
    """A document, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[dict[str, Any]]:
    """The documents in an array; an empty list for anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, (list, tuple)) else []
