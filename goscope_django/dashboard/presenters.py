"""From the ``State`` to what the templates show: rows of text, countdowns, buttons and links.

Rule of this file: nothing is read or counted here. A number on the page is a number of the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from goscope_django.dashboard import text
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.forms import LONGEST_LINK, Query, Seen
from goscope_django.dashboard.sparklines import Sparkline, sparkline
from goscope_django.operations import State
from goscope_django.operations.items import CacheFigures, CircuitItem, LockItem, TaskItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """Leads to an action's page of confirmation. ``label`` is on it, ``name`` is what a screen reader says."""

    url: str
    label: str
    name: str
    seen: str
    destroys: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """``first`` and ``next`` are query strings, ``None`` where there is nothing to go to. One that is too ``long`` for
    an address is posted."""

    shown: int
    total: str
    first: str | None
    next: str | None
    long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One figure of the summary, with a way to its section. ``value`` is the bare number."""

    anchor: str
    label: str
    value: int
    shown: str
    note: str
    line: Sparkline | None
    alarm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """Makes the page's context. ``allowed`` are the codenames of the actions' permissions that the user has, ``urls``
    the addresses of the actions."""

    state: State
    query: Query
    allowed: Collection[str]
    urls: Mapping[str, str]

    def context(self) -> dict[str, Any]:
        """Everything that the templates need."""
        state = self.state
        return {
            "state": state,
            "as_of": text.moment(state.generated_at),
            "empty": self._empty(),
            "tiles": list(self._tiles()),
            "locks": [self._lock(one) for one in state.locks.items],
            "circuits": [self._circuit(one) for one in state.circuits.items],
            "tasks": [self._task(one) for one in state.tasks.items],
            "flights": list(self._flights()),
            "records": list(self._records()),
            "waits": list(self._waits()),
            "caches": list(self._caches()),
            "lines": list(self._lines()),
            "server": self._server(),
            "may": {one.noun: True for one in ACTIONS.values() if one.permission in self.allowed},
            "paging": {name: self._paging(name) for name in ("locks", "circuits", "tasks", "flights", "idempotency")},
        }

    def _empty(self) -> bool:
        """Whether nothing was ever stored, as far as this page can tell."""
        state = self.state
        sections = (state.locks, state.circuits, state.tasks, state.flights, state.idempotency)
        return (
            state.reachable
            and not state.search
            and not self.query.cursors
            and not any(one.error or one.total for one in sections)
            and not any(state.figures.totals.values())
            and not state.cache.entries
        )

    def _line(self, name: str, label: str) -> Sparkline | None:
        return sparkline(label, self.state.figures.series.get(name, ()))

    def _button(self, action: str, shown: str, seen: Seen) -> Iterator[Button]:
        one = ACTIONS[action]
        if one.permission in self.allowed:
            yield Button(
                url=self.urls[action],
                label=one.label,
                name=f"{one.label}: {one.noun} {shown}",
                seen=seen.encoded(),
                destroys=one.destroys,
            )

    def _paging(self, name: str) -> Paging:
        part = getattr(self.state, name)
        following = self.query.encoded(**{name: part.next}) if part.next is not None else None
        return Paging(
            shown=len(part.items),
            total=text.number(part.total, at_least=part.at_least),
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
            label="Flights in the air",
            value=state.flights.total,
            shown=number(state.flights.total, at_least=state.flights.at_least),
            note=f"{number(state.figures.totals.get('flights_joined', 0))} joined instead of run",
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

    def _lock(self, one: LockItem) -> dict[str, Any]:
        shown = text.visible(one.key)
        seen = Seen(one.key, one.token, one.owner, f"held by {one.owner}")
        return {
            "id": text.mark("lock", one.key),
            "key": shown,
            "owner": text.visible(one.owner),
            "token": one.token,
            "held": one.held_for,
            "held_text": text.duration(one.held_for),
            "left": one.expires_in,
            "left_text": "never" if one.expires_in is None else text.duration(one.expires_in),
            "buttons": list(self._button("release_lock", shown, seen)),
        }

    def _circuit(self, one: CircuitItem) -> dict[str, Any]:
        shown = text.visible(one.name)
        seen = Seen(one.name, one.generation, None, f"{one.state}, in generation {one.generation}")
        forced = one.override
        names = ["reset_circuit"]
        names += ["open_circuit"] if forced is None or forced.state != "open" else []
        names += ["close_circuit"] if forced is None or forced.state != "closed" else []
        return {
            "id": text.mark("circuit", one.name),
            "name": shown,
            "state": one.state,
            "failures": one.failure_count,
            "generation": one.generation,
            "retry": one.retry_after,
            "retry_text": text.duration(one.retry_after),
            "forced": None
            if forced is None
            else {
                "state": forced.state,
                "reason": text.visible(forced.reason),
                "at": text.moment(forced.at),
            },
            "probes": [
                {"left": probe.seconds_left, "left_text": text.duration(probe.seconds_left)} for probe in one.probes
            ],
            "history": [
                {
                    "at": text.moment(move.at),
                    "from": move.from_state,
                    "to": move.to_state,
                    "reason": text.visible(move.reason),
                    "note": text.visible(move.note),
                }
                for move in reversed(one.history)
            ],
            "buttons": [button for name in names for button in self._button(name, shown, seen)],
        }

    def _task(self, one: TaskItem) -> dict[str, Any]:
        shown, running = text.visible(one.task_id), one.status in ("running", "stalled")
        seen = Seen(one.task_id, one.token, one.owner, f"{one.status}, attempt {one.attempt}")
        names = ["cancel_task"] if one.status not in ("completed", "cancelled") and not one.cancel_requested else []
        names += ["delete_checkpoint"] if one.status != "running" else []
        names += ["reset_task"] if one.status in ("cancelled", "failed", "exhausted") else []
        done = "" if one.done is None else f"{one.done:,}" + ("" if one.total is None else f" of {one.total:,}")
        return {
            "id": text.mark("task", one.task_id),
            "name": shown,
            "status": one.status,
            "bad": one.status in ("stalled", "failed", "exhausted"),
            "owner": text.visible(one.owner) if one.owner else text.NONE,
            "token": one.token,
            "attempt": f"{one.attempt}" + ("" if one.max_attempts is None else f" of {one.max_attempts}"),
            "progress": round(one.progress, 1),
            "done": done,
            "rate": None if one.rate is None or not running else f"{one.rate:,.1f} items/s",
            "remaining": one.estimated_time_remaining if one.status == "running" else None,
            "remaining_text": text.duration(one.estimated_time_remaining),
            "heartbeat": one.heartbeat_age if running else None,
            "heartbeat_text": text.duration(one.heartbeat_age),
            "stopping": one.cancel_requested and one.status == "running",
            "failure": text.visible(one.failure, 400) if one.failure else "",
            "buttons": [button for name in names for button in self._button(name, shown, seen)],
        }

    def _flights(self) -> Iterator[dict[str, Any]]:
        for one in self.state.flights.items:
            yield {
                "id": text.mark("flight", one.key),
                "key": text.visible(one.key),
                "leader": text.visible(one.leader),
                "token": one.token,
                "age": one.age,
                "age_text": text.duration(one.age),
                "left": one.expires_in,
                "left_text": text.duration(one.expires_in),
            }

    def _records(self) -> Iterator[dict[str, Any]]:
        for one in self.state.idempotency.items:
            yield {
                "id": text.mark("record", one.key),
                "key": text.visible(one.key),
                "state": one.state.replace("_", " "),
                "token": one.token,
                "age": one.age,
                "age_text": text.duration(one.age),
                "left": one.expires_in,
                "left_text": "never" if one.expires_in is None else text.duration(one.expires_in),
            }

    def _waits(self) -> Iterator[dict[str, Any]]:
        for one in self.state.waits.items:
            yield {
                "id": text.mark("wait", one.kind, one.key, one.process),
                "kind": one.kind,
                "key": text.visible(one.key),
                "process": text.visible(one.process),
                "count": one.count,
                "longest": text.duration(one.longest),
                "held_by": text.visible(one.held_by) if one.held_by is not None else text.NONE,
                "at": text.moment(one.seen_at),
            }

    def _caches(self) -> Iterator[dict[str, Any]]:
        known = {alias.alias for alias in self.state.cache.aliases if alias.entries is not None}
        for one in self.state.cache.aliases:
            shown = text.visible(one.alias)
            entries = None if one.entries is None else text.number(one.entries, at_least=one.at_least)
            seen = Seen(one.alias, None, None, f"{entries} entries")
            yield {
                "id": text.mark("cache", one.alias),
                "alias": shown,
                "prefix": text.visible(one.key_prefix),
                "url": one.url,
                "error": one.error,
                "degraded": one.degraded,
                "entries": text.NONE if entries is None else entries,
                "most": None if one.max_entries is None else text.number(one.max_entries),
                "figures": _figures(one.figures),
                "namespaces": [
                    {
                        "id": text.mark("namespace", one.alias, space.namespace),
                        "name": text.visible(space.namespace),
                        "figures": _figures(space.figures),
                    }
                    for space in one.namespaces
                ],
                "buttons": list(self._button("clear_cache", shown, seen)) if one.alias in known else [],
            }

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


def _figures(figures: CacheFigures) -> dict[str, str]:
    number = text.number
    return {
        "ratio": text.percent(figures.hit_ratio),
        "hits": number(figures.hits),
        "misses": number(figures.misses),
        "sets": number(figures.sets),
        "deletes": number(figures.deletes),
        "errors": number(figures.errors),
        "forged": number(figures.forged),
        "read": text.size(figures.bytes_read),
        "written": text.size(figures.bytes_written),
    }
