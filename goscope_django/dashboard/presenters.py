"""Makes what the templates show of the ``State``: figures, links and rows.

Rule of this file: nothing is read or counted here. A number on the page is a number of the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from goscope_django.dashboard import text
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.finding import Finding, finding, words
from goscope_django.dashboard.forms import LONGEST_LINK, Query
from goscope_django.dashboard.graphs import graphs
from goscope_django.dashboard.rows import PLURALS, Rows
from goscope_django.dashboard.sparklines import Sparkline, sparkline
from goscope_django.operations import SECTIONS, State
from goscope_django.operations.meanwhile import FEATURES, since_when

AT_ONCE: Final = 8
"""Things that need attention and are shown at once; the others are folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """The links below a table. ``first`` and ``next`` are query strings, ``None`` where there is no such page. With
    ``long`` the next one is too long for an address, and is posted. ``matching`` is given where it is not ``total``."""

    shown: int
    total: str
    matching: str | None
    first: str | None
    next: str | None
    long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One figure of the summary, with a link to its section. ``value`` is the number, ``shown`` its text."""

    anchor: str
    label: str
    value: int
    shown: str
    note: str
    line: Sparkline | None
    alarm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """Makes the page's context. ``rows`` knows what the user may do, and where."""

    state: State
    query: Query
    rows: Rows

    def context(self) -> dict[str, Any]:
        """Everything that the templates need."""
        state, rows = self.state, self.rows
        return {
            "state": state,
            "features": () if state.reachable else FEATURES,
            "since_when": since_when(state, text.moment(state.away_since, zone=True)),
            "as_of": text.moment(state.generated_at, zone=True),
            "searched": text.visible(state.search),
            "empty": self._empty(),
            "attention": self._attention(),
            "tiles": list(self._tiles()),
            "locks": [rows.lock(one) for one in state.locks.items],
            "circuits": [rows.circuit(one) for one in state.circuits.items],
            "tasks": [rows.task(one) for one in state.tasks.items],
            "flights": [rows.flight(one) for one in state.flights.items],
            "records": [rows.record(one) for one in state.idempotency.items],
            "waits": [rows.wait(one) for one in sorted(state.waits.items, key=lambda one: -one.longest)],
            "caches": [rows.cache(one) for one in state.cache.aliases],
            "lines": list(self._lines()),
            "graphs": graphs(state.figures, state.generated_at),
            "server": self._server(),
            "may": {one.noun: True for one in ACTIONS.values() if one.permission in rows.allowed},
            "bulk": {noun: rows.bulk(noun) for noun in PLURALS},
            "paging": {name: self._paging(name) for name in SECTIONS},
            "finding": (parts := {name: finding(name, self.query) for name in SECTIONS}),
            "counted": {name: list(self._counted(name, parts[name])) for name in SECTIONS},
        }

    def _empty(self) -> bool:
        """Whether nothing was ever stored, as far as this page can tell."""
        state = self.state
        sections = [getattr(state, name) for name in SECTIONS]
        return (
            state.reachable
            and not state.search
            and not self.query.cursors
            and not any(one.error or one.total for one in sections)
            and not any(state.figures.totals.values())
            and not state.cache.entries
        )

    def _attention(self) -> dict[str, Any]:
        found = [self.rows.attention(one) for one in self.state.attention.items]
        return {"summary": self.state.attention.summary, "items": found[:AT_ONCE], "more": found[AT_ONCE:]}

    def _counted(self, name: str, parts: Finding) -> Iterator[dict[str, Any]]:
        """How many there are in each state, with a link that shows those alone."""
        state = self.state
        waited = {one.key for one in state.waits.items if one.kind == "lock"}
        counts: dict[str, dict[str, int]] = {
            "locks": {"waited": len(waited)} if waited else {},
            "circuits": {**state.circuits.by_state, "forced": state.circuits.forced},
            "tasks": state.tasks.by_status,
            "flights": {},
            "idempotency": {
                "in_progress": state.idempotency.in_progress,
                "completed": state.idempotency.completed,
            },
        }
        for one, count in counts[name].items():
            yield {
                "name": one,
                "words": words(one),
                "count": count,
                "link": parts.links[one],
                "kind": "status" if name == "tasks" else "state",
            }

    def _line(self, name: str, label: str) -> Sparkline | None:
        return sparkline(label, self.state.figures.series.get(name, ()))

    def _paging(self, name: str) -> Paging:
        part = getattr(self.state, name)
        following = self.query.encoded(**{name: part.next}) if part.next is not None else None
        return Paging(
            shown=len(part.items),
            total=text.number(part.total, at_least=part.at_least),
            matching=None if part.matching == part.total else text.number(part.matching),
            first=self.query.encoded(**{name: None}) if name in self.query.cursors else None,
            next=following,
            long=following is not None and len(following) > LONGEST_LINK,
        )

    def _tiles(self) -> Iterator[Tile]:
        state, number = self.state, text.number
        locks, circuits, tasks, cache = state.locks, state.circuits, state.tasks, state.cache
        not_closed = circuits.by_state["open"] + circuits.by_state["half-open"]
        stuck = tasks.by_status["stalled"] + tasks.by_status["failed"] + tasks.by_status["exhausted"]
        yield Tile(
            anchor="locks",
            label="Locks held",
            value=locks.total,
            shown=number(locks.total, at_least=locks.at_least),
            note=f"{number(state.figures.totals.get('locks_contended', 0))} had to wait",
            line=self._line("locks_acquired", "Locks acquired"),
        )
        yield Tile(
            anchor="circuits",
            label="Circuits open",
            value=circuits.by_state["open"],
            shown=number(circuits.by_state["open"]),
            note=f"{circuits.by_state['half-open']:,} half-open, {circuits.forced:,} forced, of {circuits.total:,}",
            line=self._line("circuit_rejections", "Calls refused"),
            alarm=not_closed > 0,
        )
        yield Tile(
            anchor="tasks",
            label="Tasks running",
            value=tasks.by_status["running"],
            shown=number(tasks.by_status["running"]),
            note=f"{tasks.by_status['stalled']:,} stalled, {stuck - tasks.by_status['stalled']:,} failed",
            line=self._line("checkpoints_saved", "Checkpoints saved"),
            alarm=stuck > 0,
        )
        yield Tile(
            anchor="flights",
            label="Flights running",
            value=state.flights.total,
            shown=number(state.flights.total, at_least=state.flights.at_least),
            note=f"{number(state.figures.totals.get('flights_joined', 0))} requests joined one",
            line=self._line("flights_led", "Flights led"),
        )
        yield Tile(
            anchor="idempotency",
            label="Requests in progress",
            value=state.idempotency.in_progress,
            shown=number(state.idempotency.in_progress),
            note=f"{number(state.idempotency.completed)} completed and kept",
            line=self._line("idempotent_replayed", "Answers replayed"),
        )
        yield Tile(
            anchor="cache",
            label="Cache hits",
            value=cache.figures.hits,
            shown=number(cache.figures.hits),
            note=f"{text.percent(cache.figures.hit_ratio)} of reads hit",
            line=self._line("cache_hits", "Cache hits"),
            alarm=cache.figures.errors > 0,
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Every series of the last hour in which something happened."""
        for name, series in self.state.figures.series.items():
            label = name.replace("_", " ").capitalize()
            if any(series) and (line := sparkline(label, series)):
                total = text.size(line.total) if "bytes" in name else text.number(line.total)
                yield {"id": text.mark("line", name), "label": label, "total": total, "line": line}

    def _server(self) -> dict[str, Any]:
        server = self.state.server
        return {
            "latency": text.NONE if server.latency is None else f"{server.latency * 1_000:.1f} ms",
            "offset": text.NONE if server.clock_offset is None else f"{server.clock_offset:+.2f} s",
            "indexes": [
                {
                    "id": text.mark("index", one.collection, one.name),
                    "collection": one.collection,
                    "name": one.name,
                    "state": one.state,
                    "needed": one.needed,
                    "found": one.found,
                }
                for one in server.indexes
            ],
            "wrong": sum(one.state != "present" for one in server.indexes),
        }
