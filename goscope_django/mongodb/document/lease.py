"""The leased document: claim, renew, release, take over.

Rule of this file: it alone says who owns a document. The worst bugs of packages like this one are a *second* write
(release, renew, complete, save, publish) without a predicate on the owner. Here that predicate is made in one place.

A leased document has a *claim* (random text, new for each attempt, null while nobody holds it), a *deadline* and a
*fencing token*. It is held while there is a claim and the deadline is ahead by the server's clock. A missing or null
deadline is always ahead. The document of a lock is removed at its release, so a lock is held while there is a document
with its deadline ahead. An attempt succeeded if its own claim is in the document afterwards. Counts don't decide: a
driver may have sent the command twice, and two callers may use the same name.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from goscope_django.core.flow import Flow, Query, ask, perform
from goscope_django.mongodb.document.clock import Clock, ServerClock
from goscope_django.mongodb.document.expressions import Expression, conditions, countable, instant, is_null, literal
from goscope_django.mongodb.document.failures import NO_CLUSTER_TIME, means, no_shard_key

T = TypeVar("T")
_COLLISIONS: Final = 5


def new_claim() -> str:
    """128 random bits: no two attempts ever share a claim."""
    return secrets.token_hex(16)


def upsert(clock: Clock, query: Callable[[], Query[Any]]) -> Flow[Any]:
    """Send an upsert, and again where that is needed and safe; ``query`` makes it for each attempt.

    Two upserts that race may collide (E11000): the loser sends its command again and then finds the winner's
    document. A standalone server refuses cluster time before anything is written: the command goes out again with its
    wall clock.
    """
    for attempt in range(_COLLISIONS + 1):
        try:
            return (yield from perform(query()))
        except DuplicateKeyError:
            if attempt == _COLLISIONS:
                raise
        except OperationFailure as error:
            if not _goes_by_wall_clock(clock, error):
                raise
    raise AssertionError("unreachable")


def by_id(clock: Clock, send: Flow[T]) -> Flow[T | None]:
    """The result of ``send``, an upsert by ``_id``, which costs the server less.

    ``None`` where nothing was written and ``upsert`` has to send it by ``key``: another package's document, whose
    ``_id`` is its own, stands in the way (or two raced), the collection is sharded, or there is no cluster time.
    """
    if clock.by_id:
        try:
            return (yield from send)
        except DuplicateKeyError:
            pass
        except OperationFailure as error:
            if no_shard_key(error):
                clock.by_id = False
            elif not _goes_by_wall_clock(clock, error):
                raise
    return None


def server_time(clock: Clock) -> Flow[datetime | None]:
    """The primary's time. One command; mongomock has this process's."""
    if not isinstance(clock, ServerClock):
        return datetime.now(UTC)
    return instant((yield from ask("", "command", "hello")).get("localTime"))


def surely_lasts(clock: Clock, until: datetime | None) -> Flow[bool]:
    """Whether a lease that ends at ``until`` (``None``: unknown) has not ended yet. One command.

    Until then nobody else can have taken the document. So if the claim is not there any more, its holder's own command
    has removed it.
    """
    if until is None:
        return False
    now = yield from server_time(clock)
    return now is not None and now < until


def timed(clock: Clock, send: Flow[dict[str, Any] | None]) -> Flow[Any]:
    """The document that ``send`` gives, a ``findAndModify`` whose projection has ``clock.stamp()``; with the time.

    If the driver has sent it twice, the server answers from its record of the first one: the whole document, without
    the projection and so without the time. Then the time is asked for, with one more command. If that fails too, the
    document comes without it, and ``clock.read_stamp`` takes the latest time that stands in it.
    """
    return (yield from with_time(clock, (yield from send)))


def with_time(clock: Clock, found: Any) -> Flow[Any]:
    """``found`` with the server's time, as ``timed`` says."""
    if found is not None and not clock.stamp().keys() <= found.keys():
        with contextlib.suppress(PyMongoError):
            found["now"] = yield from server_time(clock)
    return found


