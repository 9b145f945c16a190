"""The provider on a real server: races, results of other packages, unknown outcomes, and how many commands it takes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import AutoReconnect

from goscope_django.contracts import IdempotencyRecord
from goscope_django.core.flow import Query
from goscope_django.exceptions import InvalidValue, OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyProvider
from tests.support.commands import Recorder, explainable, single, stages
from tests.support.mongod import temporary_mongod

pytestmark = pytest.mark.real
DAY = 86_400_000


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def client(mongo_url: str, recorder: Recorder) -> Iterator[MongoClient[dict[str, Any]]]:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url, event_listeners=[recorder], tz_aware=True)
    with client:
        MongoDBAdapter(client.get_default_database()).connect()
        yield client


@pytest.fixture
def records(client: MongoClient[dict[str, Any]], recorder: Recorder) -> Any:
    found = client.get_default_database()[IDEMPOTENCY]
    found.delete_many({})
    recorder.clear()
    return found


@pytest.fixture
def provider(client: MongoClient[dict[str, Any]], records: Any) -> MongoDBIdempotencyProvider:
    return MongoDBAdapter(client.get_default_database(), key_prefix="p:").idempotency


def node(records: Any, value: Any, expires_at: Any = None) -> None:
    """What the TypeScript package writes."""
    fields = {"key": "p:k", "value": value, "expiresAt": expires_at, "updatedAt": records.database.command("hello")}
    fields["updatedAt"] = fields["updatedAt"]["localTime"]
    records.update_one({"key": "p:k"}, {"$set": fields}, upsert=True)


def expire(records: Any, test: dict[str, Any]) -> None:
    """Age a document instead of waiting."""
    records.update_many(test, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1]}}}])


def test_a_value_that_does_not_fit_is_named(provider: MongoDBIdempotencyProvider) -> None:
    provider.set("k", 1)
    with pytest.raises(InvalidValue, match="'p:k': its result does not fit"):
        provider.set("k", "x" * (17 * 1024 * 1024))
    assert provider.get("k").value == 1  # type: ignore[union-attr]


class TestCommands:
    def test_a_first_run_is_two_and_a_repeat_one(self, provider: Any, recorder: Recorder, client: Any) -> None:
        claim = provider.begin("k", DAY, "f")
        provider.complete("k", claim.token, "v")
        assert recorder.names == ["findAndModify", "update"]
        recorder.clear()
        for _ in range(3):
            assert provider.begin("k", DAY, "f").value == "v"
        assert recorder.names == ["find"] * 3
        elsewhere = MongoDBAdapter(client.get_default_database(), key_prefix="p:").idempotency
        recorder.clear()
        for _ in range(3):
            assert elsewhere.begin("k", DAY, "f").value == "v"
        assert recorder.names == ["findAndModify", "find", "find"]

    def test_asynchronously_as_well(self, mongo_url: str, recorder: Recorder, records: Any) -> None:
        async def scenario() -> None:
            client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url, event_listeners=[recorder])
            async with client:
                provider = MongoDBAdapter(client.get_default_database(), key_prefix="p:").idempotency
                recorder.clear()
                claim = await provider.abegin("k", DAY, "f")
                await provider.acomplete("k", claim.token or 0, "v")
                assert (await provider.abegin("k", DAY, "f")).value == "v"
                assert (await provider.abegin("k", DAY, "g")).outcome == "mismatch"
                assert recorder.names == ["findAndModify", "update", "find", "find"]

        asyncio.run(scenario())

    def test_a_repeat_is_read_so_that_no_failover_takes_it_back(self, provider: Any, recorder: Recorder) -> None:
        claim = provider.begin("k", DAY)
        provider.complete("k", claim.token, "v")
        recorder.clear()
        provider.begin("k", DAY)
        (command,) = recorder.commands
        assert command["readConcern"]["level"] == "majority"

    def test_writes_are_majority_writes_found_by_the_index(
        self, provider: Any, recorder: Recorder, client: Any
    ) -> None:
        claim = provider.begin("k", DAY)
        provider.in_progress("k")
        provider.extend("k", claim.token, 1_000)
        provider.complete("k", claim.token, "v")
        provider.set("k", "w")
        provider.delete("k")
        database = client.get_default_database()
        for command in list(recorder.commands):
            if "find" not in command:
                assert command["writeConcern"]["w"] == "majority"
            for one in single(explainable(command)):
                plan = database.command("explain", one, verbosity="queryPlanner")
                assert "COLLSCAN" not in stages(plan), one

    def test_a_result_about_to_expire_is_judged_by_the_clock_itself(
        self, provider: Any, recorder: Recorder, records: Any
    ) -> None:
        claim = provider.begin("k", 20_000)
        provider.complete("k", claim.token, "v")
        assert provider.begin("k", DAY).value == "v"
        recorder.clear()
        assert provider.begin("k", DAY).value == "v"
        assert recorder.names == ["find"]
        assert "$expr" in recorder.commands[0]["filter"]
        expire(records, {})
        assert provider.begin("k", DAY).outcome == "started"


class TestRaces:
    def test_of_many_exactly_one_starts(self, provider: Any) -> None:
        barrier = threading.Barrier(16)

        def begin(number: int) -> str:
            barrier.wait()
            return str(provider.begin(f"k{number}", DAY).outcome)

        with ThreadPoolExecutor(16) as pool:
            for round_ in range(20):
                found = list(pool.map(begin, [round_] * 16))
                assert sorted(found) == ["in_progress"] * 15 + ["started"]

    def test_of_many_exactly_one_takes_over(self, provider: Any, records: Any) -> None:
        barrier = threading.Barrier(8)

        def begin(_: int) -> Any:
            barrier.wait()
            return provider.begin("k", DAY)

        token = provider.begin("k", DAY).token
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                expire(records, {"key": "claim:p:k"})
                found = [one for one in pool.map(begin, range(8)) if one.outcome == "started"]
                assert len(found) == 1
                assert found[0].token > token
                assert provider.complete("k", token, "late") is False
                token = found[0].token
        assert provider.complete("k", token, "v") is True

    def test_without_the_unique_index_the_id_excludes(self, provider: Any, records: Any) -> None:
        records.drop_index("key_1")
        barrier = threading.Barrier(8)

        def begin(number: int) -> str:
            barrier.wait()
            return str(provider.begin(f"k{number}", DAY).outcome)

        try:
            with ThreadPoolExecutor(8) as pool:
                for round_ in range(20):
                    assert list(pool.map(begin, [round_] * 8)).count("started") == 1
        finally:
            records.create_index("key", unique=True)


class TestOtherWriters:
    """Results of a package that knows no claims, with an ObjectId."""

    def test_a_live_one_is_the_result(self, provider: Any, records: Any) -> None:
        node(records, "n")
        assert provider.begin("k", DAY, "f").value == "n"
        assert isinstance(records.find_one()["_id"], ObjectId)

    def test_an_expired_one_is_taken_over_where_it_is(self, provider: Any, records: Any) -> None:
        node(records, "n")
        expire(records, {})
        claim = provider.begin("k", DAY)
        assert claim.outcome == "started"
        assert provider.complete("k", claim.token, "v")
        assert provider.get("k").value == "v"
        assert records.count_documents({}) == 1

    def test_a_live_one_beside_a_claim_wins(self, provider: Any, records: Any) -> None:
        claim = provider.begin("k", DAY)
        node(records, "n")
        assert provider.begin("k", DAY).value == "n"
        assert provider.complete("k", claim.token, "late") is False
        assert provider.get("k") == IdempotencyRecord("n", None)
        assert records.count_documents({}) == 1

    def test_an_expired_one_beside_a_claim_is_in_nobody_s_way(self, provider: Any, records: Any) -> None:
        claim = provider.begin("k", DAY)
        node(records, "n")
        expire(records, {"key": "p:k"})
        assert provider.begin("k", DAY).outcome == "in_progress"
        assert records.count_documents({}) == 1
        node(records, "n")
        expire(records, {"key": "p:k"})
        assert provider.complete("k", claim.token, "v") is True
        assert provider.get("k").value == "v"

    def test_expired_both(self, provider: Any, records: Any) -> None:
        first = provider.begin("k", DAY)
        node(records, "n")
        expire(records, {})
        claim = provider.begin("k", DAY)
        assert claim.outcome == "started"
        assert claim.token > first.token
        assert provider.complete("k", first.token, "late") is False
        assert provider.complete("k", claim.token, "v") is True
        assert records.count_documents({}) == 1

    def test_set_ends_a_claim_beside_it(self, provider: Any, records: Any) -> None:
        claim = provider.begin("k", DAY)
        node(records, "n")
        provider.set("k", "s")
        assert records.count_documents({}) == 1
        assert provider.complete("k", claim.token, "late") is False
        assert provider.begin("k", DAY).value == "s"

    def test_delete_removes_both(self, provider: Any, records: Any) -> None:
        provider.begin("k", DAY)
        node(records, "n")
        assert provider.delete("k") is True
        assert records.count_documents({}) == 0

    def test_fields_of_others_stay(self, provider: Any, records: Any) -> None:
        node(records, "n")
        records.update_one({}, {"$set": {"note": "theirs"}})
        expire(records, {})
        claim = provider.begin("k", DAY)
        provider.complete("k", claim.token, "v")
        assert records.find_one()["note"] == "theirs"


def test_a_stored_key_that_looks_like_a_claim_is_refused(client: Any) -> None:
    provider = MongoDBAdapter(client.get_default_database()).idempotency
    for call in (provider.get, provider.delete, provider.in_progress, lambda key: provider.begin(key, DAY)):
        with pytest.raises(InvalidValue, match="claim:"):
            call("claim:x")


@pytest.mark.parametrize("token", [10**30, -(10**30), 2**63, 2**63 - 1, 0, -1], ids=str)
def test_a_token_that_no_claim_can_have_changes_nothing(provider: Any, token: int) -> None:
    claim = provider.begin("k", DAY)
    assert not provider.complete("k", token, "theirs")
    assert not provider.extend("k", token, DAY)
    assert not provider.abandon("k", token)
    assert provider.complete("k", claim.token, "ours")
    assert provider.get("k").value == "ours"


class TestList:
    def test_claims_come_first_then_results(self, provider: Any, client: Any) -> None:
        for key in ("b", "a", "c"):
            claim = provider.begin(key, DAY)
            if key != "c":
                provider.complete(key, claim.token, "secret")
        MongoDBAdapter(client.get_default_database(), key_prefix="q:").idempotency.set("x", 1)
        found = provider.list()
        assert [(one.key, one.state) for one in found] == [("c", "in_progress"), ("a", "completed"), ("b", "completed")]
        assert all(one.expires_at > one.updated_at for one in found)
        assert "secret" not in repr(found)
        assert [one.key for one in provider.list("[ab]")] == ["a", "b"]
        assert [one.key for one in provider.list(limit=2)] == ["c", "a"]
        everything = MongoDBAdapter(client.get_default_database()).idempotency.list()
        assert [one.key for one in everything] == ["p:c", "p:a", "p:b", "q:x"]

    def test_what_has_expired_is_not_there(self, provider: Any, records: Any) -> None:
        provider.set("a", 1)
        provider.begin("b", DAY)
        expire(records, {})
        assert provider.list() == []

    def test_what_is_stored_is_not_fetched(self, provider: Any, recorder: Recorder) -> None:
        provider.set("a", 1)
        recorder.clear()
        provider.list()
        assert all("value" not in command["projection"] for command in recorder.commands)
        assert all(command["projection"]["key"] for command in recorder.commands)

    def test_more_than_one_batch(self, provider: Any, records: Any, recorder: Recorder) -> None:
        records.insert_many([{"key": f"p:{number:05}", "value": 1} for number in range(2_500)])
        recorder.clear()
        found = provider.list("0.*[05]", limit=2_000)
        assert [one.key for one in found] == [f"{number:05}" for number in range(0, 2_500, 5)]
        assert [name for name in recorder.names if name == "find"] == ["find"] * 4


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with temporary_mongod() as server, MongoClient[Any](server.uri, retryWrites=False, retryReads=False) as client:
        MongoDBAdapter(client["t"]).connect()
        yield client["t"]


class TestUnknownOutcomes:
    """Commands whose answer is lost: the driver's retries are off, and the n-th command breaks before or after it."""

    @pytest.fixture
    def broken(self, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A provider whose next commands break: ``plan`` holds, for each, "before", "after" or "fine"."""
        server[IDEMPOTENCY].delete_many({})
        provider = MongoDBAdapter(server).idempotency
        executor = provider.store.executor()
        plan: list[str] = []

        class Breaking:
            clock, database, reach = executor.clock, executor.database, executor.reach

            def __call__(self, command: Any) -> Any:
                way = plan.pop(0) if plan and isinstance(command, Query) else "fine"
                if way == "before":
                    raise AutoReconnect("broke before it was sent")
                found = executor(command)
                if way == "after":
                    raise AutoReconnect("broke before the answer")
                return found

        monkeypatch.setattr(provider.store, "_sync", Breaking)
        return provider, plan

    @pytest.mark.parametrize("way", ["before", "after"])
    def test_begin_finds_out(self, broken: Any, way: str) -> None:
        provider, plan = broken
        plan.append(way)
        claim = provider.begin("k", DAY)
        assert claim.outcome == "started"
        assert provider.complete("k", claim.token, "v")

    def test_begin_says_that_it_does_not_know(self, broken: Any) -> None:
        provider, plan = broken
        plan.extend(["after", "before"])
        with pytest.raises(OutcomeUnknown, match="a claim may have been made"):
            provider.begin("k", DAY, None, 200)
        assert provider.begin("k", DAY).outcome == "in_progress"
        time.sleep(0.25)
        assert provider.begin("k", DAY).outcome == "started"

    @pytest.mark.parametrize("way", ["before", "after"])
    @pytest.mark.parametrize("what", ["complete", "abandon", "extend", "delete", "set"])
    def test_second_writes_find_out(self, broken: Any, way: str, what: str) -> None:
        provider, plan = broken
        token = provider.begin("k", DAY).token
        plan.append(way)
        args = {"complete": (token, "v"), "abandon": (token,), "extend": (token, 5_000), "delete": (), "set": ("v",)}
        if way == "after" and what in ("abandon", "delete"):
            # That nothing is there any more does not prove that this call has removed it.
            with pytest.raises(OutcomeUnknown):
                getattr(provider, what)("k", *args[what])
        else:
            assert getattr(provider, what)("k", *args[what]) in (True, None)
        state = [(one.key, one.state) for one in provider.list()]
        expected: dict[str, list[Any]] = {"extend": [("k", "in_progress")], "abandon": [], "delete": []}
        assert state == expected.get(what, [("k", "completed")])

    def test_a_completion_of_a_claim_that_was_lost_is_not_mistaken(self, broken: Any) -> None:
        provider, plan = broken
        token = provider.begin("k", DAY).token
        provider.delete("k")
        plan.append("before")
        assert provider.complete("k", token, "v") is False

    def test_a_cancelled_begin_leaves_no_claim(self, server: Any, mongod: Any) -> None:
        async def scenario() -> None:
            client: AsyncMongoClient[Any] = AsyncMongoClient(mongod.uri)
            async with client:
                provider = MongoDBAdapter(client["t"], key_prefix="cancelled:").idempotency
                await provider.adelete("k")
                for turn in range(30):
                    task = asyncio.create_task(provider.abegin("k", DAY))
                    await asyncio.sleep(turn / 5_000)
                    task.cancel()
                    try:
                        claim = await task
                    except asyncio.CancelledError:
                        await asyncio.sleep(0.02)
                    else:
                        await provider.aabandon("k", claim.token or 0)
                    assert not await provider.ain_progress("k")

        asyncio.run(scenario())


def test_away_is_away() -> None:
    with MongoClient[Any]("mongodb://127.0.0.1:1/t", serverSelectionTimeoutMS=100) as client:
        provider = MongoDBAdapter(client["t"]).idempotency
        with pytest.raises(StoreUnavailable):
            provider.begin("k", DAY)


def test_a_claim_of_equal_token_is_judged_by_its_random_text(provider: MongoDBIdempotencyProvider) -> None:
    claim = provider.begin("k", DAY)
    assert claim.token is not None
    assert not provider.extend("k", claim.token, 1_000, claim="another")
    assert not provider.complete("k", claim.token, "theirs", claim="another")
    assert not provider.abandon("k", claim.token, claim="another")
    assert provider.get("k") is None
    assert provider.extend("k", claim.token, 60_000, claim=claim.claim)
    assert provider.complete("k", claim.token, "ours", claim=claim.claim)
    found = provider.get("k")
    assert found and found.value == "ours"


def test_who_made_a_claim_is_listed(provider: MongoDBIdempotencyProvider) -> None:
    provider.begin("k", DAY, holder="web-1:4711")
    assert [one.holder for one in provider.list()] == ["web-1:4711"]
