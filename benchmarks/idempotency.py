"""Idempotency: commands of a first request and of a repeat, and a repeat against reading the record by hand."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory
from pymongo import MongoClient, ReturnDocument, WriteConcern

from benchmarks.commands import counted, number_of
from benchmarks.harness import Contender, Goal, Operation, Report
from goscope_django import runtime
from goscope_django.decorators import idempotent

OURS = "goscope_django"
RAW = "raw pymongo"
ANSWER = {"order": 42, "status": "paid", "lines": [{"article": f"a-{number}", "price": 100} for number in range(20)]}
PRINT = "f" * 64


@idempotent(key=lambda order: f"bench:{order}", fingerprint=True)
def pay(order: str) -> dict[str, Any]:
    """What must not happen twice."""
    return ANSWER


@idempotent()
def view(request: HttpRequest) -> HttpResponse:
    """The same as a view."""
    return JsonResponse(ANSWER)


def _request(key: str) -> HttpRequest:
    return RequestFactory().post(
        "/pay/", b'{"order": 42}', content_type="application/json", headers={"Idempotency-Key": key}
    )


class RawRecords:
    """Claim, store and repeat, in the plainest way: one command each, expiry by this machine's clock."""

    def __init__(self, client: MongoClient[dict[str, Any]], database: str) -> None:
        base = client[database]["raw_idempotency"]
        base.create_index("key", unique=True)
        base.create_index("expiresAt", expireAfterSeconds=0)
        self.collection = base.with_options(write_concern=WriteConcern("majority"))

    def first(self, key: str) -> None:
        """Claim, and store the result."""
        claim, until = uuid.uuid4().hex, datetime.now(UTC) + timedelta(seconds=30)
        fields = {"key": key, "fingerprint": PRINT, "claim": claim, "expiresAt": until}
        found = self.collection.find_one_and_update(
            {"key": key}, {"$setOnInsert": fields}, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert found is not None
        assert found["claim"] == claim
        done = {"value": ANSWER, "claim": None, "expiresAt": datetime.now(UTC) + timedelta(days=1)}
        self.collection.update_one({"key": key, "claim": claim}, {"$set": done})

    def repeat(self, key: str) -> Any:
        """Read the record and compare the payload."""
        found = self.collection.find_one({"key": key})
        assert found is not None
        assert found["claim"] is None
        assert found["fingerprint"] == PRINT
        assert found["expiresAt"].replace(tzinfo=UTC) > datetime.now(UTC)
        return found["value"]


def _commands(report: Report, url: str) -> None:
    report.figures("Idempotency, commands")
    with counted(url) as counter:
        pay(uuid.uuid4().hex)
        for kind, call in (("function", pay), ("view", lambda key: view(_request(key)))):
            run: Callable[[str], object] = call
            key = uuid.uuid4().hex
            first = number_of(counter, lambda: run(key))  # noqa: B023 - called at once
            again = number_of(counter, lambda: run(key))  # noqa: B023
            report.figure(f"{kind}: first", OURS, first, "commands", most=3, reach=2)
            report.figure(f"{kind}: replay", OURS, again, "commands", most=1, reach=1)
            runtime.adapter().idempotency.flows.finished.clear()  # as in a process that has not seen the result
            elsewhere = number_of(counter, lambda: run(key))  # noqa: B023
            report.figure(f"{kind}: replay in another process", OURS, elsewhere, "commands", most=1, reach=1)


def _new(operation: Callable[[str], object]) -> Callable[[int], Operation]:
    numbers, prefix = itertools.count(), uuid.uuid4().hex
    return lambda _: lambda: operation(f"{prefix}:{next(numbers)}")


def run(report: Report, url: str, client: MongoClient[dict[str, Any]], database: str) -> None:
    """All rows of idempotency."""
    _commands(report, url)
    raw, provider = RawRecords(client, database), runtime.adapter().idempotency
    key = uuid.uuid4().hex
    raw.first(key)
    claim = provider.begin(key, 86_400_000, PRINT)
    assert claim.token is not None
    provider.complete(key, claim.token, ANSWER)
    pay(key)
    view(_request(key))

    def replay() -> None:
        assert provider.begin(key, 86_400_000, PRINT).outcome == "completed"

    report.section("Idempotency, reads from the primary (both)")
    report.compare(
        "replay",
        [
            Contender(RAW, lambda _: lambda: raw.repeat(key)),
            Contender(f"{OURS}, begin", lambda _: replay),
            Contender(f"{OURS}, function", lambda _: lambda: pay(key)),
            Contender(f"{OURS}, view", lambda _: lambda: view(_request(key))),
        ],
        Goal(f"{OURS}, begin", 0.9, 1.0),
        finer=4,
    )
    report.section("Idempotency, claim and result at majority (both)")
    report.compare(
        "first",
        [
            Contender(RAW, _new(raw.first)),
            Contender(f"{OURS}, function", _new(pay)),
            Contender(f"{OURS}, view", _new(lambda name: view(_request(name)))),
        ],
        finer=2,
    )
