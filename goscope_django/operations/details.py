"""One thing in full: what its page and the commands' ``show`` have of a lock, circuit, task, record or cache.

Rule of this file: each reads only, within ``ACTION_LIMIT``, with a bounded number of commands, and never a stored value
of a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args

from goscope_django import conf
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, acarry_out, carry_out
from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb import losses, overview
from goscope_django.mongodb.document.clock import Clock
from goscope_django.operations import cache_section, convert
from goscope_django.operations.attention import Trouble, attention, holder
from goscope_django.operations.listing import task_pages
from goscope_django.operations.place import Place, place
from goscope_django.operations.values import (
    AttentionItem,
    Cache,
    CacheAlias,
    CheckpointItem,
    CircuitItem,
    Figures,
    IdempotencyItem,
    LockItem,
    LossItem,
    Moment,
    TaskItem,
    WaitItem,
    copied,
)
from goscope_django.operations.wording import PAGE, escaped, shortened

Kind = Literal["lock", "circuit", "task", "idempotency", "cache"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""What has a page of its own."""

DOCS: Final[Mapping[str, str]] = {
    "lock": "docs/how-to/locks.md",
    "circuit": "docs/how-to/circuit-breaker.md",
    "task": "docs/how-to/checkpoints.md",
    "idempotency": "docs/how-to/idempotency.md",
    "cache": "docs/how-to/cache.md",
}

CHECKPOINTS: Final = 50
"""Checkpoints of a task that are shown, at most."""

Item = LockItem | CircuitItem | TaskItem | IdempotencyItem | CacheAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Everything known of one thing, as of ``generated_at`` by the server's clock.

    ``item`` is ``None`` if there is no such thing (any more). ``waits`` are those who wait for it, the longest first,
    ``checkpoints`` a task's newest, without what is stored in them. ``attention`` is what of it needs an operator,
    ``losses`` when it was lost (within a week), ``timeline`` what happened and what is to come, the newest first.
    """

    kind: Kind
    key: str
    generated_at: datetime
    item: Item | None = None
    waits: tuple[WaitItem, ...] = ()
    checkpoints: tuple[CheckpointItem, ...] = ()
    attention: tuple[AttentionItem, ...] = ()
    losses: tuple[LossItem, ...] = ()
    timeline: tuple[Moment, ...] = ()

    @property
    def docs(self) -> str:
        """The page that explains it."""
        return DOCS[self.kind]

    @property
    def known(self) -> bool:
        """Whether there is anything to tell: it is there, or somebody waits for it or lost it."""
        return self.item is not None or bool(self.waits or self.losses)


def details(kind: Kind, key: str) -> Details:
    """Everything known of the thing ``key`` of this ``kind``. Raises ``InvalidValue`` for another kind.

    Five round trips at most; for a cache three more where it has a store of its own, and one more where sessions are
    kept.
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
    held, waits = () if item is None else (item,), _waits(hour, "lock", key, item)
    lost = yield from _losses(clock, here, "lock", key, now)
    return Details(
        kind="lock",
        key=key,
        generated_at=now,
        item=item,
        waits=waits,
        attention=_needs(Trouble(waited=held, held=held), now, waits, hour),
        losses=lost,
        timeline=_newest_first(_lock_moments(item), lost),
    )


def _needs(
    alone: Trouble,
    now: datetime,
    waits: Sequence[WaitItem] = (),
    hour: stats.Hour | None = None,
    cache: CacheAlias | None = None,
) -> tuple[AttentionItem, ...]:
    """What of this one thing needs attention. Of an ``hour`` only what is usual counts here."""
    known = Figures() if hour is None else convert.figures(hour)
    usual = Figures(names=known.names, sums=known.sums)
    aliases = () if cache is None else (cache,)
    return attention(alone, (), waits, (), usual, Cache(aliases=aliases), now).items


def _losses(clock: Clock, here: Place, kind: Kind, key: str, now: datetime) -> Flow[tuple[LossItem, ...]]:
    found = convert.losses((yield from losses.read(clock, here.prefix)), now).items
    return tuple(one for one in found if (one.kind, one.key) == (kind, key))


def _waits(hour: stats.Hour, kind: str, key: str, item: LockItem | IdempotencyItem | None) -> tuple[WaitItem, ...]:
    holder = None if item is None else item.owner if isinstance(item, LockItem) else item.holder
    mine = [copied(WaitItem, one, held_by=holder) for one in hour.waits if (one.kind, one.key) == (kind, key)]
    return tuple(sorted(mine, key=lambda one: -one.longest))


def _circuit(clock: Clock, here: Place, name: str) -> Flow[Details]:
    found = yield from overview.circuit(clock, here.prefix, name)
    now = found[1] if found else datetime.now(UTC)
    item = None if found is None else convert.circuit(*found)
    if item is None:
        return Details(kind="circuit", key=name, generated_at=now)
    in_trouble = (item,) if item.state == "open" or item.override is not None else ()
    return Details(
        kind="circuit",
        key=name,
        generated_at=now,
        item=item,
        attention=_needs(Trouble(circuits=in_trouble), now),
        timeline=_newest_first(_circuit_moments(item), ()),
    )


