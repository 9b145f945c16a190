"""What comes from the browser: which part of the state to show, and what an action is about.

Rule of this file: a key is sent as JSON in ASCII. In a form's field NUL and lone line feeds would arrive changed, and
in a path slashes and dots would have a meaning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from django import forms
from django.http import HttpRequest, QueryDict

from goscope_django.operations import SECTION_ORDERS, SECTION_STATES, SECTIONS

PAGE: Final = 25
LARGEST: Final = 200
LONGEST_LINK: Final = 1_500
"""Characters of a query that fit in the request line of any server. A longer query is posted."""


def text_of(params: QueryDict, name: str) -> str:
    """A parameter, without characters that UTF-8 can't carry."""
    value = params.get(name) or ""
    return value.encode("utf-8", "ignore").decode()


@dataclass(frozen=True, slots=True)
class Query:
    """What part of the state to show. In an address ``locks.state`` and ``locks.sort`` stand beside the cursors."""

    search: str = ""
    limit: int = PAGE
    cursors: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """Names of parameters whose values make no sense."""

    @classmethod
    def of(cls, request: HttpRequest) -> Self:
        """From the address, or from the field ``query`` of a posted form."""
        posted = request.POST.get("query") if request.method == "POST" else None
        return cls.parse(request.GET if posted is None else QueryDict(posted))

    @classmethod
    def parse(cls, params: QueryDict) -> Self:
        """From parameters. Those that make no sense are left out, and named in ``ignored``."""
        given = params.get("limit") or ""
        limit = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else PAGE
        states = {f"{name}.state": known for name, known in SECTION_STATES.items()}
        orders = {f"{name}.sort": known for name, known in SECTION_ORDERS.items()}
        ignored = ["limit"] if given and (given != str(limit) or not 1 <= limit <= LARGEST) else []
        ignored += [one for one, known in states.items() if (value := params.get(one)) and value not in known]
        ignored += [
            one for one, known in orders.items() if (value := params.get(one)) and value.removeprefix("-") not in known
        ]
        return cls(
            search=text_of(params, "q"),
            limit=min(max(1, limit), LARGEST),
            cursors={name: text_of(params, name) for name in SECTIONS if name in params},  # "" is a key, too
            states={
                name: state for name, known in SECTION_STATES.items() if (state := params.get(f"{name}.state")) in known
            },
            orders={
                name: order
                for name, known in SECTION_ORDERS.items()
                if (order := params.get(f"{name}.sort") or "").removeprefix("-") in known and order != known[0]
            },
            ignored=tuple(ignored),
        )

    def pairs(self) -> list[tuple[str, str]]:
        """As names and values."""
        found = [("q", self.search)] if self.search else []
        found += [("limit", str(self.limit))] if self.limit != PAGE else []
        found += [(f"{name}.state", state) for name, state in self.states.items()]
        found += [(f"{name}.sort", order) for name, order in self.orders.items()]
        return found + list(self.cursors.items())

    def encoded(self, **changed: str | None) -> str:
        """As a query string, with the cursors ``changed``."""
        cursors = {name: cursor for name, cursor in {**self.cursors, **changed}.items() if cursor is not None}
        params = QueryDict(mutable=True)
        for name, value in replace(self, cursors=cursors).pairs():
            params[name] = value
        return params.urlencode()

    def searching(self) -> Self:
        """The same states and orders on the first pages, without the search: what a new search goes along with."""
        return replace(self, search="", cursors={})

    def of_section(self, name: str, *, state: str | None = None, order: str | None = None) -> Self:
        """The first page of a section in another state or order (``""``: all, and by key); ``None`` leaves it."""
        states, orders = dict(self.states), dict(self.orders)
        for kept, value in ((states, state), (orders, order)):
            if value:
                kept[name] = value
            elif value is not None:
                kept.pop(name, None)
        cursors = {one: cursor for one, cursor in self.cursors.items() if one != name}
        return replace(self, states=states, orders=orders, cursors=cursors)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the operator saw and acts on: a key, and the token or generation that it had."""

    key: str
    mark: int | None = None
    owner: str | None = None
    state: str = ""

    def encoded(self) -> str:
        """As the value of a form's field, for ``parse``."""
        return json.dumps([self.key, self.mark, self.owner, self.state])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The opposite of ``encoded``. Raises ``ValueError`` for anything else."""
        found: Any = json.loads(text)
        if not isinstance(found, list) or len(found) != 4:
            raise ValueError("four things are needed")
        key, mark, owner, state = found
        if not isinstance(key, str) or not isinstance(state, str):
            raise ValueError("text is needed")
        if mark is not None and (type(mark) is not int or not -(2**63) <= mark < 2**63):
            raise ValueError("a whole number is needed")
        if owner is not None and not isinstance(owner, str):
            raise ValueError("text is needed")
        for one in (key, owner or "", state):
            one.encode()  # a lone surrogate can't be stored, or shown
        return cls(key, mark, owner, state)


def selected(data: QueryDict, noun: str) -> list[Seen]:
    """The things of a kind that the operator ticked, at most ``LARGEST``. Raises ``ValueError`` for what makes no
    sense."""
    begin = f"{noun}:"
    try:
        found = [Seen.parse(one.removeprefix(begin)) for one in data.getlist("selected") if one.startswith(begin)]
    except RecursionError:
        raise ValueError("this is no selection") from None
    return list(dict.fromkeys(found))[:LARGEST]


class SeenField(forms.CharField):
    """A ``Seen`` as the form's hidden field."""

    widget = forms.HiddenInput

    def __init__(self) -> None:
        super().__init__(strip=False)
        self.validators = []  # NUL is escaped in JSON, and ``Seen`` judges the rest

    def clean(self, value: Any) -> Any:
        """A ``Seen``; raises ``ValidationError``."""
        try:
            return Seen.parse(super().clean(value))
        except (ValueError, RecursionError):
            raise forms.ValidationError("This does not say what to act on.") from None


class SeenForm(forms.Form):
    """What an action is about."""

    seen = SeenField()


class ReasonForm(forms.Form):
    """The reason, for the actions that keep one in a history."""

    reason = forms.CharField(
        required=False,
        max_length=200,
        label="Reason",
        help_text="Optional. It is kept in the circuit's history, for your colleagues to read.",
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"}),
    )
