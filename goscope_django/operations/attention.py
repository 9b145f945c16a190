"""Says what needs an operator: one sentence for each thing, what to do about it, and where it is found.

Rules of this file:

* Pure functions of what was read. ``Trouble`` is what is read for it beside the pages of the state, which a limit and a
  search make incomplete.
* Nothing is said to be well that could not be read.
* A sentence has keys, owners and reasons with what is not printable escaped, and no stored value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from goscope_django.core import histogram
from goscope_django.mongodb.document.indexes import REPAIR
from goscope_django.mongodb.trouble import MOST
from goscope_django.operations.convert import Problem, since
from goscope_django.operations.servers import ENSURE
from goscope_django.operations.values import (
    ATTENTION_KINDS,
    Attention,
    AttentionItem,
    AttentionKind,
    Cache,
    CircuitItem,
    Figures,
    LockItem,
    LossItem,
    TaskItem,
    Timing,
    WaitItem,
)
from goscope_django.operations.wording import PAGE, escaped, named, number, shortened

SHOWN: Final = 20
"""Items of one kind that are listed."""

WAITED: Final = 1.0
"""Seconds after which a wait is worth a look."""

LONG_HELD: Final = 3_600.0
"""Seconds after which any lock is held unusually long, unless more is known of that one."""

SOON: Final = 300.0
"""The least number of seconds for a lock of which nothing is known but what is usual for all locks (``usual_hold``)."""

OFTEN: Final = 14.0
"""Days. What happens once in so many is usual."""

MANY: Final = 100
"""Holds of all locks that make a rule for all."""

TIMES: Final = 10
"""So many times as long as it is held as a rule (in 95 of 100 cases) a lock is held unusually long, if that is known
(``FIGURES_PER_NAME``), and for ``LEAST_HELD`` at least."""

LEAST_HELD: Final = 60.0
ENOUGH: Final = 5
"""Holds of an hour that make a rule."""

RUNBOOK: Final = "docs/how-to/runbook.md"
"""Has a section for each kind."""

NOTHING: Final = "Nothing needs attention."
UNKNOWN: Final = "Some things could not be read."

_PLURALS: Final[Mapping[AttentionKind, tuple[str, str]]] = {
    "unreachable": ("server can't be used", "servers can't be used"),
    "server": ("fault of the server", "faults of the server"),
    "indexes": ("index problem", "index problems"),
    "clock": ("wrong clock", "wrong clocks"),
    "cache_unread": ("cache can't be read", "caches can't be read"),
    "unread": ("part could not be read", "parts could not be read"),
    "circuit_open": ("open circuit", "open circuits"),
    "circuit_forced": ("forced circuit", "forced circuits"),
    "task_exhausted": ("task without attempts left", "tasks without attempts left"),
    "task_failed": ("failed task", "failed tasks"),
    "task_stalled": ("stalled task", "stalled tasks"),
    "lock_waited": ("lock that others wait for", "locks that others wait for"),
    "lock_held_long": ("lock held unusually long", "locks held unusually long"),
    "lease_lost": ("kind of lost lease", "kinds of lost leases"),
    "forged": ("place with forged entries", "places with forged entries"),
}

_LOST: Final[Mapping[str, tuple[str, str, str]]] = {
    "locks_lost": ("lock", "lock was lost by its holder", "locks were lost by their holders"),
    "tasks_lost": ("task", "task was lost by its worker", "tasks were lost by their workers"),
    "idempotent_lost": (
        "idempotency",
        "idempotent request was taken over from its worker",
        "idempotent requests were taken over from their workers",
    ),
}
"""The figures of leases that ended while their holder still worked."""

_FORGED: Final[Mapping[str, tuple[str, str]]] = {
    "tasks_refused": (
        "stored task was not started again: what the database says of it is not ours",
        "stored tasks were not started again: what the database says of them is not ours",
    ),
    "checkpoints_unreadable": (
        "checkpoint is forged, damaged or of an unknown format",
        "checkpoints are forged, damaged or of an unknown format",
    ),
}
_WHO_WRITES: Final = "Find out who else writes to the collection, and whether all processes have the same SECRET_KEY."
_SUFFIX: Final = re.compile(r", [0-9a-f]{16}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What was read for this beside the pages: circuits that are open or forced, tasks that failed or stalled, the
    locks that somebody waits for, and those held for long. At most ``MOST`` and one of each."""

    error: str | None = None
    circuits: tuple[CircuitItem, ...] = ()
    tasks: tuple[TaskItem, ...] = ()
    waited: tuple[LockItem, ...] = ()
    held: tuple[LockItem, ...] = ()


