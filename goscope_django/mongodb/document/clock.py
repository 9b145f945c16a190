"""The clock that decides what has expired: the server's, or for mongomock this process's.

Rule of this file: besides ``expressions`` it is the only place that spells ``$$NOW`` and ``$$CLUSTER_TIME``.

Fencing tokens. On a replica set a token is ``max(previous + 1, seconds * 2**20 + increment)`` of the cluster time. That
is a hybrid logical clock (Kulkarni et al. 2014): it moves on with every write and does not go back at a failover, so
tokens of one key grow even when the document that held the last one is gone. A standalone server has no cluster time:
there a token is made from its wall clock on the same scale, 1,024 steps to the millisecond.

A server takes the time when a command begins, not when it writes. In between another holder may have come and gone,
with a token as large or larger. That is at least two writes, which ``outrun`` sees by the time of the answer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp

from goscope_django.mongodb.document.estimate import Estimate
from goscope_django.mongodb.document.expressions import (
    FAR,
    Expression,
    conditions,
    countable,
    instant,
    is_null,
    is_set,
    or_null,
)

TOKEN_STEPS = 2**20

_WRITTEN = ("updatedAt", "createdAt", "startedAt", "heartbeatAt", "publishedAt", "lastFailureTime", "lastSuccessTime")
"""Fields with the time at which a document was written."""


def outrun(token: int, began: datetime, answered: Timestamp | None) -> bool:
    """Whether another holder may have come and gone while the command ran that gave out ``token``.

    ``began`` is the server's time when the command began, ``answered`` its cluster time when it answered. The command's
    own write is one step, or two if it changes a document. Two more are another holder's. An answer from before the
    command began was given by a server whose clock was set back meanwhile: that tells nothing.
    """
    if answered is None:
        return False
    second, last = int(began.timestamp()), answered.time * TOKEN_STEPS + answered.inc
    first = max(token, second * TOKEN_STEPS)
    return last > first + 2 or last < second * TOKEN_STEPS


class Clock:
    """The clock that decides. Unless said otherwise a method returns an expression."""

    adds = True
    """Whether the store can add a document's own milliseconds to its time."""

    by_id = True
    """Whether an upsert may name a document by its ``_id`` alone; not where a router needs the shard key, ``key``."""

    proved = False
    """Whether the server has updated by a pipeline with ``$$NOW`` for somebody who asked."""

    streams = False
    """Whether the server has opened a change stream for somebody who asked."""

    estimate: Estimate | None = None
    """What this process knows of the clock of the server that it reads from; ``None`` where asking costs nothing."""

    primary: Estimate | None = None
    """The same for the server that it writes to."""

    def now(self) -> Expression:
        raise NotImplementedError

    def after(self, milliseconds: int) -> Expression:
        """``milliseconds`` from now."""
        raise NotImplementedError

    def before(self, milliseconds: int) -> Expression:
        """``milliseconds`` ago."""
        raise NotImplementedError

    def slot(self, milliseconds: int) -> Expression:
        """When the present slot began, if time is divided into slots of so many ``milliseconds``."""
        raise NotImplementedError

    def after_field(self, field: str, otherwise: str) -> Expression:
        """As many milliseconds from now as ``field`` holds; the instant in ``otherwise`` if that can't be added."""
        raise NotImplementedError

    def token(self) -> Expression:
        """The least token that may be given out now."""
        raise NotImplementedError

    def stamp(self) -> dict[str, Expression]:
        """A projection that adds the server's time to a result, as ``now``."""
        raise NotImplementedError

    def read_stamp(self, document: dict[str, Any]) -> datetime:
        """The time that ``stamp`` added."""
        raise NotImplementedError

    def lapsed(self, document: dict[str, Any], field: str = "expiresAt") -> bool:
        """Whether the instant in ``field`` of a document that was read with ``stamp`` has passed."""
        raise NotImplementedError

    def lately_live(self, field: str = "expiresAt") -> dict[str, Any] | None:
        """A filter, cheaper than ``live``, for documents that are live or were so a few milliseconds ago; ``None``
        where the time has to be asked for."""
        return {"$expr": self.live(field)}

    def expired_filter(self, field: str) -> dict[str, Any]:
        """A filter for documents whose instant in ``field`` is not ahead, in a form that an index on it serves."""
        raise NotImplementedError

    def whole_number(self, field: str) -> dict[str, Any]:
        """A filter for documents with an integer in ``field``, or with a document, which may be a sealed one. A server
        lets a list with one in it pass as well."""
        raise NotImplementedError

    def new(self, *fields: str) -> Expression:
        """True in an upsert's pipeline if the document is about to be inserted: then it has nothing but the field by
        which it was asked for, ``_id`` or ``key``. ``fields`` are some of which every document has one."""
        return {"$or": [is_null("_id"), is_null("key")]}

    def put(self, test: Expression, fields: dict[str, Expression]) -> list[dict[str, Expression]]:
        """A pipeline that writes ``fields`` where ``test`` holds, and else leaves the document as it is."""
        return [{"$replaceWith": {"$cond": [test, {"$mergeObjects": ["$$ROOT", fields]}, "$$ROOT"]}}]

    def live(self, field: str = "expiresAt") -> Expression:
        """True if the instant in ``field`` is still ahead, or there is none."""
        raise NotImplementedError

    def passed(self, field: str = "expiresAt") -> Expression:
        """True if there is an instant in ``field`` and it is not ahead."""
        raise NotImplementedError


