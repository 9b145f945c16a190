"""``goscope_status`` shows everything at a glance, for people, scripts and container probes."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import (
    FAILED,
    UNKNOWN,
    Error,
    OperatorCommand,
    last_heard_of,
    next_try,
    percent,
    positive,
    rate,
    seconds,
    time_left,
)
from goscope_django.operations import SECTIONS, State
from goscope_django.operations.meanwhile import FEATURES, since_when
from goscope_django.operations.wording import escaped, number

TOP, REST, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
"""To the screen's first line; clear the rest of the line; clear what is below."""

_PARTS = {
    "Indexes": "server",
    "Locks": "locks",
    "Circuits": "circuits",
    "Tasks": "tasks",
    "Flights": "flights",
    "Idempotency": "idempotency",
    "Cache": "cache",
    "Sessions": "cache",
    "Last hour": "figures",
}
"""The rows of the summary, and the part of the state that each shows."""


class Command(OperatorCommand):
    """The command, which has no verbs."""

    happenings = ("locks_acquired", "locks_lost", "circuits_opened")
    help = (
        "Shows the server, its indexes, and what is held, open, running and cached. "
        "Exits 0 when all is well, 1 when an index is missing or differs, a right is missing, the server is not "
        "supported or a part can't be read, 2 when the server can't be reached or refuses the user, or the settings "
        "can't be used."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_json(parser)
        parser.add_argument("--watch", type=seconds, metavar="SECONDS", help="Show it again and again until Ctrl-C.")
        parser.add_argument("--limit", type=positive, default=10, help="Items of each kind to show (default: 10).")
        parser.add_argument("--search", default="", help="Only what has this text in its key, name or owner.")
        self.add_full(parser)

    def act(self, **options: Any) -> None:
        limit, search, pause = options["limit"], options["search"], options.get("watch")
        if pause and self.as_json:
            raise Error("--watch and --json exclude each other: --json is one document.", UNKNOWN)
        if pause:
            self._watch(limit, search, pause)
            return
        state = operations.state(limit=limit, search=search)
        if self.as_json:
            self.document(state.as_json())
        else:
            self._show(state)
        self._judge(state)

    def _watch(self, limit: int, search: str, pause: float) -> None:
        redraw = self.stdout.isatty()
        try:
            while True:
                state = operations.state(limit=limit, search=search)
                self.page = [] if redraw else None
                self.line(f"{state.generated_at:%H:%M:%S} UTC, again every {pause:g} s. Ctrl-C ends.")
                self._show(state)
                if self.page is not None:
                    self._redraw(self.page)
                self.stdout.flush()
                time.sleep(pause)
        except KeyboardInterrupt:
            self.page = None
            self.line()

    def _redraw(self, lines: list[str]) -> None:
        """Draw ``lines`` over what is on the screen: nothing flickers, and nothing scrolls away."""
        self.page, room = None, self._terminal().lines - 2
        if len(lines) > room:
            lines = [*lines[:room], f"... and {len(lines) - room} lines more"]
        self.stdout.write(TOP + "".join(f"{one}{REST}\n" for one in lines) + BELOW, ending="")

    def _judge(self, state: State) -> None:
        """Raise an ``Error`` unless all is well."""
        if not state.reachable:
            raise self.failed(f"{state.problems[0].rstrip('.')}. {state.hint}", UNKNOWN)
        broken = [name for name in SECTIONS if getattr(state, name).error]
        wrong = [one for alias in state.cache.aliases for one in alias.indexes if one.state != "present"]
        failed = [alias.alias for alias in state.cache.aliases if alias.error]
        if state.server.error or state.server.faults or not state.server.indexes_ok or wrong or broken or failed:
            raise self.failed("\n".join(state.problems), FAILED)

    def _attention(self, state: State) -> None:
        """Print what needs attention, the most urgent first, each with what to do about it."""
        found = state.attention
        well = not found.total and found.complete
        self.wrapped(found.summary, self.style.SUCCESS if well else self.style.ERROR)
        self.needs(found.items)
        hidden = sum(found.by_kind.values()) - len(found.items)
        if hidden > 0:
            self.line(f"  and {number(hidden, at_least=found.at_least)} more")
        self.line()

    def _show(self, state: State) -> None:
        self._attention(state)
        server = state.server
        self.line(escaped(state.url), self.style.MIGRATE_HEADING)
        if not state.reachable:
            self.wrapped(f"  not reached: {escaped(state.error)}", self.style.ERROR, indent="    ")
            at = f"{state.away_since:%H:%M:%S} UTC" if state.away_since else ""
            for told in (since_when(state, at), state.hint):
                if told:
                    self.wrapped(f"  {told}")
            self.line(f"  named by {state.chosen_by}")
            self.line()
            self.line("What each feature does meanwhile", self.style.MIGRATE_HEADING)
            width = max(len(one.feature) for one in FEATURES) + 4
            for one in FEATURES:
                self.wrapped(f"  {one.feature.ljust(width - 2)}{one.now}", indent=" " * width)
            return
        kind = server.topology or "unknown"
        near = f", {server.latency * 1_000:.1f} ms away" if server.latency is not None else ""
        self.line(
            f"  {kind}, MongoDB {server.version or 'of unknown version'}{near}, clock {server.clock_offset or 0:+.1f} s"
        )
        if server.primary:
            self.line(f"  primary {escaped(server.primary)} of {len(server.members)} members")
        self.line(f"  named by {state.chosen_by}")
        self.line(f"  prefix {escaped(state.key_prefix) or '(none)'}")
        for notice in server.notices:
            self.wrapped(f"  note: {escaped(notice)}", self.style.WARNING)
        self._summary(state)
        self._tables(state)

    def _summary(self, state: State) -> None:
        circuits, tasks, records = state.circuits, state.tasks, state.idempotency
        states = ", ".join(f"{count} {name}" for name, count in circuits.by_state.items() if count) or "none"
        statuses = ", ".join(f"{count} {name}" for name, count in tasks.by_status.items() if count) or "none"
        forced = f" ({circuits.forced} forced)" if circuits.forced else ""
        present = sum(one.state == "present" for one in state.server.indexes)
        totals = state.figures.totals
        cache_section, cache, indexes = state.cache, state.cache.figures, len(state.server.indexes)
        rows = [
            ("Indexes", f"{present} of {indexes} as needed" if indexes else "not known"),
            ("Locks", f"{number(state.locks.total, at_least=state.locks.at_least)} held"),
            ("Circuits", f"{states}{forced}"),
            ("Tasks", statuses),
            ("Flights", f"{number(state.flights.total, at_least=state.flights.at_least)} running"),
            ("Idempotency", f"{number(records.in_progress)} in progress, {number(records.completed)} completed"),
            ("Cache", f"{number(state.cache.entries or 0)} entries, {percent(cache.hit_ratio)} hits in the last hour"),
            (
                "Last hour",
                ", ".join(_happened(totals.get(name, 0), name) for name in self.happenings),
            ),
        ]
        if cache_section.sessions is not None:
            rows.insert(-1, ("Sessions", f"{number(cache_section.sessions)} live"))
        unread = {name: getattr(state, part).error is not None for name, part in _PARTS.items()}
        for name, text in rows:
            self.line(f"  {name:<12} {'not known' if unread[name] else text}")

    def _tables(self, state: State) -> None:
        if state.locks.items:
            self.line()
            self.locks(state.locks.items)
        unusual = [one for one in state.circuits.items if one.state != "closed" or one.override]
        if unusual:
            self.line()
            self.table(
                ("CIRCUIT", "STATE", "FAILURES", "RETRY"),
                [
                    (
                        one.name,
                        f"{one.state}, forced" if one.override else one.state,
                        one.failure_count,
                        next_try(one.retry_after),
                    )
                    for one in unusual
                ],
            )
        current = [one for one in state.tasks.items if one.status not in ("completed", "cancelled")]
        if current:
            self.line()
            self.table(
                ("TASK", "STATUS", "DONE", "RATE", "LEFT", "HEARTBEAT"),
                [
                    (
                        one.task_id,
                        one.status,
                        percent(one.progress / 100),
                        rate(one),
                        time_left(one),
                        last_heard_of(one),
                    )
                    for one in current
                ],
            )


def _happened(count: int, name: str) -> str:
    """``1 lock lost`` for 1 and ``locks_lost``."""
    thing, _, what = name.partition("_")
    return f"{number(count)} {thing.removesuffix('s') if count == 1 else thing} {what}"