def _goes_by_wall_clock(clock: Clock, error: OperationFailure) -> bool:
    """Whether the server refused it because it has no cluster time; from then on ``clock`` uses the wall clock."""
    if not means(error, NO_CLUSTER_TIME) or not isinstance(clock, ServerClock):
        return False
    clock.cluster_time = False
    return True


@dataclass(frozen=True, slots=True)
class Lease:
    """The predicate of one kind of leased document.

    ``holder`` is the field that is null while nobody holds the document; ``None`` where every document that exists is
    held. ``deadline`` is the field with the lease's end.
    """

    holder: str | None = "claim"
    deadline: str = "expiresAt"

    def free(self, clock: Clock) -> Expression:
        """True if nobody holds the document now: a new one, a released one or one whose lease has ended."""
        nobody = clock.new("owner", self.deadline) if self.holder is None else is_null(self.holder)
        return {"$or": [nobody, clock.passed(self.deadline)]}

    def next_token(self, clock: Clock) -> Expression:
        """A fencing token above the one that stands there, and above those that were given out before now."""
        return {"$max": [{"$add": [countable("token"), 1]}, clock.token()]}

    def grant(self, clock: Clock, claim: str, milliseconds: int, **more: Expression) -> dict[str, Expression]:
        """The fields that a new holder writes."""
        return {
            "claim": literal(claim),
            "token": self.next_token(clock),
            self.deadline: clock.after(milliseconds),
            **more,
        }

    def take(
        self, clock: Clock, claim: str, milliseconds: int, *, unless: Expression = False, **more: Expression
    ) -> dict[str, Expression]:
        """Fields of a ``$set`` that grant a free document to ``claim`` and leave a held one as it is.

        With ``unless`` a document that is free for another reason (a finished one) is left as it is, too.
        """
        test = self.free(clock)
        if unless is not False:
            test = {"$cond": [unless, False, test]}
        return conditions(test, self.grant(clock, claim, milliseconds, **more))

    def mine(self, clock: Clock, **identity: Any) -> dict[str, Any]:
        """A filter for every second write: only this holder's document, and only while its lease lasts.

        ``identity`` is whatever names the holder: ``claim=``, ``token=`` or ``owner=``.
        """
        return {**identity, "$expr": clock.live(self.deadline)}

    def renew(self, clock: Clock, milliseconds: int) -> list[dict[str, Any]]:
        """An update that moves the deadline; to be sent with ``mine``."""
        return [{"$set": {self.deadline: clock.after(milliseconds)}}]

    def renumber(self, clock: Clock, milliseconds: int) -> list[dict[str, Any]]:
        """An update that gives the holder a token of now and moves the deadline; to be sent with ``mine``."""
        return [{"$set": {"token": self.next_token(clock)}}, *self.renew(clock, milliseconds)]

    def remaining(self, clock: Clock, document: dict[str, Any]) -> float:
        """Seconds until the lease of a document read with ``clock.stamp()`` ends; 0 if it has ended."""
        deadline = instant(document.get(self.deadline))
        now = instant(clock.read_stamp(document))
        if deadline is None or now is None:
            return 60.0
        return max(0.0, (deadline - now).total_seconds())


def renew_all(
    clock: Clock, collection: str, name: str, lease: Lease, holders: list[tuple[str, str]], milliseconds: int
) -> Flow[frozenset[str]]:
    """Renew many leases of equal length at once; the claims that still hold theirs.

    ``holders`` are (key, claim) pairs, ``name`` the field that has the key. One command where all still hold, two where
    some don't. A claim is random, so the cross product of keys and claims matches the pairs alone.
    """
    keys, claims = [key for key, _ in holders], [claim for _, claim in holders]
    test = lease.mine(clock, **{name: {"$in": keys}, "claim": {"$in": claims}})
    # Never moved back: the holder may have moved its deadline itself, and the two commands may have crossed.
    later = {"$max": [f"${lease.deadline}", clock.after(milliseconds)]}
    changed = yield from ask(collection, "update_many", test, [{"$set": {lease.deadline: later}}])
    if changed.matched_count >= len(holders):
        return frozenset(claims)
    found = yield from ask(collection, "find", test, {"claim": True, "_id": False})
    return frozenset(one["claim"] for one in found)
