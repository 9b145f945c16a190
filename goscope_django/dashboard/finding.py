"""The parts of a section by which an operator finds things: columns to sort by, states to filter by.

Rules of this file:

* Each is a link or a form with GET, so that it works without JavaScript and its address can be sent to a colleague.
* Below the width at which a row becomes a card there are no column headings, so the form has every order as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from goscope_django.dashboard.forms import LONGEST_LINK, Query
from goscope_django.operations import SECTION_ORDERS, SECTION_STATES

COLUMNS: Final = {
    "locks": {
        "key": "Key",
        "owner": "Holder",
        "token": "Token",
        "held": "Held for",
        "left": "Ends in",
        "waiters": "Waiting",
    },
    "circuits": {
        "name": "Name",
        "state": "State",
        "failures": "Failures",
        "next": "Next try",
        "changed": "Changed",
    },
    "tasks": {
        "name": "Task",
        "status": "Status",
        "progress": "Progress",
        "rate": "Rate",
        "left": "Time left",
        "owner": "Runner",
        "heard": "Last heard of",
    },
    "flights": {"key": "Key", "leader": "Leader", "token": "Token", "age": "Runs for", "left": "Lease ends in"},
    "idempotency": {
        "key": "Key",
        "state": "State",
        "holder": "Holder",
        "token": "Token",
        "age": "Age",
        "left": "Ends in",
    },
}
"""What the columns are called."""

GREATEST_FIRST: Final = frozenset(("waiters", "failures", "held", "age", "rate", "progress", "heard", "changed"))
"""The columns in which the greatest is what an operator looks for."""

_TEXTS: Final = frozenset(("key", "name", "owner", "holder", "leader", "state", "status"))
_WORDS: Final = {"waited": "waited for", "in_progress": "in progress"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading. ``link`` is the query string that sorts by it, or turns the order round; ``sort`` is ``aria-sort``."""

    name: str
    label: str
    link: str
    sort: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An option of a form's list."""

    value: str
    label: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a section needs: its headings by name, the two lists of its form, and what else the form has to send."""

    name: str
    columns: dict[str, Column]
    states: list[Choice]
    orders: list[Choice]
    hidden: list[tuple[str, str]]
    links: dict[str, str]
    """The query string of each state."""
    narrowed: str | None
    """The query string that shows all again, where a state is chosen."""
    state: str


def finding(name: str, query: Query) -> Finding:
    """The parts of one section, as the operator has it now."""
    state, now = query.states.get(name, ""), query.orders.get(name, SECTION_ORDERS[name][0])
    rest = query.of_section(name, state="", order="")
    return Finding(
        name=name,
        columns={one: _column(name, query, one, now) for one in COLUMNS[name]},
        states=[
            Choice(value=one, label=words(one) or "all", chosen=one == state)
            for one in ("", *SECTION_STATES[name])
            if SECTION_STATES[name]
        ],
        orders=list(_orders(name, now)),
        hidden=rest.pairs(),
        links={one: _link(query.of_section(name, state=one)) for one in SECTION_STATES[name]},
        narrowed=_link(query.of_section(name, state="")) if state else None,
        state=words(state),
    )


def words(state: str) -> str:
    """A state as people read it."""
    return _WORDS.get(state, state)


def _link(query: Query) -> str:
    """The query string; where it is too long for an address, without the search and the other pages."""
    found = query.encoded()
    return found if len(found) <= LONGEST_LINK else query.searching().encoded()


def _column(name: str, query: Query, column: str, now: str) -> Column:
    first = f"-{column}" if column in GREATEST_FIRST else column
    second = column if first != column else f"-{column}"
    sort = "descending" if now == f"-{column}" else "ascending" if now == column else ""
    order = second if now == first else first
    link = _link(query.of_section(name, order="" if order == SECTION_ORDERS[name][0] else order))
    return Column(name=column, label=COLUMNS[name][column], link=link, sort=sort)


def _orders(name: str, now: str) -> Iterator[Choice]:
    for column, label in COLUMNS[name].items():
        first = f"-{column}" if column in GREATEST_FIRST else column
        second = column if first != column else f"-{column}"
        for order in (first, second):
            names = ("A to Z", "Z to A") if column in _TEXTS else ("least first", "most first")
            yield Choice(value=order, label=f"{label}, {names[order.startswith('-')]}", chosen=order == now)
