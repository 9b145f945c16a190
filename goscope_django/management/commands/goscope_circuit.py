"""``goscope_circuit`` shows circuits and their history, forces them open or closed, and resets them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import OperatorCommand, duration, moment, next_try, whole
from goscope_django.operations import Details
from goscope_django.operations.attention import holder
from goscope_django.operations.values import CircuitItem
from goscope_django.operations.wording import escaped

_QUESTIONS = {
    "open": "Force circuit {!r} open? All calls through it are refused, in the whole fleet, until it is reset.",
    "close": "Force circuit {!r} closed? It lets all calls through, in the whole fleet, until it is reset.",
    "reset": "Reset circuit {!r}? It closes, its failures are forgotten, and nothing forces it any longer.",
}


class Command(OperatorCommand):
    """``list``, ``show``, ``open``, ``close`` and ``reset``."""

    help = "Lists and shows circuits; forces them open or closed for the whole fleet, and resets them."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List circuits, by name.")
        listing.add_argument("--state", choices=operations.SECTION_STATES["circuits"], help="Only those in this state.")
        self.add_paging(listing, "Circuits", "name", "name")
        show = add("show", "Show one circuit: why it opened, and its history.")
        show.add_argument("name")
        self.add_full(show)
        for verb, text in (
            ("open", "Refuse all calls through it until it is reset."),
            ("close", "Let all calls through it until it is reset."),
            ("reset", "Close it, forget its failures and force it no longer."),
        ):
            one = add(verb, text, asks=True)
            one.add_argument("name")
            one.add_argument("--generation", type=whole, help="Only if this is (still) its generation.")
            one.add_argument("--reason", default="", help="A note that is kept in its history.")

    def act(self, **options: Any) -> None:
        verb = options["verb"]
        if verb == "list":
            self._list(options["limit"], options["after"], options["search"], options["state"])
            return
        name = options["name"]
        if verb == "show":
            self._show(self.one("circuit", name))
            return
        self.confirm(_QUESTIONS[verb].format(name), interactive=options["interactive"])
        act = {
            "open": operations.open_circuit,
            "close": operations.close_circuit,
            "reset": operations.reset_circuit,
        }[verb]
        self.done(act(name, options["generation"], options["reason"]))

    def _list(self, limit: int, after: str | None, search: str, state: str | None) -> None:
        found = operations.list_circuits(limit, after, search, state or "")
        if self.as_json:
            self.document({"circuits": found})
            return
        if not found.items:
            self.line("No circuits.")
        else:
            self.table(
                ("CIRCUIT", "STATE", "FAILURES", "RETRY", "GENERATION"),
                [
                    (
                        one.name,
                        f"{one.state}, forced" if one.override else one.state,
                        one.failure_count,
                        next_try(one.retry_after),
                        one.generation,
                    )
                    for one in found.items
                ],
            )
        self.more(found)

    def _show(self, found: Details) -> None:
        if self.as_json:
            self.document({"circuit": found.item, **self.known(found)})
            return
        one = found.item
        assert isinstance(one, CircuitItem)
        forced = f", forced by an operator: {escaped(one.override.reason) or 'no reason given'}" if one.override else ""
        self.line(f"{escaped(one.name)}: {one.state}{forced}", self.style.MIGRATE_HEADING)
        self.needs(found.attention)
        self.facts(
            [
                ("failures", one.failure_count),
                ("generation", one.generation),
                ("open for", duration(one.open_for)),
                ("retry after", next_try(one.retry_after)),
                ("opened by", one.opened_by),
                ("last failure", f"{moment(one.last_failure_time)}  {one.last_failure or ''}".rstrip()),
                ("last success", moment(one.last_success_time)),
            ]
        )
        for probe in one.probes:
            who = holder(probe.holder) if probe.holder else probe.id
            self.facts([("trial call", f"{who}, {duration(probe.seconds_left)} left")])
        if one.history:
            self.line()
            self.table(
                ("AT", "FROM", "TO", "REASON", "NOTE"),
                [
                    (
                        f"{move.at:%Y-%m-%d %H:%M:%S}" if move.at else "-",
                        move.from_state,
                        move.to_state,
                        move.reason,
                        move.note,
                    )
                    for move in reversed(one.history)
                ],
                cut=(4,),
                key=4,
            )