def attention(
    trouble: Trouble,
    problems: Iterable[Problem],
    waits: Sequence[WaitItem],
    losses: Sequence[LossItem],
    figures: Figures,
    cache: Cache,
    now: datetime,
    hint: str | None = None,
) -> Attention:
    """What needs attention ``now``.

    ``problems`` are the server's, its indexes' and those of reading; ``hint`` says what to do about a server that can't
    be used.
    """
    problems = list(problems)
    found = [
        *_problems(problems, hint),
        *_circuits(trouble.circuits, now),
        *_tasks(trouble.tasks),
        *_locks(trouble.waited, trouble.held, waits, figures, now),
        *_lost(figures.totals, losses),
        *_forged(cache, figures.totals),
    ]
    by_kind: dict[str, int] = {}
    items: list[AttentionItem] = []
    at_least = False
    for kind in ATTENTION_KINDS:
        some = sorted((one for one in found if one.kind == kind), key=lambda one: -(one.seconds or 0.0))
        if some:
            by_kind[kind] = min(len(some), MOST)
            at_least |= len(some) > MOST
            items += (replace(one, docs=f"{RUNBOOK}#{kind}") for one in some[:SHOWN])
    complete = not any(one.kind in ("unreachable", "cache_unread", "unread") for one in problems)
    return Attention(
        summary=_summary(by_kind, at_least=at_least, complete=complete),
        total=sum(by_kind.values()),
        at_least=at_least,
        complete=complete,
        by_kind=by_kind,
        items=tuple(items),
    )


def _summary(by_kind: Mapping[str, int], *, at_least: bool, complete: bool) -> str:
    total = sum(by_kind.values())
    if not total:
        return NOTHING if complete else UNKNOWN
    parts = [
        f"{number(by_kind[kind])} {_PLURALS[kind][by_kind[kind] != 1]}" for kind in ATTENTION_KINDS if kind in by_kind
    ]
    needs = "thing needs" if total == 1 else "things need"
    return f"{number(total, at_least=at_least)} {needs} attention: {', '.join(parts)}."


def holder(owner: str) -> str:
    """Who an owner is, for people: without the random text that makes each acquisition's its own."""
    return escaped(_SUFFIX.sub("", owner))


def command(verb: str, key: str = "", *options: str) -> str:
    """The command, as it is typed in a shell."""
    given = [*options, *(["--"] if key.startswith("-") else []), quoted(key)] if key else list(options)
    return " ".join(["manage.py", verb, *given])


def quoted(text: str) -> str:
    """``text`` for a shell. What is not printable is told by escapes, as bash, zsh and ksh read them."""
    if text.isprintable():
        return shlex.quote(text)
    marked = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{escaped(marked)}'"


def _counted(count: int, words: Sequence[str]) -> str:
    return f"{number(count)} {words[count != 1]}"


def _problems(problems: Iterable[Problem], hint: str | None) -> Iterator[AttentionItem]:
    check = "manage.py check --database default"
    for one in problems:
        what: tuple[str, str | None] = {
            "unreachable": (hint or "Start it, or correct GOSCOPE['URL'].", check),
            "server": ("Mend it on the server, as the sentence says.", check),
            "indexes": (
                ("Replace the index that differs.", REPAIR) if one.key else ("Make the missing indexes.", ENSURE)
            ),
            "clock": ("Run NTP on this machine and on the server's.", None),
            "cache_unread": ("Check LOCATION of this entry of CACHES, and its server.", check),
            "unread": ("Do what the error says; the other parts are complete.", None),
        }[one.kind]
        yield AttentionItem(
            kind=one.kind,
            key=one.key,
            target="cache" if one.kind == "cache_unread" else "server",
            sentence=escaped(one.text),
            action=what[0],
            command=what[1],
        )


