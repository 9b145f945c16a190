"""The leased document, on the real server and on mongomock: only its holder acts on it, and only while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import mongomock
import pytest
from pymongo import MongoClient, ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure

from goscope_django.core.flow import Command, Query, run
from goscope_django.mongodb.document.clock import Clock, LocalClock, ServerClock
from goscope_django.mongodb.document.expressions import literal
from goscope_django.mongodb.document.failures import NO_CLUSTER_TIME
from goscope_django.mongodb.document.lease import Lease, new_claim, renew_all, upsert
from goscope_django.mongodb.driver.execute import MockExecutor, SyncExecutor

LEASE = Lease()
NAME = "go_goscope_leases"


class Place:
    def __init__(self, executor: SyncExecutor | MockExecutor) -> None:
        self.executor = executor
        self.clock: Clock = executor.clock

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.executor(Query(NAME, method, *args, **kwargs))

    def take(self, claim: str, milliseconds: int = 60_000, *, lease: Lease = LEASE, **more: Any) -> bool:
        fields = lease.take(self.clock, claim, milliseconds, **more)
        found = self(
            "find_one_and_update", {"_id": 1}, [{"$set": fields}], upsert=True, return_document=ReturnDocument.AFTER
        )
        return bool(found.get("claim") == claim)

    def mine(self, claim: str) -> bool:
        return self("find_one", LEASE.mine(self.clock, _id=1, claim=claim)) is not None

    def document(self) -> Any:
        return self("find_one", {"_id": 1})

    def age(self, **fields: Any) -> None:
        self("update_one", {"_id": 1}, {"$set": {"expiresAt": datetime.now(UTC) - timedelta(seconds=1), **fields}})


@pytest.fixture(params=["mongod", "mongomock"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "mongomock":
        yield Place(MockExecutor(mongomock.MongoClient()["x"]))
        return
    with MongoClient[dict[str, Any]](request.getfixturevalue("mongo_url")) as client:
        database = client.get_default_database()
        database[NAME].delete_many({})
        yield Place(SyncExecutor(database))


def test_a_free_document_is_taken_a_held_one_is_left_as_it_is(place: Place) -> None:
    assert place.take("a")
    before = place.document()
    assert not place.take("b")
    assert place.document() == before
    assert place.mine("a") and not place.mine("b")


def test_an_expired_one_is_taken_over_with_a_higher_token(place: Place) -> None:
    assert place.take("a")
    token = place.document()["token"]
    place.age()
    assert not place.mine("a")
    assert place.take("b")
    assert place.document()["token"] > token
    assert place.mine("b") and not place.mine("a")


def test_one_without_an_end_is_held_for_good(place: Place) -> None:
    for fields in ({"claim": "other"}, {"claim": "other", "expiresAt": None}):
        place("delete_many", {})
        place("insert_one", {"_id": 1, **fields})
        assert not place.take("a")
        assert place.mine("other")


def test_one_without_a_holder_is_free_and_keeps_what_others_wrote(place: Place) -> None:
    place("insert_one", {"_id": 1, "claim": None, "token": 2**52, "note": "x"})
    assert place.take("a", owner=literal("$me"))
    found = place.document()
    assert found["token"] == 2**52 + 1, "a token never falls"
    assert (found["note"], found["owner"]) == ("x", "$me")


def test_another_field_may_tell_who_holds_it(place: Place) -> None:
    place("insert_one", {"_id": 1, "owner": "node", "expiresAt": datetime.now(UTC) + timedelta(hours=1)})
    assert not place.take("a", lease=Lease(holder="owner"))
    assert place.take("a"), "by its claim nobody holds it"


def test_one_that_is_finished_is_not_taken_though_it_is_free(place: Place) -> None:
    place("insert_one", {"_id": 1, "done": True})
    assert not place.take("a", unless={"$eq": [{"$ifNull": ["$done", None]}, True]})
    place("update_one", {"_id": 1}, {"$set": {"done": False}})
    assert place.take("a", unless={"$eq": [{"$ifNull": ["$done", None]}, True]})


def test_a_renewal_moves_a_living_lease_and_revives_no_dead_one(place: Place) -> None:
    place.take("a", 10_000)
    changed = place("update_one", LEASE.mine(place.clock, _id=1, claim="a"), LEASE.renew(place.clock, 60_000))
    assert changed.matched_count == 1
    place.age()
    changed = place("update_one", LEASE.mine(place.clock, _id=1, claim="a"), LEASE.renew(place.clock, 60_000))
    assert changed.matched_count == 0


def test_the_time_that_is_left(place: Place) -> None:
    place.take("a", 10_000)
    projection = {"expiresAt": True, **place.clock.stamp()}
    assert 5 < LEASE.remaining(place.clock, place("find_one", {"_id": 1}, projection)) <= 10
    place.age()
    assert LEASE.remaining(place.clock, place("find_one", {"_id": 1}, projection)) == 0


def test_many_are_renewed_at_once_and_the_lost_are_told(place: Place) -> None:
    claims = {f"k{number}": new_claim() for number in range(4)}
    soon, past = datetime.now(UTC) + timedelta(seconds=30), datetime.now(UTC) - timedelta(seconds=1)
    for key, claim in claims.items():
        place("insert_one", {"_id": key, "key": key, "claim": claim, "expiresAt": soon})
    place("update_one", {"_id": "k1"}, {"$set": {"expiresAt": past}})
    place("update_one", {"_id": "k2"}, {"$set": {"claim": "another"}})

    def renewed(holders: list[tuple[str, str]]) -> frozenset[str]:
        return run(renew_all(place.clock, NAME, "key", LEASE, holders, 60_000), place.executor)

    assert renewed(list(claims.items())) == {claims["k0"], claims["k3"]}
    assert renewed([("k0", claims["k0"])]) == {claims["k0"]}
    assert renewed([("k0", claims["k3"])]) == frozenset(), "a claim counts with its own key only"
    ends = {one["_id"]: one["expiresAt"] for one in place("find", {})}
    assert ends["k0"] > ends["k2"], "another's lease was not touched"


def test_claims_are_never_alike() -> None:
    assert len({new_claim() for _ in range(1_000)}) == 1_000
    assert len(new_claim()) == 32


class Server:
    """Answers an upsert as it was told, one answer after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    def __call__(self, command: Command[Any]) -> Any:
        assert isinstance(command, Query)
        self.sent.append(command.args[0])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


