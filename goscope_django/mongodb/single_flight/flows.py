"""Flights in ``go_goscope_flights``: one leader per key, and its result for the callers that waited.

A flight is a leased document, found by ``_id``. While ``claim`` is set and ``expiresAt`` is ahead, somebody leads.
Publishing is one update that requires the claim: it removes the claim, and stores the result with ``published``, the
token of its flight. The next leader leaves that result in place, so that callers who still wait find it.

Tokens, not times, tell who may have a result. A caller that found flight *t* in the air may have a result of *t* or of
a later flight, since all of these were published after it began to wait. A caller that finds nobody leading starts a
flight, however young the last result is.

The idea is Go's ``singleflight``. Waiters look for a result before they try to lead, which is what users of similar
packages ask for (``posthog`` 56781, ``layercache`` 59).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Literal

import pymongo
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from goscope_django.core.flow import Emit, Flow, Pause, Query, ask, perform
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, literal, or_null
from goscope_django.mongodb.document.failures import may_have_happened, too_large
from goscope_django.mongodb.document.lease import Lease, new_claim, timed, upsert
from goscope_django.mongodb.document.reading import number, text, whole
from goscope_django.mongodb.single_flight.values import Entered, FlightInfo, Result, Terms

FLIGHTS: Final = "go_goscope_flights"
LEASE: Final = Lease()
MAX_BODY: Final = 16 * 1024 * 1024 - 64 * 1024
"""Bytes of a result that surely fit in one document."""

_HEAD: Final = dict.fromkeys(("claim", "token", "previous", "published", "startedAt", "expiresAt"), True)
_BODY: Final = {**_HEAD, **dict.fromkeys(("kind", "value", "took", "publishedAt", "keepUntil"), True)}
Published = Literal["published", "lost", "too large"]
Pace = Callable[[float, float, int], float]
"""Seconds until the next look: of seconds waited, seconds that the flight has been in the air, and commands sent."""


class FlightFlows:
    """The operations of one prefix, as flows."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}flight:"

    def enter(
        self, clock: Clock, key: str, terms: Terms, since: int | None, pace: Pace, deadline: float
    ) -> Flow[Entered]:
        """Lead the flight of ``key`` if nobody does, else wait for its result; ``deadline`` is monotonic.

        ``since`` is the token of a flight that the caller was already waiting for. One command to lead; a caller that
        waits sends one more for each look. If the leader dies, one of the waiting callers takes over, and
        ``flight_taken_over`` is emitted.
        """
        claim, began, looks, joined = new_claim(), time.monotonic(), 0, None
        while True:
            sent = time.monotonic()
            found = yield from self._take(clock, key, claim, since, terms)
            looks += 1
            if found["claim"] == claim:
                # If the document of the flight that we waited for is gone, the TTL monitor removed it after its lease.
                if found.get("previous") == "flying" or (since is not None and found.get("previous") is None):
                    yield Emit("flight_taken_over", key=key)
                return Entered(claim, whole(found["token"]), sent, _now(clock, found), sent)
            if since is None:
                since = whole(found["token"])
            joined = joined or Entered(None, since, sent, _now(clock, found), sent)
            free_at = sent + LEASE.remaining(clock, found) + 0.001
            age = max(0.0, (joined.now - (instant(found.get("startedAt")) or joined.now)).total_seconds())
            ready = whole(found.get("published")) >= since
            if ready:
                joined = replace(joined, proven=-math.inf)  # published before this command, so it proves nothing
            while ready or time.monotonic() < min(free_at, deadline):
                if not ready:
                    waited = time.monotonic() - began
                    pause = min(pace(waited, age + waited, looks), deadline - time.monotonic())
                    yield Pause(max(0.001, pause))
                seen, ready = found["claim"], False
                looks, sent = looks + 1, time.monotonic()
                news = yield from self._look(clock, key, since, seen, terms)
                if news is None:
                    joined = replace(joined, proven=sent)
                    continue
                result = self._result(clock, news, since)
                if result is not None:
                    return replace(joined, result=result)
                if news["claim"] is None or LEASE.remaining(clock, news) <= 0:
                    break
                found, free_at = news, time.monotonic() + LEASE.remaining(clock, news)
            if time.monotonic() >= deadline:
                return joined

    def _take(self, clock: Clock, key: str, claim: str, since: int | None, terms: Terms) -> Flow[dict[str, Any]]:
        """One command: take the flight if nobody leads it and no result is there for ``since``; the document."""
        full, sent = self.prefix + key, time.monotonic()
        kept = {"$gt": [{"$ifNull": ["$keepUntil", clock.now()]}, clock.now()]}

        def query() -> Query[dict[str, Any]]:
            served: Any = False
            if since is not None:
                served = {"$and": [{"$gte": [{"$ifNull": ["$published", 0]}, since]}, kept]}
            fields = LEASE.take(
                clock,
                claim,
                terms.lease,
                unless=served,
                leader=literal(terms.leader),
                previous=or_null("state"),
                state="flying",
                startedAt=clock.now(),
                published=or_null("published"),
                value={"$cond": [kept, or_null("value"), None]},
            )
            return Query(
                FLIGHTS,
                "find_one_and_update",
                {"_id": full},
                [{"$set": fields}],
                projection={**_HEAD, **clock.stamp()},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )

        try:
            with pymongo.timeout(terms.limit):
                try:
                    found: dict[str, Any] = yield from timed(clock, upsert(clock, query))
                except PyMongoError as error:
                    if not may_have_happened(error):
                        raise
                    # Judged by our own claim, which a second sending finds in place or puts there.
                    found = yield from timed(clock, upsert(clock, query))
        except (GeneratorExit, PyMongoError):
            raise
        except BaseException:
            # Cancelled with the command on its way: nobody will use what it may have taken.
            with contextlib.suppress(PyMongoError):
                yield from self.abort(clock, key, claim, terms)
            raise
        if found["claim"] == claim and time.monotonic() - sent >= terms.lease / 1_000:
            # The answer came after the end of the lease: somebody else may lead by now, so we don't.
            with contextlib.suppress(PyMongoError):
                yield from self.abort(clock, key, claim, terms)
            found["claim"] = None
        return found

    def _look(self, clock: Clock, key: str, since: int, seen: str, terms: Terms) -> Flow[dict[str, Any] | None]:
        """One command: the document if there is a result for ``since``, another leader, or none any more."""
        changed = [{"published": {"$gte": since}}, {"claim": {"$ne": seen}}, {"$expr": clock.passed()}]
        with pymongo.timeout(terms.limit):
            found: dict[str, Any] | None = yield from ask(
                FLIGHTS, "find_one", {"_id": self.prefix + key, "$or": changed}, {**_BODY, **clock.stamp()}
            )
        return found

    def _result(self, clock: Clock, found: dict[str, Any], since: int) -> Result | None:
        if whole(found.get("published")) < since:
            return None
        keep, published = instant(found.get("keepUntil")), instant(found.get("publishedAt"))
        if keep is None or published is None or keep <= _now(clock, found):
            return None
        took = number(found.get("took")) or 0.0
        return Result(text(found.get("kind")) or "", found.get("value"), took / 1_000, published)

    def publish(
        self, clock: Clock, key: str, flight: Entered, kind: str, value: object, took: float, terms: Terms
    ) -> Flow[Published]:
        """One command: the result, and the lease given back, if ``flight`` is still led; else nothing changes."""
        full = self.prefix + key
        done = {
            "claim": None,
            "state": "landed",
            "kind": literal(kind),
            "value": literal(value),
            "took": round(took * 1_000),
            "published": flight.token,
            "publishedAt": clock.now(),
            "keepUntil": clock.after(terms.linger),
            "expiresAt": clock.after(terms.linger),
        }
        query: Query[Any] = Query(
            FLIGHTS, "update_one", LEASE.mine(clock, _id=full, claim=flight.claim), [{"$set": done}]
        )
        with pymongo.timeout(terms.limit):
            try:
                held = (yield from perform(query)).matched_count
            except PyMongoError as error:
                if too_large(error):
                    return "too large"
                if not may_have_happened(error):
                    raise
                # The predicate is our claim, so it may go out again; then it matters what stands there.
                held = (yield from perform(query)).matched_count
                held = held or (yield from ask(FLIGHTS, "confirm", {"_id": full, "published": flight.token}))
        return "published" if held else "lost"

    def abort(self, clock: Clock, key: str, claim: str, terms: Terms) -> Flow[bool]:
        """One command: give the lease back without a result, so that one of the waiting callers takes over."""
        test = LEASE.mine(clock, _id=self.prefix + key, claim=claim)
        free = {"claim": None, "state": "aborted", "expiresAt": clock.after(60_000)}
        with pymongo.timeout(terms.limit):
            changed = yield from ask(FLIGHTS, "update_one", test, [{"$set": free}])
        return bool(changed.matched_count)


def _now(clock: Clock, document: dict[str, Any]) -> datetime:
    now = clock.read_stamp(document)
    return instant(now) or now


def flight_info(document: dict[str, Any], prefix: str) -> FlightInfo:
    """A flight as an observer sees it, of its document under ``prefix``."""
    return FlightInfo(
        key=document["_id"][len(prefix) :],
        leader=str(document.get("leader")),
        token=whole(document.get("token")),
        started_at=instant(document.get("startedAt")),
        expires_at=instant(document.get("expiresAt")),
    )
