"""Every operation of every provider, while exactly one reply is lost: the outcome is the documented one.

The driver, or ``direct`` in its place, sends the command again, and the server answers from its record of the first
one: without the projection that was asked for. What can't be sent again says that its outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import AutoReconnect, WaitQueueTimeoutError

from goscope_django.contracts import Checkpoint, CircuitBreakerState
from goscope_django.exceptions import OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.checkpoints.tasks import TaskFlows
from goscope_django.mongodb.checkpoints.values import Ending, Run, Snapshot
from goscope_django.mongodb.circuits.flows import CircuitFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.failures import may_have_happened
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.single_flight.flows import FlightFlows
from goscope_django.mongodb.single_flight.values import Terms
from goscope_django.testing.conformance.base import Drive
from tests.support.mongod import ReplicaSet
from tests.support.proxy import Proxy

pytestmark = pytest.mark.slow

LIMIT, BRIEF = 5.0, 0.6
"""Seconds for one command; the second where nothing gets through any more, so that a test need not wait long."""
CODEC = Codec(pickle=False)
CIRCUITS, FLIGHTS, HISTORY = CircuitFlows(""), FlightFlows(""), CheckpointFlows("", CODEC)
TASKS = TaskFlows(HISTORY)
TERMS = Terms(60_000, 60_000, "me", 2.0)
NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.fixture(scope="module")
def proxy(server: ReplicaSet) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        yield proxy


@dataclass
class Place:
    """An adapter behind the proxy, in one colour, and the database beside it."""

    adapter: MongoDBAdapter
    drive: Drive
    proxy: Proxy
    direct: Any

    def __call__(self, provider: str, method: str, *args: Any) -> Any:
        return self.drive(getattr(self.adapter, provider), method, *args)

    def flow(self, flow: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a flow that no provider has."""
        store = self.adapter.store
        if self.drive._runner is None:
            return store.run(flow, *args, **kwargs)

        async def there() -> Any:
            return await store.arun(flow, *args, **kwargs)

        return self.drive._runner.run(there())

    def enter(self) -> Any:
        return self.flow(FLIGHTS.enter, "f", TERMS, None, lambda *_: 0.01, 0.0)

    def begin(self) -> Any:
        return self("idempotency", "begin", "i", 60_000)

    def start(self, claim: str = "me") -> Any:
        return self.flow(TASKS.start, run(claim))


def run(claim: str = "me") -> Run:
    return Run("t", claim, "me", 60_000, None, None, None, None, False, {})


@pytest.fixture(params=["sync", "async"])
def place(request: pytest.FixtureRequest, server: ReplicaSet, proxy: Proxy) -> Iterator[Place]:
    proxy.heal()
    drive = Drive(request.param)
    limit = BRIEF if "outage" in request.node.name else LIMIT
    url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&serverSelectionTimeoutMS={int(limit * 1_000)}"
    with server.client() as client:
        database = client["lost"]
        for name in database.list_collection_names():
            database[name].delete_many({})
        if drive._runner is None:
            with MongoClient[dict[str, Any]](url) as through:
                executor = SyncExecutor(through["lost"], limit=limit)
                yield Place(MongoDBAdapter.on(Store(lambda: executor, None)), drive, proxy, database)
        else:

            async def made() -> AsyncMongoClient[dict[str, Any]]:
                return AsyncMongoClient[dict[str, Any]](url)

            native = drive._runner.run(made())
            aexecutor = AsyncExecutor(native["lost"], limit=limit)
            yield Place(MongoDBAdapter.on(Store(None, lambda: aexecutor)), drive, proxy, database)
            drive._runner.run(native.close())
    drive.close()


@dataclass(frozen=True)
class Case:
    """``act`` gets what ``before`` gave. ``unknown``: a command of several documents, which nobody sends again.

    Where ``command`` names two, it depends on whether a slow server's time is known which of them is sent.
    """

    command: str
    act: Callable[[Place, Any], Any]
    expected: Callable[[Any], bool]
    before: Callable[[Place], Any] = lambda place: None
    unknown: bool = False


def _lock(place: Place) -> Any:
    return place("lock", "acquire", "a", 60_000, "me")


