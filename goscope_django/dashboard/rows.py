"""Makes the rows of the tables: text, countdowns and buttons for each thing of the state.

Rules of this file: what a user chose goes through ``text.visible``, and a button carries what its row shows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from goscope_django import checkpoints
from goscope_django.dashboard import addresses, docs, text, widgets
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.forms import Query, Seen
from goscope_django.operations.attention import holder
from goscope_django.operations.values import (
    AttentionItem,
    CacheAlias,
    CacheFigures,
    CircuitItem,
    FlightItem,
    IdempotencyItem,
    LockItem,
    TaskItem,
    WaitItem,
)

LONGEST_COMMAND: Final = 200
"""Characters of a command that is shown."""

LATEST: Final = 5
"""Transitions of a circuit that its row can unfold. Its own page has all that are kept."""

_CURES: Final[Mapping[str, tuple[str, ...]]] = {
    "circuit_open": ("close_circuit", "open_circuit"),
    "circuit_forced": ("reset_circuit",),
    "task_exhausted": ("reset_task",),
    "task_failed": ("reset_task",),
    "task_stalled": ("run_task_again", "cancel_task"),
    "lock_waited": ("release_lock",),
    "lock_held_long": ("release_lock",),
}
"""What can be done at once about each kind of thing that needs attention. A lock of Node's has no token by which it
could be judged: it is released on its own page, where its holder is seen."""

PLURALS: Final = {"lock": "locks", "circuit": "circuits", "task": "tasks", "idempotency": "idempotency records"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """Leads to the page that asks for confirmation. ``label`` is on it, ``name`` is what a screen reader says, ``seen``
    what the row shows."""

    url: str
    label: str
    name: str
    seen: str
    destroys: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """Makes rows for a user who has the permissions ``allowed`` (codenames). ``urls`` are the addresses of the
    actions, ``page_url`` that of the dashboard."""

    allowed: Collection[str]
    urls: Mapping[str, str]
    page_url: str

    def item(self, kind: str, key: str) -> dict[str, Any]:
        """Where the page of this very thing is: a ``link``, or what is posted for it where its key is too long."""
        segment = addresses.encoded(key)
        if segment is None:
            return {"link": None, "post": json.dumps([kind, key])}
        return {"link": f"{self.page_url}{kind}/{segment}/", "post": ""}

    def search(self, what: str) -> str:
        """The address of the dashboard with this search."""
        return f"{self.page_url}?{Query(search=what).encoded()}"

    def _held_by(self, owner: str | None) -> dict[str, Any]:
        process = text.process_of(owner)
        return {"process": None if process is None else self.search(process)}

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

    def _widgets(
        self, noun: str, shown: str, item: Mapping[str, Any], seen: Seen, buttons: list[Button]
    ) -> dict[str, Any]:
        """What a row in a table has beside its figures. ``pick`` is empty if nothing can be done to several at once."""
        some = any(one.noun == noun and one.together and one.permission in self.allowed for one in ACTIONS.values())
        label = f"Select {noun} {shown}"
        return {
            "item": item,
            "link": widgets.name(item, shown, self.posted_url),
            "buttons": buttons,
            "menu": widgets.menu(buttons, shown),
            "pick": widgets.pick(f"{noun}:{seen.encoded()}", label) if some else "",
        }

    @property
    def posted_url(self) -> str:
        """Where the page of a thing is asked for whose key is too long for an address."""
        return f"{self.page_url}item/"

    def bulk(self, noun: str) -> list[Button]:
        """The buttons that act on what is selected of a kind."""
        return [
            Button(
                url=self.urls[name],
                label=f"{one.label} selected",
                name=f"{one.label}: selected {PLURALS[noun]}",
                seen="",
                destroys=one.destroys,
            )
            for name, one in ACTIONS.items()
            if one.noun == noun and one.together and one.permission in self.allowed and self._offered(name)
        ]

    @staticmethod
    def _offered(action: str) -> bool:
        """Whether this process can do it: *Run again* needs a dispatcher."""
        return action != "run_task_again" or checkpoints.can_run_again()

    def attention(self, one: AttentionItem) -> dict[str, Any]:
        """One thing that needs an operator, with what can be done about it at once."""
        link = f"#{one.target}" if one.target in ("figures", "server") else self.item(one.target, one.key)["link"]
        shown, state = text.visible(one.key), one.kind.partition("_")[2].replace("_", " ")
        seen = Seen(one.key, one.token, None, state)
        names = [name for name in _CURES.get(one.kind, ()) if one.token is not None and self._offered(name)]
        return {
            "id": text.mark("attention", one.kind, one.target, one.key),
            "link": link or f"#{one.target}s",
            "sentence": text.visible(one.sentence, 600),
            "action": one.action,
            "command": one.command if one.command is None or len(one.command) < LONGEST_COMMAND else None,
            "words": one.kind.replace("_", " "),
            "docs": docs.address(one.docs),
            "buttons": [button for name in names for button in self._button(name, shown, seen)],
        }

    def lock(self, one: LockItem) -> dict[str, Any]:
        shown = text.visible(one.key)
        seen = Seen(one.key, one.token, one.owner, f"held by {one.owner}")
        buttons = list(self._button("release_lock", shown, seen))
        return {
            "id": text.mark("lock", one.key),
            "key": shown,
            "owner": text.visible(holder(one.owner)),
            **self._held_by(one.owner),
            "token": one.token,
            "waiters": one.waiters,
            "longest": text.duration(one.longest_wait),
            "held": one.held_for,
            "held_text": text.duration(one.held_for),
            "left": one.expires_in,
            "left_text": "never" if one.expires_in is None else text.duration(one.expires_in),
            **self._widgets("lock", shown, self.item("lock", one.key), seen, buttons),
        }

    def circuit(self, one: CircuitItem) -> dict[str, Any]:
        shown = text.visible(one.name)
        seen = Seen(one.name, one.generation, None, f"{one.state}, in generation {one.generation}")
        forced = one.override
        names = ["reset_circuit"]
        names += ["open_circuit"] if forced is None or forced.state != "open" else []
        names += ["close_circuit"] if forced is None or forced.state != "closed" else []
        buttons = [button for name in names for button in self._button(name, shown, seen)]
        return {
            "id": text.mark("circuit", one.name),
            "name": shown,
            "state": one.state,
            "failures": one.failure_count,
            "why": "" if one.opened_by is None or one.state == "closed" else text.visible(one.opened_by, 200),
            "changed": text.moment(one.updated_at),
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
                for move in reversed(one.history[-LATEST:])
            ],
            "earlier": len(one.history[:-LATEST]),
            **self._widgets("circuit", shown, self.item("circuit", one.name), seen, buttons),
        }

    def task(self, one: TaskItem) -> dict[str, Any]:
        shown, running = text.visible(one.task_id), one.status in ("running", "stalled")
        seen = Seen(one.task_id, one.token, one.owner, f"{one.status}, attempt {one.attempt}")
        names = ["run_task_again"] if one.status == "stalled" and self._offered("run_task_again") else []
        names += ["reset_task"] if one.status in ("cancelled", "failed", "exhausted") else []
        names += ["cancel_task"] if one.status not in ("completed", "cancelled") and not one.cancel_requested else []
        names += ["delete_checkpoint"] if one.status != "running" else []
        buttons = [button for name in names for button in self._button(name, shown, seen)]
        done = "" if one.done is None else f"{one.done:,}" + ("" if one.total is None else f" of {one.total:,}")
        return {
            "id": text.mark("task", one.task_id),
            "name": shown,
            **self._held_by(one.owner),
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
            **self._widgets("task", shown, self.item("task", one.task_id), seen, buttons),
        }

    def flight(self, one: FlightItem) -> dict[str, Any]:
        return {
            "id": text.mark("flight", one.key),
            "key": text.visible(one.key),
            "leader": text.visible(one.leader),
            **self._held_by(one.leader),
            "token": one.token,
            "age": one.age,
            "age_text": text.duration(one.age),
            "left": one.expires_in,
            "left_text": text.duration(one.expires_in),
        }

    def record(self, one: IdempotencyItem) -> dict[str, Any]:
        shown = text.visible(one.key)
        seen = Seen(one.key, one.token, None, one.state.replace("_", " "))
        buttons = list(self._button("delete_idempotency", shown, seen))
        return {
            "id": text.mark("record", one.key),
            "key": shown,
            "holder": text.visible(one.holder) if one.holder else text.NONE,
            "state": one.state.replace("_", " "),
            "token": one.token,
            "age": one.age,
            "age_text": text.duration(one.age),
            "left": one.expires_in,
            "left_text": "never" if one.expires_in is None else text.duration(one.expires_in),
            **self._widgets("idempotency", shown, self.item("idempotency", one.key), seen, buttons),
        }

    def wait(self, one: WaitItem) -> dict[str, Any]:
        return {
            "id": text.mark("wait", one.kind, one.key, one.process),
            "kind": one.kind,
            "key": text.visible(one.key),
            "link": widgets.name(
                self.item(one.kind, one.key) if one.kind in addresses.NOUNS else None,
                text.visible(one.key),
                self.posted_url,
            ),
            "process": text.visible(one.process),
            "process_url": self.search(one.process),
            "count": one.count,
            "longest": text.duration(one.longest),
            "held_by": text.visible(holder(one.held_by)) if one.held_by is not None else text.NONE,
            "at": text.moment(one.seen_at),
        }

    def cache(self, one: CacheAlias) -> dict[str, Any]:
        shown = text.visible(one.alias)
        entries = None if one.entries is None else text.number(one.entries, at_least=one.at_least)
        seen = Seen(one.alias, None, None, f"{entries} entries")
        return {
            "id": text.mark("cache", one.alias),
            "alias": shown,
            "link": widgets.name(self.item("cache", one.alias), shown, self.posted_url),
            "prefix": text.visible(one.key_prefix),
            "url": one.url,
            "error": one.error,
            "degraded": one.degraded,
            "entries": text.NONE if entries is None else entries,
            "sessions": None if one.sessions is None else text.number(one.sessions),
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
            "buttons": list(self._button("clear_cache", shown, seen)) if one.entries is not None else [],
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