COLLISION = DuplicateKeyError("E11000", 11000)


def test_a_collision_of_upserts_is_sent_again_with_a_new_command() -> None:
    clock, server, made = LocalClock(), Server(COLLISION, COLLISION, "won"), iter(range(9))
    assert run(upsert(clock, lambda: Query("c", "m", next(made))), server) == "won"
    assert server.sent == [0, 1, 2]


def test_collisions_without_end_are_an_error() -> None:
    server = Server(*[COLLISION] * 10)
    with pytest.raises(DuplicateKeyError):
        run(upsert(LocalClock(), lambda: Query("c", "m", 0)), server)
    assert len(server.sent) == 6


@pytest.mark.parametrize("code", sorted(NO_CLUSTER_TIME))
def test_a_standalone_server_is_learned_once(code: int) -> None:
    clock = ServerClock()
    server = Server(OperationFailure("no cluster time", code), "done")
    assert run(upsert(clock, lambda: Query("c", "m", clock.cluster_time)), server) == "done"
    assert server.sent == [True, False]
    assert clock.cluster_time is False


def test_another_failure_is_not_sent_again() -> None:
    server = Server(OperationFailure("no", 13))
    with pytest.raises(OperationFailure):
        run(upsert(ServerClock(), lambda: Query("c", "m", 0)), server)
    assert len(server.sent) == 1
