"""How operators find things: by text, by state, in an order of their choice. Pages go on behind a key or at a place.

Rules of this file:

* Only what is in a filter or in memory: nothing is sent from here.
* In the order of the keys a cursor is the last key of a page, so that nothing is shown twice or left out however much
  comes and goes. In any other order it is a place (``"25"``), since the order itself moves.
* Whatever has no value in the column of the order comes last where this process sorts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

STATES: Final[Mapping[str, tuple[str, ...]]] = {
    "locks": ("waited",),
    "circuits": ("closed", "open", "half-open", "forced"),
    "tasks": ("running", "stalled", "interrupted", "failed", "exhausted", "completed", "cancelled"),
    "flights": (),
    "idempotency": ("in_progress", "completed"),
}
"""What each kind of thing can be filtered by. A lock is ``waited`` for, a circuit ``forced`` by an operator."""

ORDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "locks": ("key", "owner", "token", "held", "left", "waiters"),
    "circuits": ("name", "state", "failures", "next", "changed"),
    "tasks": ("name", "status", "progress", "rate", "left", "owner", "heard"),
    "flights": ("key", "leader", "token", "age", "left"),
    "idempotency": ("key", "state", "holder", "token", "age", "left"),
}
"""The columns by which each kind of thing can be sorted; the first is the order of the keys. ``-held`` is downwards."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page of at most ``limit`` things behind the cursor ``after``: those in which ``search`` is, in ``state``."""

    limit: int
    after: str | None = None
    search: str = ""
    state: str = ""
    order: str = ""

    @property
    def column(self) -> str:
        """By what it is sorted; empty for the order of the keys."""
        return self.order.removeprefix("-")

    @property
    def down(self) -> bool:
        """Whether the greatest comes first."""
        return self.order.startswith("-")

    @property
    def place(self) -> int:
        """How many things stand before this page, in an order other than that of the keys."""
        given = self.after or ""
        return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0

    def following(self, found: int) -> str | None:
        """The cursor of the next page, where this one was asked for with one thing more and ``found`` came."""
        return str(self.place + self.limit) if found > self.limit else None


def usual(order: str, columns: Sequence[str]) -> str:
    """``order``, empty if it is that of the keys."""
    return "" if order == columns[0] else order


def needle(search: str) -> str:
    """The text to look for. NUL is left out: no regular expression of the server can hold it."""
    return search.replace("\0", "")


def containing(prefix: str, search: str) -> dict[str, str]:
    """A test for stored keys with ``search`` after ``prefix``."""
    return {"$regex": f"^{re.escape(prefix)}.*{re.escape(needle(search))}", "$options": "is"}


def anywhere(search: str) -> dict[str, str]:
    """A test for texts with ``search`` in them."""
    return {"$regex": re.escape(needle(search)), "$options": "i"}


def says(search: str, *texts: str | None) -> bool:
    """Whether ``search`` is in one of the ``texts``, in any case of letters."""
    wanted = needle(search).lower()
    return any(one is not None and wanted in one.lower() for one in texts)


def states_named(section: str, search: str) -> list[str]:
    """The states of a section whose name the operator typed, at least three letters of it."""
    wanted = needle(search).lower().strip().replace(" ", "_")
    return [one for one in STATES[section] if len(wanted) >= 3 and one.startswith(wanted)] if wanted else []


def sorted_by(items: Iterable[T], value: Callable[[T], Any], *, down: bool) -> list[T]:
    """``items``, which come in the order of their keys, by ``value``. Those without one (``None``) come last."""
    known: list[T] = []
    unknown: list[T] = []
    for one in items:
        (unknown if value(one) is None else known).append(one)
    known.sort(key=value, reverse=down)  # stable in both directions
    return known + unknown