def _cached(place: Place) -> Any:
    place("cache", "set", "k", 5)


def _failed(place: Place) -> Any:
    place("circuit_breaker", "record_failure", "c", 10)


def _saved(place: Place) -> Any:
    for number in (1, 2):
        place("checkpoint", "save", Checkpoint(f"c{number}", "t", number, NOW, data=number))


def _recorded(place: Place) -> Any:
    place("idempotency", "set", "i", "value")


def _open(place: Place) -> Any:
    place.flow(CIRCUITS.failed, "c", 0, 1, 60_000, 0)


def is_(value: Any) -> Callable[[Any], bool]:
    return lambda found: found == value


SNAPSHOT = Snapshot(1, {"n": 1}, [], 10.0, None, None, None, None, NOW)
CASES: dict[str, Case] = {
    "lock.acquire": Case("findAndModify", lambda p, _: _lock(p), lambda found: found is not None),
    "lock.extend by owner": Case("findAndModify", lambda p, _: p("lock", "extend", "a", 1_000, "me"), is_(True), _lock),
    "handle.extend": Case("findAndModify", lambda p, h: p.drive(h, "extend", 1_000), is_(True), _lock),
    "handle.release": Case("delete", lambda p, h: p.drive(h, "release"), is_(True), _lock),
    "handle.is_valid": Case("find", lambda p, h: p.drive(h, "is_valid"), is_(True), _lock),
    "lock.force_release": Case("delete", lambda p, _: p("lock", "force_release", "a"), is_(True), _lock),
    "lock.get": Case("find", lambda p, _: p("lock", "get", "a").owner, is_("me"), _lock),
    "lock.list": Case("find", lambda p, _: len(p("lock", "list")), is_(1), _lock),
    "cache.get": Case("find", lambda p, _: p("cache", "get", "k"), is_(5), _cached),
    "cache.set": Case("findAndModify or update", lambda p, _: p("cache", "set", "k", 1), is_(None)),
    "cache.set again": Case("update or findAndModify", lambda p, _: p("cache", "set", "k", 1), is_(None), _cached),
    "cache.delete": Case("delete or findAndModify", lambda p, _: p("cache", "delete", "k"), is_(True), _cached),
    "cache.has": Case("find", lambda p, _: p("cache", "has", "k"), is_(True), _cached),
    "cache.keys": Case("find", lambda p, _: p("cache", "keys"), is_(["k"]), _cached),
    "cache.clear": Case("delete", lambda p, _: p("cache", "clear"), is_(1), _cached, unknown=True),
    "circuit.get_state": Case(
        "find", lambda p, _: p("circuit_breaker", "get_state", "c").failure_count, is_(1), _failed
    ),
    "circuit.set_state": Case(
        "findAndModify",
        lambda p, _: p("circuit_breaker", "set_state", "c", CircuitBreakerState("open", 3, None, None)),
        is_(None),
    ),
    "circuit.record_failure": Case(
        "findAndModify", lambda p, _: p("circuit_breaker", "record_failure", "c", 10), is_(2), _failed
    ),
    "circuit.record_success": Case(
        "findAndModify", lambda p, _: p("circuit_breaker", "record_success", "c"), is_(None), _failed
    ),
    "circuit.list": Case("find", lambda p, _: list(p("circuit_breaker", "list")), is_(["c"]), _failed),
    "circuit.delete": Case("delete", lambda p, _: p("circuit_breaker", "delete", "c"), is_(True), _failed),
    "breaker: failed": Case(
        "findAndModify",
        lambda p, _: p.flow(CIRCUITS.failed, "c", 0, 3, 60_000, 1_000),
        lambda found: found.now is not None and found.document["failureCount"] == 1,
    ),
    "breaker: admit": Case(
        "findAndModify",
        lambda p, _: p.flow(CIRCUITS.admit, "c", "claim", 0, 1, 60_000),
        lambda found: found.now is not None and found.document["probes"][0]["id"] == "claim",
        _open,
    ),
    "breaker: force open": Case(
        "findAndModify",
        lambda p, _: p.flow(CIRCUITS.command, "c", "force_open", "by hand", None),
        lambda found: found[0].override is not None and found[1].now is not None,
    ),
    "checkpoint.save": Case(
        "insert", lambda p, _: p("checkpoint", "save", Checkpoint("c", "t", 3, NOW)), is_(None), _saved
    ),
    "checkpoint.load_latest": Case("find", lambda p, _: p("checkpoint", "load_latest", "t").sequence, is_(2), _saved),
    "checkpoint.load": Case("find", lambda p, _: p("checkpoint", "load", "c1").sequence, is_(1), _saved),
    "checkpoint.list": Case("find", lambda p, _: len(p("checkpoint", "list", "t")), is_(2), _saved),
    "checkpoint.tasks": Case("aggregate", lambda p, _: p("checkpoint", "tasks"), is_(["t"]), _saved),
    "checkpoint.cleanup": Case("delete", lambda p, _: p("checkpoint", "cleanup", "t", 1), is_(1), _saved, unknown=True),
    "checkpoint.delete_all": Case(
        "delete", lambda p, _: p("checkpoint", "delete_all", "t"), is_(2), _saved, unknown=True
    ),
    "idempotency.get": Case("find", lambda p, _: p("idempotency", "get", "i").value, is_("value"), _recorded),
    "idempotency.set": Case("findAndModify", lambda p, _: p("idempotency", "set", "i", 1), is_(None)),
    "idempotency.delete": Case("delete", lambda p, _: p("idempotency", "delete", "i"), is_(True), _recorded),
    "idempotency.delete of a claim": Case(
        "delete", lambda p, _: p("idempotency", "delete", "i"), is_(True), Place.begin
    ),
    "idempotency.delete of nothing": Case("delete", lambda p, _: p("idempotency", "delete", "i"), is_(False)),
    "idempotency.begin": Case("findAndModify", lambda p, _: p.begin().outcome, is_("started")),
    "idempotency.begin while running": Case(
        "findAndModify", lambda p, _: p.begin().outcome, is_("in_progress"), Place.begin
    ),
    "idempotency.complete": Case(
        "update", lambda p, claim: p("idempotency", "complete", "i", claim.token, 1), is_(True), Place.begin
    ),
    "idempotency.abandon": Case(
        "delete", lambda p, claim: p("idempotency", "abandon", "i", claim.token), is_(True), Place.begin
    ),
    "idempotency.abandon of another's": Case(
        "delete", lambda p, claim: p("idempotency", "abandon", "i", claim.token + 1), is_(False), Place.begin
    ),
    "idempotency.extend": Case(
        "update", lambda p, claim: p("idempotency", "extend", "i", claim.token, 1_000), is_(True), Place.begin
    ),
    "flight: enter": Case("findAndModify", lambda p, _: p.enter(), lambda found: found.claim and found.now.tzinfo),
    "flight: publish": Case(
        "update",
        lambda p, flight: p.flow(FLIGHTS.publish, "f", flight, "kind", 1, 0.1, TERMS),
        is_("published"),
        Place.enter,
    ),
    "flight: abort": Case(
        "update", lambda p, flight: p.flow(FLIGHTS.abort, "f", flight.claim, TERMS), is_(True), Place.enter
    ),
    "task: start": Case(
        "findAndModify",
        lambda p, _: p.start(),
        lambda found: found.outcome == "started" and found.moment.tzinfo is not None,
    ),
    "task: start again": Case(
        "findAndModify", lambda p, _: p.start("other"), lambda found: found.outcome == "running", Place.start
    ),
    "task: save": Case(
        "update",
        lambda p, started: p.flow(TASKS.save, run(), started.token, SNAPSHOT, cancelled=False),
        is_(False),
        Place.start,
    ),
    "task: save, its history": Case(
        "insert",
        lambda p, started: p.flow(TASKS.save, run(), started.token, SNAPSHOT, cancelled=False),
        is_(False),
        Place.start,
    ),
    "task: finish": Case(
        "update",
        lambda p, started: p.flow(
            TASKS.finish, run(), started.token, Ending("completed", None, None), SNAPSHOT, save=False
        ),
        is_(None),
        Place.start,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_lost_reply_changes_no_outcome(name: str, place: Place) -> None:
    case = CASES[name]
    given = case.before(place)
    for command in case.command.split(" or "):
        place.proxy.lose_answers(command, 1)
    if case.unknown:
        with pytest.raises(OutcomeUnknown):
            case.act(place, given)
    else:
        found = case.act(place, given)
        assert case.expected(found), found
    assert len(place.proxy.seen) == 1 and place.proxy.seen[0] in case.command, "it was lost"


WRITES = [name for name, case in CASES.items() if case.command not in ("find", "aggregate") and "handle" not in name]


@pytest.mark.parametrize("name", WRITES)
def test_after_an_answer_was_lost_an_outage_is_no_proof_that_nothing_was_changed(name: str, place: Place) -> None:
    """The first answer is lost, and from then on nothing gets through."""
    case = CASES[name]
    given = case.before(place)
    for command in case.command.split(" or "):
        place.proxy.lose_answers(command, 1, then_nothing=True)
    with pytest.raises(OutcomeUnknown):
        case.act(place, given)


class TestAfterATakeover:
    """A deletion whose answers were all lost, and the claim is another's by now: nobody may say that it was ours."""

    def test_a_release(self, place: Place) -> None:
        handle = place("lock", "acquire", "a", 300)
        place.direct.go_goscope_locks.update_many({}, [{"$set": {"claim": "another", "expiresAt": None}}])
        while place.direct.client.admin.command("hello")["localTime"] <= handle.expires_at.replace(tzinfo=None):
            pass
        place.proxy.lose_answers("delete")
        with pytest.raises(OutcomeUnknown):
            place.drive(handle, "release")
        assert place.direct.go_goscope_locks.count_documents({"claim": "another"}) == 1

    def test_a_release_whose_lock_stands_there_but_has_ended(self, place: Place) -> None:
        handle = place("lock", "acquire", "a", 60_000)
        place.direct.go_goscope_locks.update_many({}, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1_000]}}}])
        place.proxy.lose_answers("delete", 2)  # the driver's two attempts; our own third one is answered
        assert place.drive(handle, "release") is False

    def test_an_abandonment_and_a_deletion(self, place: Place) -> None:
        claim = place.begin()
        place.direct.go_goscope_idempotency.update_many({}, {"$set": {"claim": "another", "token": claim.token + 5}})
        place.proxy.lose_answers("delete")
        with pytest.raises(OutcomeUnknown):
            place("idempotency", "abandon", "i", claim.token)
        assert place.direct.go_goscope_idempotency.count_documents({"claim": "another"}) == 1
        with pytest.raises(OutcomeUnknown):
            place("idempotency", "delete", "nothing")