def _task(clock: Clock, here: Place, task_id: str) -> Flow[Details]:
    found = yield from task_pages(here).show(clock, task_id)
    now = found[1] if found else datetime.now(UTC)
    saved = yield from overview.checkpoints(clock, here.prefix, task_id, CHECKPOINTS)
    item = None if found is None else convert.task(*found)
    in_trouble = (item,) if item is not None and item.status in ("stalled", "failed", "exhausted") else ()
    checkpoints = tuple(copied(CheckpointItem, one) for one in saved)
    lost = yield from _losses(clock, here, "task", task_id, now)
    return Details(
        kind="task",
        key=task_id,
        generated_at=now,
        item=item,
        checkpoints=checkpoints,
        attention=_needs(Trouble(tasks=in_trouble), now),
        losses=lost,
        timeline=_newest_first(_task_moments(item, checkpoints), lost),
    )


def _idempotency(clock: Clock, here: Place, key: str) -> Flow[Details]:
    found = yield from overview.record(clock, here.prefix, key)
    now = found[1] if found else datetime.now(UTC)
    hour = yield from stats.read(clock, here.prefix, now)
    item = None if found is None else convert.record(found[0], now)
    waits = _waits(hour, "idempotency", key, item)
    lost = yield from _losses(clock, here, "idempotency", key, now)
    return Details(
        kind="idempotency",
        key=key,
        generated_at=now,
        item=item,
        waits=waits,
        losses=lost,
        timeline=_newest_first(_record_moments(item), lost),
    )


def _cache(here: Place, alias: str) -> Flow[Details]:
    def hour(clock: Clock) -> Flow[stats.Hour]:
        return (yield from stats.read(clock, here.prefix, datetime.now(UTC)))

    now = datetime.now(UTC)
    if alias not in conf.our_caches():
        return Details(kind="cache", key=alias, generated_at=now)
    parts = {"figures": (yield from here.act(hour)), "entries": None}
    cache = yield from cache_section.read(here, parts, None, only=alias)
    item = next((one for one in cache.aliases if one.alias == alias), None)
    needs = _needs(Trouble(), now, cache=item)
    return Details(kind="cache", key=alias, generated_at=now, item=item, attention=needs)


_READ: Final[dict[Kind, Callable[[Clock, Place, str], Flow[Details]]]] = {
    "lock": _lock,
    "circuit": _circuit,
    "task": _task,
    "idempotency": _idempotency,
}


# What happened


def _newest_first(moments: Iterable[Moment], lost: Iterable[LossItem]) -> tuple[Moment, ...]:
    also = (Moment(at=one.at, text=f"lost by {holder(one.holder)}: its lease had ended") for one in lost)
    known = [(one.at, one) for one in (*moments, *also) if one.at is not None]
    return tuple(one for _, one in sorted(known, key=lambda pair: pair[0], reverse=True))


def _lock_moments(item: LockItem | None) -> Iterator[Moment]:
    if item is not None:
        yield Moment(at=item.created_at, text=f"acquired by {holder(item.owner)}")
        yield Moment(at=item.expires_at, text="its lease ends, unless it is renewed")


def _circuit_moments(item: CircuitItem) -> Iterator[Moment]:
    for move in item.history:
        note = f" ({shortened(move.note)})" if move.note else ""
        told = f"{escaped(move.from_state)} to {escaped(move.to_state)}: {escaped(move.reason)}{note}"
        yield Moment(at=move.at, text=told)
    if item.opened_by is not None:
        yield Moment(at=item.opened_by.at, text=f"opened by {shortened(str(item.opened_by))}")
    if item.last_failure is None:
        yield Moment(at=item.last_failure_time, text="last failure")
    elif item.last_failure != item.opened_by:
        yield Moment(at=item.last_failure.at, text=f"last failure: {shortened(str(item.last_failure))}")
    yield Moment(at=item.last_success_time, text="last success that was recorded")


def _task_moments(item: TaskItem | None, saved: Iterable[CheckpointItem]) -> Iterator[Moment]:
    if item is not None:
        yield Moment(at=item.started_at, text="first started")
        yield Moment(at=item.heartbeat_at, text="last heard of")
        yield Moment(at=item.finished_at, text=item.status)
        if (failed := item.last_failure) is not None:
            yield Moment(at=failed.at, text=f"attempt {failed.attempt} failed: {shortened(failed.error)}")
    for state in saved:
        done = PAGE.percent(state.progress / 100)
        yield Moment(at=state.timestamp, text=f"saved number {state.sequence}, at {done}")


def _record_moments(item: IdempotencyItem | None) -> Iterator[Moment]:
    if item is not None and item.state == "in_progress":
        yield Moment(at=item.updated_at, text=f"claimed{f' by {holder(item.holder)}' if item.holder else ''}")
        yield Moment(at=item.expires_at, text="the claim's lease ends, unless it is renewed")
    elif item is not None:
        yield Moment(at=item.updated_at, text="the answer was stored")
        yield Moment(at=item.expires_at, text="the answer is forgotten")