def _circuits(circuits: Iterable[CircuitItem], now: datetime) -> Iterator[AttentionItem]:
    for one in circuits:
        name = named(one.name)
        if one.override is not None:
            reason = f": {shortened(one.override.reason)}" if one.override.reason else ""
            effect = "all calls are refused" if one.override.state == "open" else "all calls go through"
            yield AttentionItem(
                kind="circuit_forced",
                key=one.name,
                target="circuit",
                sentence=f"Circuit {name} is forced {one.override.state} by an operator, and {effect}{reason}",
                action="Reset it as soon as the reason for it is gone.",
                command=command("goscope_circuit reset", one.name),
                seconds=since(one.override.at, now),
                token=one.generation,
            )
            continue
        trial = f"in {PAGE.duration(one.retry_after)}" if one.retry_after else "now, by the next call"
        why = "" if one.opened_by is None else f" It was opened by {shortened(str(one.opened_by))}"
        lasted = "" if one.open_for is None else f" for {PAGE.duration(one.open_for)}"
        yield AttentionItem(
            kind="circuit_open",
            key=one.name,
            target="circuit",
            sentence=f"Circuit {name} has been open{lasted}: calls are refused. It is tried again {trial}.{why}",
            action="Mend what it protects. It closes by itself when a trial call succeeds.",
            command=command("goscope_circuit show", one.name),
            seconds=one.open_for,
            token=one.generation,
        )


def _tasks(tasks: Iterable[TaskItem]) -> Iterator[AttentionItem]:
    for one in tasks:
        name, progress = named(one.task_id), PAGE.percent(one.progress / 100)
        attempts = f"{one.attempt}" + ("" if one.max_attempts is None else f" of {one.max_attempts}")
        failure = f": {shortened(one.failure)}" if one.failure else ""
        seconds, verb = one.heartbeat_age, "show"
        kind: AttentionKind
        if one.status == "stalled":
            kind = "task_stalled"
            who = f" ({holder(one.owner)})" if one.owner else ""
            lasted = "" if seconds is None else f", last heard of {PAGE.duration(seconds)} ago"
            sentence = f"Task {name} has stalled at {progress}: its worker{who} is gone{lasted}."
            action = "Start it again: the next start goes on where it stopped."
        elif one.status == "exhausted":
            kind, verb = "task_exhausted", "reset"
            sentence = f"Task {name} is at {progress} and has no attempt left ({attempts}){failure}"
            action = "Mend why it failed, then reset it: it may be started again."
        else:
            kind = "task_failed"
            sentence = f"Task {name} has failed at {progress}, in attempt {attempts}{failure}"
            action = "Mend why it failed, and start it again: it goes on where it stopped."
        yield AttentionItem(
            kind=kind,
            key=one.task_id,
            target="task",
            sentence=sentence,
            action=action,
            command=command(f"goscope_checkpoint {verb}", one.task_id),
            seconds=seconds,
            token=one.token,
        )


def usual_hold(buckets: Sequence[int], began: datetime | None, now: datetime) -> float:
    """For how long a lock is held at most as a rule, whichever it is: ``SOON`` to ``LONG_HELD`` seconds.

    ``buckets`` count the holds of all locks since ``began``, as a histogram. A bound that is passed once a fortnight
    is no rule. So a nightly import makes its own length usual, and one lock that was stuck is forgotten.
    """
    if began is None or sum(buckets) < MANY:
        return LONG_HELD
    rare = max(1.0, (now - began).total_seconds() / 86_400 / OFTEN)
    longer = sum(buckets)
    for bound, count in zip(histogram.BOUNDS, buckets, strict=False):
        longer -= count
        if longer < rare:
            return min(max(bound, SOON), LONG_HELD)
    return LONG_HELD


def _usual(figures: Figures) -> dict[str, float]:
    """For how long a lock is held in 95 of 100 cases, for those of which that is known."""
    found: dict[str, float] = {}
    for hour in figures.names:
        for one in hour.locks:
            if one.held.p95 is not None and one.held.count >= ENOUGH:
                found[one.name] = max(found.get(one.name, 0.0), one.held.p95)
    return found


