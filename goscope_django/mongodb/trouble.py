"""What an operator should look at, whatever is on the page: circuits, tasks and locks that are not as they should be.

Rules of this file:

* It only reads, with one command for each kind, and at most ``MOST`` and one documents of it.
* Who is in trouble is decided by the server, by its own clock. What has lasted longest comes first.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

from goscope_django.contracts import LockInfo
from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.checkpoints.queries import TaskQueryFlows
from goscope_django.mongodb.checkpoints.values import TaskInfo
from goscope_django.mongodb.circuits.document import CIRCUITS
from goscope_django.mongodb.circuits.document import info as circuit_info
from goscope_django.mongodb.circuits.flows import WHY_FIELDS
from goscope_django.mongodb.circuits.table import CircuitInfo
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, or_null, prefix_range
from goscope_django.mongodb.document.reading import NOT_A_LIST, named_by_text
from goscope_django.mongodb.locks.flows import LOCKS, lock_info

MOST: Final = 100
"""Things of one kind that are told. One more may be read: then there are more still."""

MARGIN: Final = timedelta(seconds=30)
"""More than any command takes from when ``moment`` was read."""

_LOCK_FIELDS: Final = dict.fromkeys(("key", "owner", "token", "createdAt", "expiresAt"), True)


def circuits(clock: Clock, prefix: str) -> Flow[list[CircuitInfo]]:
    """Circuits that are open, or that an operator forces. One command."""
    full = f"{prefix}circuit:"
    test = {
        "key": prefix_range(full),
        "key.0": NOT_A_LIST,
        "$or": [{"state": "open"}, {"override": {"$ne": None}}],
    }
    fields, order = {**WHY_FIELDS, **clock.stamp()}, [("openedAt", 1), ("key", 1)]
    found = yield from ask(CIRCUITS, "find", test, fields, sort=order, limit=MOST + 1, batch_size=MOST + 2)
    seen = [circuit_info(one["key"][len(full) :], one, clock.read_stamp(one)) for one in named_by_text(found)]
    return [one for one in seen if one.state == "open" or one.override is not None]


def tasks(clock: Clock, history: CheckpointFlows) -> Flow[list[TaskInfo]]:
    """Tasks that have failed, or whose worker is gone. One command."""
    test: dict[str, Any] = {
        "_id": prefix_range(history.prefix),
        "status": {"$in": ["failed", "running"]},
        "$expr": {
            "$and": [clock.live(), {"$or": [{"$eq": ["$status", "failed"]}, clock.passed("leaseUntil")]}],
        },
    }
    found = yield from TaskQueryFlows(history).find(clock, test, MOST + 1)
    return [one for one in found if one.stalled or one.status == "failed"]


def _soon_enough(moment: datetime, held_for: int) -> datetime:
    try:
        return moment - timedelta(milliseconds=held_for) + MARGIN
    except OverflowError:
        return moment


def locks(
    clock: Clock,
    prefix: str,
    *,
    keys: Collection[str] | None = None,
    held_for: int = 0,
    moment: datetime | None = None,
) -> Flow[list[tuple[LockInfo, datetime]]]:
    """Locks that are held now, each with the server's time: those of ``keys``, or else those held for ``held_for``
    milliseconds and more. One command.

    ``moment`` is the server's time a moment ago. With it the server looks at younger locks no closer.
    """
    full = f"{prefix}lock:"
    test: dict[str, Any] = {"$expr": clock.live()}
    if keys is not None:
        test["key"] = {"$in": sorted(full + key for key in keys)}
    else:
        # A lock of Node may have no createdAt, which would come before every date.
        old = {"$lte": [or_null("createdAt"), clock.before(held_for)]}
        test = {
            "key": prefix_range(full),
            "key.0": NOT_A_LIST,
            "createdAt": {"$ne": None} if moment is None else {"$lte": _soon_enough(moment, held_for)},
            "$expr": {"$and": [clock.live(), old]},
        }
    fields, order = {**_LOCK_FIELDS, **clock.stamp()}, [("createdAt", 1), ("key", 1)]
    most = MOST + 1 if keys is None else len(keys)
    found = yield from ask(LOCKS, "find", test, fields, sort=order, limit=most, batch_size=most + 1)
    seen = []
    for one in named_by_text(found):
        now = instant(clock.read_stamp(one))
        if now is not None:
            seen.append((lock_info(one, full), now))
    return seen