class ServerClock(Clock):
    """The database server's own time. ``cluster_time`` becomes false when the server says that it has none.

    ``reads_elsewhere``: reads may go to another server than writes, with a clock of its own.
    """

    def __init__(self, *, reads_elsewhere: bool = False) -> None:
        self.cluster_time = True
        self.estimate = Estimate()
        self.primary = Estimate() if reads_elsewhere else self.estimate

    def now(self) -> Expression:
        return "$$NOW"

    def after(self, milliseconds: int) -> Expression:
        return {"$add": ["$$NOW", milliseconds]}

    def before(self, milliseconds: int) -> Expression:
        return {"$subtract": ["$$NOW", milliseconds]}

    def slot(self, milliseconds: int) -> Expression:
        return {"$subtract": ["$$NOW", {"$mod": [{"$toLong": "$$NOW"}, milliseconds]}]}

    def after_field(self, field: str, otherwise: str) -> Expression:
        length = countable(field)
        return {"$cond": [{"$gt": [length, 0]}, {"$add": ["$$NOW", length]}, or_null(otherwise)]}

    # Only a date can pass, as for the TTL monitor and in Node's filters. An expression compares in the order of BSON's
    # types, in which a number or a text comes before every date: hence the test of the type.

    def live(self, field: str = "expiresAt") -> Expression:
        return {"$not": [self.passed(field)]}

    def passed(self, field: str = "expiresAt") -> Expression:
        return {"$and": [{"$lte": [f"${field}", "$$NOW"]}, {"$eq": [{"$type": f"${field}"}, "date"]}]}

    def lately_live(self, field: str = "expiresAt") -> dict[str, Any] | None:
        # No expression to compute, and no index that could serve it, so the planner has only one plan to consider.
        reached = None if self.primary is None else self.primary.reached()
        return None if reached is None else {"$nor": [{field: {"$lte": reached}}]}

    def expired_filter(self, field: str) -> dict[str, Any]:
        return {field: {"$type": "date"}, "$expr": {"$lte": [f"${field}", "$$NOW"]}}

    def whole_number(self, field: str) -> dict[str, Any]:
        return {field: {"$type": ["int", "long", "object"]}}

    def token(self) -> Expression:
        if self.cluster_time:
            seconds, step = {"$tsSecond": "$$CLUSTER_TIME"}, {"$tsIncrement": "$$CLUSTER_TIME"}
            return {"$add": [{"$multiply": [seconds, TOKEN_STEPS]}, step]}
        milliseconds = {"$toLong": "$$NOW"}
        return {
            "$add": [
                {"$multiply": [{"$toLong": {"$floor": {"$divide": [milliseconds, 1_000]}}}, TOKEN_STEPS]},
                {"$multiply": [{"$mod": [milliseconds, 1_000]}, 1_024]},
            ]
        }

    def stamp(self) -> dict[str, Expression]:
        return {"now": "$$NOW"}

    def lapsed(self, document: dict[str, Any], field: str = "expiresAt") -> bool:
        moment = document.get(field)
        if isinstance(moment, DatetimeMS):  # beyond Python's calendar
            return int(moment) < 0
        return isinstance(moment, datetime) and moment <= document["now"]

    def read_stamp(self, document: dict[str, Any]) -> datetime:
        now = document.get("now")
        if not isinstance(now, datetime):
            # An answer to a command that was sent twice. Whatever wrote the document was there by its times.
            written = (document.get(name) for name in _WRITTEN)
            now = max((one for one in written if isinstance(one, datetime)), default=datetime.now(UTC))
        return now


class LocalClock(Clock):
    """This process's time as literals, for mongomock: there the process is the server."""

    adds = False

    def _moment(self, milliseconds: int = 0) -> datetime:
        moment = datetime.now(UTC).replace(tzinfo=None) + timedelta(milliseconds=milliseconds)
        return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)

    def now(self) -> Expression:
        return self._moment()

    def after(self, milliseconds: int) -> Expression:
        return self._moment(milliseconds)

    def before(self, milliseconds: int) -> Expression:
        return self._moment(-milliseconds)

    def slot(self, milliseconds: int) -> Expression:
        moment = self._moment()
        passed = round(moment.replace(tzinfo=UTC).timestamp() * 1_000) % milliseconds
        return moment - timedelta(milliseconds=passed)

    def after_field(self, field: str, otherwise: str) -> Expression:
        return or_null(otherwise)

    def new(self, *fields: str) -> Expression:
        # mongomock gives it an _id beforehand. So a document of which nothing but its key is left counts as new here.
        return {"$and": [is_null(field) for field in fields]}

    def put(self, test: Expression, fields: dict[str, Expression]) -> list[dict[str, Expression]]:
        return [{"$set": conditions(test, fields)}]

    # mongomock can't compare a missing field.

    def live(self, field: str = "expiresAt") -> Expression:
        return {"$gt": [{"$ifNull": [f"${field}", FAR]}, self.now()]}

    def passed(self, field: str = "expiresAt") -> Expression:
        return {"$and": [is_set(field), {"$lte": [or_null(field), self.now()]}]}

    def expired_filter(self, field: str) -> dict[str, Any]:
        return {field: {"$ne": None, "$lte": self.now()}}

    def whole_number(self, field: str) -> dict[str, Any]:
        number = [{field: {"$type": kind}} for kind in ("int", "long", "object")]  # it knows no list of types
        return {"$or": number, f"{field}.0": {"$exists": False}}

    def token(self) -> Expression:
        microseconds = int(datetime.now(UTC).timestamp() * 1_000_000)
        return microseconds // 1_000_000 * TOKEN_STEPS + microseconds % 1_000_000

    def stamp(self) -> dict[str, Expression]:
        return {}

    def lapsed(self, document: dict[str, Any], field: str = "expiresAt") -> bool:
        moment = instant(document.get(field))
        return moment is not None and moment <= self.read_stamp(document)

    def read_stamp(self, document: dict[str, Any]) -> datetime:
        return datetime.now(UTC)
