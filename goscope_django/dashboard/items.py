"""Makes what a page of one thing shows of its ``Details``: facts, a timeline, who waits, and what can be done.

Rules of this file: nothing is read or counted here, and what a user chose goes through ``text.visible``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from goscope_django.dashboard import docs, text
from goscope_django.dashboard.rows import Rows
from goscope_django.operations import Details
from goscope_django.operations.values import CacheAlias, CircuitItem, IdempotencyItem, LockItem, TaskItem

LONGEST: Final = 10_000
"""Characters of a key that are shown on its own page."""

GONE: Final = {
    "lock": "Nobody holds this lock now.",
    "circuit": "Nothing is recorded about a circuit of this name.",
    "task": "There is no such task (any more).",
    "idempotency": "There is no such record (any more): a repeat of the request runs again.",
    "cache": "No alias of CACHES with this name uses MongoDBCache.",
}
TITLES: Final = {
    "lock": "Lock",
    "circuit": "Circuit",
    "task": "Task",
    "idempotency": "Idempotency record",
    "cache": "Cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of what is known. ``left`` counts down and ``age`` up in the browser; ``badge`` is a state."""

    label: str
    shown: str
    left: float | None = None
    age: float | None = None
    badge: str | None = None
    link: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the timeline. ``who`` is the operator who did it."""

    at: datetime | None
    words: str
    who: str = ""
    note: str = ""

    @property
    def at_text(self) -> str:
        """The instant as the page shows it."""
        return text.moment(self.at)


def _age(label: str, seconds: float | None, at: datetime | None = None) -> Fact:
    note = "" if at is None else f"since {text.moment(at)}"
    return Fact(label=label, shown=text.duration(seconds), age=seconds, note=note)


def _left(label: str, seconds: float | None, never: str = text.NONE) -> Fact:
    return Fact(label=label, shown=never if seconds is None else text.duration(seconds), left=seconds)


def _plain(label: str, value: object) -> Fact:
    return Fact(label=label, shown=text.NONE if value is None or value == "" else text.visible(value, 400))


def _at(label: str, moment: datetime | None) -> Fact:
    return Fact(label=label, shown=text.moment(moment))


@dataclass(frozen=True, slots=True)
class Items:
    """Makes the context of a page. ``rows`` makes buttons and addresses."""

    rows: Rows

    def context(self, found: Details, log: Sequence[Event]) -> dict[str, Any]:
        """Everything that the template needs. ``log`` are the operators' actions on it, the newest first."""
        kind, item = found.kind, found.item
        row: Mapping[str, Any] = {} if item is None else _ROW[kind](self.rows, item)
        events = [*_events(found), *log]
        never = datetime.min.replace(tzinfo=UTC)
        events.sort(key=lambda one: one.at or never, reverse=True)
        return {
            "kind": kind,
            "noun": TITLES[kind],
            "name": text.visible(found.key, LONGEST),
            "as_of": text.moment(found.generated_at, zone=True),
            "generated_at": found.generated_at,
            "gone": GONE[kind] if item is None else "",
            "facts": [] if item is None else list(_FACTS[kind](self.rows, item)),
            "row": row,
            "needs": [{**self.rows.attention(one), "buttons": []} for one in found.attention],  # they are below
            "buttons": row.get("buttons", []),
            "waits": [self.rows.wait(one) for one in found.waits],
            "waiting": sum(one.count for one in found.waits),
            "events": events,
            "docs": docs.page(kind),
        }


def _events(found: Details) -> Iterator[Event]:
    item = found.item
    if isinstance(item, LockItem):
        yield Event(at=item.created_at, words="acquired", note=text.visible(item.owner))
    for lost in found.losses:
        yield Event(at=lost.at, words="lost: its lease had ended", note=text.visible(lost.holder))
    if isinstance(item, IdempotencyItem):
        words = "claimed" if item.state == "in_progress" else "completed, its answer is kept"
        yield Event(at=item.updated_at, words=words)
    if isinstance(item, CircuitItem):
        for move in item.history:
            reason = f" ({text.visible(move.reason)})" if move.reason else ""
            words = f"{move.from_state} → {move.to_state}{reason}"
            yield Event(at=move.at, words=words, note=text.visible(move.note))
    if isinstance(item, TaskItem):
        if item.started_at is not None:
            yield Event(at=item.started_at, words="started", note=f"attempt {item.attempt}")
        if item.finished_at is not None:
            yield Event(at=item.finished_at, words=item.status)
    for one in found.checkpoints:
        yield Event(at=one.timestamp, words=f"checkpoint {one.sequence}", note=f"{one.progress:g} %")


def _holder(rows: Rows, label: str, owner: str | None) -> Iterator[Fact]:
    yield _plain(label, owner)
    process = text.process_of(owner)
    if process is not None:
        yield Fact(
            label="Its process",
            shown=text.visible(process),
            link=rows.search(process),
            note="all that it holds and waits for",
        )