def test_a_resend_that_finds_no_connection_may_have_happened(place: Place) -> None:
    """The driver's second attempt fails for want of a free connection, and its error says that nothing was sent."""
    client = place.direct.client
    with MongoClient[dict[str, Any]](
        f"mongodb://127.0.0.1:{place.proxy.port}/?directConnection=true&maxPoolSize=1&waitQueueTimeoutMS=300"
    ) as narrow:
        narrow.admin.command("ping")
        adapter = MongoDBAdapter(narrow[place.direct.name])
        pools = [server.pool for server in narrow._topology._servers.values()]
        checkout, calls = type(pools[0])._get_conn, []

        def no_second(pool: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise WaitQueueTimeoutError("no free connection")
            return checkout(pool, *args, **kwargs)

        adapter.circuit_breaker.record_failure("c", 9)
        place.proxy.lose_answers("findAndModify", 1)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(pools[0]), "_get_conn", no_second)
            with pytest.raises(OutcomeUnknown):
                adapter.circuit_breaker.record_failure("c", 9)
            calls[:] = [1]
            with pytest.raises(StoreUnavailable):
                adapter.circuit_breaker.record_failure("c", 9)
    assert client[place.direct.name].go_goscope_circuit.find_one({})["failureCount"] == 2


def test_an_error_that_does_not_tell_is_taken_for_sent() -> None:
    assert may_have_happened(WaitQueueTimeoutError("from somewhere"))
    assert may_have_happened(AutoReconnect("lost"))
    assert new_claim() != new_claim()