def _locks(
    waited: Iterable[LockItem],
    held: Iterable[LockItem],
    waits: Sequence[WaitItem],
    figures: Figures,
    now: datetime,
) -> Iterator[AttentionItem]:
    told = set()
    for one in waited:
        theirs = [wait for wait in waits if wait.kind == "lock" and wait.key == one.key]
        longest = max((wait.longest for wait in theirs), default=0.0)
        if longest < WAITED:
            continue
        told.add(one.key)
        count = sum(wait.count for wait in theirs)
        callers = "1 caller waits" if count == 1 else f"{number(count)} callers wait"
        found = _lock(
            one,
            "lock_waited",
            f"{callers} for it, since {PAGE.duration(longest)}.",
            "Look at what its holder does. If that is stuck or gone, release the lock.",
            longest,
        )
        if one.held_for is not None and one.held_for < longest:
            found = replace(
                found,
                action="It changes hands, so nobody is stuck: do less inside the lock, or use more keys.",
                command=command("goscope_lock show", one.key),
            )
        yield found
    usual, timing = _usual(figures), figures.sums.timings.get("lock_held", Timing())
    of_all = usual_hold(timing.buckets, figures.sums.since, now)
    for one in held:
        rule = usual.get(one.key)
        most = of_all if rule is None else max(LEAST_HELD, TIMES * rule)
        if one.key not in told and one.held_for is not None and one.held_for >= most:
            known = "" if most == LONG_HELD else f", since locks are held for {PAGE.duration(most)} at most as a rule"
            if rule is not None:
                known = f", since it is held for {PAGE.duration(rule)} at most as a rule"
            yield _lock(
                one,
                "lock_held_long",
                f"that is unusually long{known}.",
                "Look at whether its holder still works on it. If not, release the lock.",
                one.held_for,
            )


def _lock(one: LockItem, kind: AttentionKind, rest: str, action: str, seconds: float) -> AttentionItem:
    lasted = "" if one.held_for is None else f" for {PAGE.duration(one.held_for)}"
    mark = ["--owner", quoted(one.owner)] if one.token is None else ["--token", str(one.token)]
    return AttentionItem(
        kind=kind,
        key=one.key,
        target="lock",
        sentence=f"Lock {named(one.key)} has been held{lasted} by {holder(one.owner)}, and {rest}",
        action=action,
        command=command("goscope_lock release", one.key, *mark),
        seconds=seconds,
        token=one.token,
    )


def _lost(totals: Mapping[str, int], losses: Sequence[LossItem]) -> Iterator[AttentionItem]:
    for name, (kind, *words) in _LOST.items():
        if count := totals.get(name, 0):
            last = next((one for one in losses if one.kind == kind), None)
            which = "" if last is None else f" The last one was {named(last.key)}, of {holder(last.holder)}."
            yield AttentionItem(
                kind="lease_lost",
                key=name,
                target="figures",
                sentence=(
                    f"{_counted(count, words)} in the last hour: the lease had ended while the work went on.{which}"
                ),
                action="Look for long pauses of these processes, for an outage, or for leases that are too short.",
            )


def _forged(cache: Cache, totals: Mapping[str, int]) -> Iterator[AttentionItem]:
    for alias in cache.aliases:
        if count := alias.figures.forged:
            entries = "1 entry was" if count == 1 else f"{number(count)} entries were"
            yield AttentionItem(
                kind="forged",
                key=alias.alias,
                target="cache",
                sentence=f"Cache {alias.alias!r}: {entries} forged or damaged in the last hour, and counted as a miss.",
                action=_WHO_WRITES,
                command=command("goscope_cache stats --alias", alias.alias),
            )
    for name, words in _FORGED.items():
        if count := totals.get(name, 0):
            yield AttentionItem(
                kind="forged",
                key=name,
                target="figures",
                sentence=f"{_counted(count, words)} (in the last hour).",
                action=_WHO_WRITES,
                command="manage.py goscope_checkpoint list",
            )