def _lock_facts(rows: Rows, one: LockItem) -> Iterator[Fact]:
    yield Fact(label="State", shown="held", badge="running")
    yield from _holder(rows, "Holder", one.owner)
    yield _plain("Token", one.token)
    yield _age("Held for", one.held_for, one.created_at)
    yield _left("Ends in", one.expires_in, "never")
    longest = "" if one.longest_wait is None else f"the first for {text.duration(one.longest_wait)}"
    yield Fact(label="Waiting", shown=text.number(one.waiters), note=longest)


def _circuit_facts(rows: Rows, one: CircuitItem) -> Iterator[Fact]:
    yield Fact(label="State", shown=one.state, badge=one.state)
    if one.override is not None:
        note = f"since {text.moment(one.override.at)}"
        yield Fact(label="Forced", shown=one.override.state, note=note)
        yield _plain("Reason given", one.override.reason)
    yield _plain("Failures counted", one.failure_count)
    if one.retry_after is not None:
        yield _left("Next try in", one.retry_after) if one.retry_after else _plain("Next try", "at the next call")
    for probe in one.probes:
        yield _left("Trial call, at most", probe.seconds_left)
    yield _at("Opened at", one.opened_at)
    if one.opened_by is not None:
        yield _plain("Opened by", one.opened_by)
    yield _at("Last failure", one.last_failure_time)
    if one.last_failure is not None and one.last_failure != one.opened_by:
        yield _plain("It was", one.last_failure)
    yield _at("Last success", one.last_success_time)
    yield _plain("Generation", one.generation)


def _task_facts(rows: Rows, one: TaskItem) -> Iterator[Fact]:
    note = "asked to stop" if one.cancel_requested and one.status == "running" else ""
    yield Fact(label="Status", shown=one.status, badge=one.status, note=note)
    done = "" if one.done is None else f"{one.done:,}" + ("" if one.total is None else f" of {one.total:,}")
    yield Fact(label="Progress", shown=f"{round(one.progress, 1)} %", note=done)
    if one.failure:
        yield Fact(label="Last error", shown=text.visible(one.failure, 4_000))
    if one.last_failure is not None:
        failed = one.last_failure
        if not one.failure:
            note = f"in attempt {failed.attempt}, {text.moment(failed.at)}"
            yield Fact(label="Last error", shown=text.visible(failed.error, 4_000), note=note)
        if failed.trace:
            yield Fact(label="Raised in", shown=text.visible(" > ".join(failed.trace), 4_000))
    yield from _holder(rows, "Runner", one.owner)
    most = "" if one.max_attempts is None else f" of {one.max_attempts}"
    yield _plain("Attempt", f"{one.attempt}{most}")
    yield _plain("Rate", None if one.rate is None else f"{one.rate:,.1f} items/s")
    if one.status == "running":
        yield _left("Time left", one.estimated_time_remaining)
        yield _left("Lease ends in", one.lease_left)
    yield _age("Last heard of", one.heartbeat_age, one.heartbeat_at)
    yield _at("Started", one.started_at)
    yield _at("Finished", one.finished_at)
    yield _plain("Checkpoint", one.sequence)
    yield _plain("Token", one.token)


def _record_facts(rows: Rows, one: IdempotencyItem) -> Iterator[Fact]:
    badge = "running" if one.state == "in_progress" else "completed"
    yield Fact(label="State", shown=one.state.replace("_", " "), badge=badge)
    if one.holder:
        yield from _holder(rows, "Claimed by", one.holder)
    yield _plain("Token", one.token)
    yield _age("Age", one.age, one.updated_at)
    yield _left("Ends in", one.expires_in, "never")
    yield Fact(label="Stored answer", shown="never shown here")


def _cache_facts(rows: Rows, one: CacheAlias) -> Iterator[Fact]:
    if one.error:
        yield Fact(label="Error", shown=one.error)
    entries = text.NONE if one.entries is None else text.number(one.entries, at_least=one.at_least)
    yield Fact(label="Entries", shown=entries, note="" if one.max_entries is None else f"{one.max_entries:,} at most")
    if one.sessions is not None:
        yield _plain("Sessions in it", text.number(one.sessions))
    yield _plain("Key prefix", one.key_prefix)
    if one.url:
        yield _plain("Store of its own", one.url)
    if one.degraded:
        yield Fact(label="Now", shown="works without MongoDB in this process", badge="open")
    if one.near is not None:
        near = one.near
        how = {"open": "", "opening": "; its stream is being opened", "none": "; by time alone"}[near.stream]
        kept = f"{text.number(near.entries)} entries, {text.number(near.bytes)} bytes, {text.number(near.hits)} hits"
        yield Fact(label="Near cache", shown=kept, note=f"in process {near.process}{how}")


_FACTS: Final[Mapping[str, Callable[[Rows, Any], Iterator[Fact]]]] = {
    "lock": _lock_facts,
    "circuit": _circuit_facts,
    "task": _task_facts,
    "idempotency": _record_facts,
    "cache": _cache_facts,
}
_ROW: Final[Mapping[str, Callable[[Rows, Any], dict[str, Any]]]] = {
    "lock": Rows.lock,
    "circuit": Rows.circuit,
    "task": Rows.task,
    "idempotency": Rows.record,
    "cache": Rows.cache,
}
