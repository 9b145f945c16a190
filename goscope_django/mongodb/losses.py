"""The last leases that the fleet lost while their holders still worked: one document of ``go_goscope_stats``.

``<prefix>losses`` has at most ``MOST`` of them, the newest last, and goes ``KEPT`` after the last one. Rule of this
file: it is written only when something was lost, by one command however much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from goscope_django.core.flow import Flow, Query, ask
from goscope_django.mongodb.document import reading
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import array, instant, just, literal
from goscope_django.mongodb.document.lease import upsert
from goscope_django.mongodb.figures import STATS

MOST: Final = 100
KEPT: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Loss:
    """A lost lease. ``kind`` is ``lock``, ``task`` or ``idempotency``, ``holder`` who had it, ``ago`` for how many
    seconds it has been lost when this is sent."""

    kind: str
    key: str
    holder: str
    token: int | None
    ago: float


@dataclass(frozen=True, slots=True)
class LossSeen:
    """A lost lease as it is kept."""

    kind: str
    key: str
    holder: str
    token: int | None
    at: datetime | None


def _id(prefix: str) -> str:
    return f"{prefix}losses"


def add(clock: Clock, prefix: str, losses: Sequence[Loss]) -> Flow[None]:
    """Note ``losses``. One command."""

    def query() -> Query[Any]:
        told = [
            just(
                {
                    "kind": literal(one.kind),
                    "key": literal(one.key),
                    "holder": literal(one.holder),
                    "token": literal(one.token),
                    "at": clock.before(max(0, int(one.ago * 1_000))),
                }
            )
            for one in losses[-MOST:]
        ]
        joined = {"$slice": [{"$concatArrays": [array("losses"), *told]}, -MOST]}
        fields = {"losses": joined, "expiresAt": clock.after(int(KEPT.total_seconds() * 1_000))}
        return Query(STATS, "update_one", {"_id": _id(prefix)}, [{"$set": fields}], upsert=True)

    yield from upsert(clock, query)


def read(clock: Clock, prefix: str) -> Flow[tuple[LossSeen, ...]]:
    """The last losses, the newest first. One command."""
    found = yield from ask(STATS, "find_one", {"_id": _id(prefix)}, {"losses": True})
    rows = reading.rows((found or {}).get("losses"))
    return tuple(
        LossSeen(
            reading.text(one.get("kind")) or "",
            reading.text(one.get("key")) or "",
            reading.text(one.get("holder")) or "",
            reading.whole_or_none(one.get("token")),
            instant(one.get("at")),
        )
        for one in reversed(rows[-MOST:])
    )
