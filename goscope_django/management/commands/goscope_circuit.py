"""``goscope_circuit`` shows circuits and their history, forces them open or closed, and resets them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.contracts import CIRCUIT_STATES
from goscope_django.management.output import OperatorCommand, duration, whole
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
        listing.add_argument("--state", choices=CIRCUIT_STATES, help="Only those in this state, of those listed.")
        self.add_paging(listing, "Circuits", "name", "name")
        add("show", "Show one circuit with its history.").add_argument("name")
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
            self._show(operations.get_circuit(name))
            return
        self.confirm(_QUESTIONS[verb].format(name), interactive=options["interactive"])
        act = {
            "open": operations.open_circuit,
            "close": operations.close_circuit,
            "reset": operations.reset_circuit,
        }[verb]
        self.done(act(name, options["generation"], options["reason"]))

    def _list(self, limit: int, after: str | None, search: str, state: str | None) -> None:
        found = operations.list_circuits(limit, after, search)
        items = [one for one in found.items if state in (None, one.state)]
        if self.as_json:
            self.document({"circuits": {**operations.plain(found), "items": operations.plain(items)}})
            return
        if not items:
            self.line("No circuits.")
        else:
            self.table(
                ("CIRCUIT", "STATE", "FAILURES", "RETRY", "GENERATION"),
                [
                    (
                        one.name,
                        f"{one.state}, forced" if one.override else one.state,
                        one.failure_count,
                        duration(one.retry_after),
                        one.generation,
                    )
                    for one in items
                ],
            )
        self.more(found)

    def _show(self, one: CircuitItem) -> None:
        if self.as_json:
            self.document({"circuit": one})
            return
        forced = f", forced by an operator: {escaped(one.override.reason) or 'no reason given'}" if one.override else ""
        self.line(f"{escaped(one.name)}: {one.state}{forced}", self.style.MIGRATE_HEADING)
        self.line(f"  failures      {one.failure_count}")
        self.line(f"  generation    {one.generation}")
        self.line(f"  retry after   {duration(one.retry_after)}")
        self.line(f"  last failure  {one.last_failure_time or '-'}")
        self.line(f"  last success  {one.last_success_time or '-'}")
        for probe in one.probes:
            self.line(f"  trial call    {escaped(probe.id)}, {duration(probe.seconds_left)} left")
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
                flexible=4,
            )
