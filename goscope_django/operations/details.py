"""One thing in full: what a page of its own shows of a lock, a circuit, a task, an idempotency record or a cache.

Rule of this file: each reads only, within ``ACTION_LIMIT``, with a bounded number of commands, and never a stored value
of a user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args

from goscope_django import conf
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, acarry_out, carry_out
from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb import overview
from goscope_django.mongodb.document.clock import Clock
from goscope_django.operations import cache_section, convert
from goscope_django.operations.listing import task_pages
from goscope_django.operations.place import Place, place
from goscope_django.operations.values import (
    CacheAlias,
    CheckpointItem,
    CircuitItem,
    IdempotencyItem,
    LockItem,
    TaskItem,
    WaitItem,
    copied,
)

Kind = Literal["lock", "circuit", "task", "idempotency", "cache"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""What has a page of its own."""

CHECKPOINTS: Final = 50
"""Checkpoints of a task that are shown, at most."""

Item = LockItem | CircuitItem | TaskItem | IdempotencyItem | CacheAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Everything known of one thing, as of ``generated_at`` by the server's clock.

    ``item`` is ``None`` if there is no such thing (any more). ``waits`` are those who wait for it, the longest first,
    ``checkpoints`` a task's newest, without what is stored in them.
    """

    kind: Kind
    key: str
    generated_at: datetime
    item: Item | None = None
    waits: tuple[WaitItem, ...] = ()
    checkpoints: tuple[CheckpointItem, ...] = ()


def details(kind: Kind, key: str) -> Details:
    """Everything known of the thing. Raises ``InvalidValue`` for another ``kind``, and ``StoreError``.

    Four commands at most, beside the one that makes sure that the server answers; for a cache three more where it has a
    store of its own, and one more where sessions are kept.
    """
    return carry_out(_details(kind, key))


async def adetails(kind: Kind, key: str) -> Details:
    """Async version of ``details``."""
    return await acarry_out(_details(kind, key))


def _details(kind: Kind, key: str) -> Flow[Details]:
    if kind not in KINDS:
        raise InvalidValue(f"kind={kind!r}: one of {', '.join(KINDS)} is needed")
    here, name = place(), arguments.key(key, "key")
    if kind == "cache":
        return (yield from _cache(here, name))
    return (yield from here.act(_READ[kind], here, name))


def _lock(clock: Clock, here: Place, key: str) -> Flow[Details]:
    found = yield from overview.lock(clock, here.prefix, key)
    now = found[1] if found else datetime.now(UTC)
    hour = yield from stats.read(clock, here.prefix, now)
    waited = convert.waiting(hour, "lock").get(key)
    item = None if found is None else convert.lock(found[0], now, waited)
    return Details(kind="lock", key=key, generated_at=now, item=item, waits=_waits(hour, "lock", key, item))


def _waits(hour: stats.Hour, kind: str, key: str, item: LockItem | IdempotencyItem | None) -> tuple[WaitItem, ...]:
    holder = None if item is None else item.owner if isinstance(item, LockItem) else item.holder
    mine = [copied(WaitItem, one, held_by=holder) for one in hour.waits if (one.kind, one.key) == (kind, key)]
    return tuple(sorted(mine, key=lambda one: -one.longest))


def _circuit(clock: Clock, here: Place, name: str) -> Flow[Details]:
    found = yield from overview.circuit(clock, here.prefix, name)
    now = found[1] if found else datetime.now(UTC)
    item = None if found is None else convert.circuit(*found)
    return Details(kind="circuit", key=name, generated_at=now, item=item)


def _task(clock: Clock, here: Place, task_id: str) -> Flow[Details]:
    found = yield from task_pages(here).show(clock, task_id)
    now = found[1] if found else datetime.now(UTC)
    saved = yield from overview.checkpoints(clock, here.prefix, task_id, CHECKPOINTS)
    return Details(
        kind="task",
        key=task_id,
        generated_at=now,
        item=None if found is None else convert.task(*found),
        checkpoints=tuple(copied(CheckpointItem, one) for one in saved),
    )


def _idempotency(clock: Clock, here: Place, key: str) -> Flow[Details]:
    found = yield from overview.record(clock, here.prefix, key)
    now = found[1] if found else datetime.now(UTC)
    hour = yield from stats.read(clock, here.prefix, now)
    item = None if found is None else convert.record(found[0], now)
    waits = _waits(hour, "idempotency", key, item)
    return Details(kind="idempotency", key=key, generated_at=now, item=item, waits=waits)


def _cache(here: Place, alias: str) -> Flow[Details]:
    def hour(clock: Clock) -> Flow[stats.Hour]:
        return (yield from stats.read(clock, here.prefix, datetime.now(UTC)))

    now = datetime.now(UTC)
    if alias not in conf.our_caches():
        return Details(kind="cache", key=alias, generated_at=now)
    parts = {"figures": (yield from here.act(hour)), "entries": None}
    cache = yield from cache_section.read(here, parts, None, only=alias)
    item = next((one for one in cache.aliases if one.alias == alias), None)
    return Details(kind="cache", key=alias, generated_at=now, item=item)


_READ: Final[dict[Kind, Callable[[Clock, Place, str], Flow[Details]]]] = {
    "lock": _lock,
    "circuit": _circuit,
    "task": _task,
    "idempotency": _idempotency,
}
