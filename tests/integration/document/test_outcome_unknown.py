"""Outcomes that are not known at first: settled, or said to be unknown; never guessed, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import OutcomeUnknown, StoreError, StoreUnavailable
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.testing.conformance.base import Drive
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy

LIMIT = 0.8
FLOWS = CacheFlows(Codec(pickle=False))


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: ReplicaSet) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        yield proxy


@pytest.fixture
def direct(server: ReplicaSet, proxy: Proxy) -> Iterator[Any]:
    """The database, not through the proxy; empty."""
    proxy.heal()
    with server.client() as client:
        database = client["unknown"]
        for name in database.list_collection_names():
            database[name].delete_many({})
        yield database
        client.admin.command("configureFailPoint", "failCommand", mode="off")
    proxy.heal()


pytestmark = pytest.mark.slow


@pytest.fixture
def adapter(proxy: Proxy, drive: Drive, direct: Any) -> Iterator[MongoDBAdapter]:
    """An adapter through the proxy, in one colour, with a shorter time limit."""
    url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&serverSelectionTimeoutMS=2000&appname=tested"
    if drive._runner is None:
        with MongoClient[dict[str, Any]](url) as client:
            client.admin.command("ping")
            executor = SyncExecutor(client["unknown"], limit=LIMIT)
            yield MongoDBAdapter.on(Store(lambda: executor, None))
        return
    run = drive._runner.run

    async def made() -> AsyncMongoClient[dict[str, Any]]:
        client = AsyncMongoClient[dict[str, Any]](url)
        await client.admin.command("ping")
        return client

    native = run(made())
    aexecutor = AsyncExecutor(native["unknown"], limit=LIMIT)
    yield MongoDBAdapter.on(Store(None, lambda: aexecutor))
    run(native.close())


def call(adapter: MongoDBAdapter, drive: Drive, flow: Callable[..., Any], *args: Any) -> Any:
    """Run a flow of the cache, as Django's cache does."""
    if drive._runner is None:
        return adapter.store.run(flow, *args)

    async def there() -> Any:
        return await adapter.store.arun(flow, *args)

    return drive._runner.run(there())


@contextmanager
def failing(direct: Any, *commands: str, times: int | None = None, **how: Any) -> Iterator[None]:
    """Let the server fail these commands of the tested client, as its own tests do."""
    mode: Any = "alwaysOn" if times is None else {"times": times}
    data = {"failCommands": list(commands), "appName": "tested", **how}
    admin = direct.client.admin
    admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        yield
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


FAILED_CONCERN: Any = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}


class TestLocks:
    @pytest.mark.parametrize("times", [1, None])
    def test_an_acquisition_whose_answer_was_lost_is_found(
        self, times: int | None, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        proxy.lose_answers("findAndModify", times)
        handle = drive(adapter.lock, "acquire", "a", 60_000, "me")
        assert "findAndModify" in proxy.seen
        assert handle is not None, "it is its own claim that stands there"
        proxy.heal()
        assert drive(handle, "is_valid") is True
        assert drive(adapter.lock, "acquire", "a", 60_000) is None
        assert drive(handle, "release") is True
        assert direct.go_goscope_locks.count_documents({}) == 0

    def test_a_refusal_whose_answer_was_lost_is_none(self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy) -> None:
        assert drive(adapter.lock, "acquire", "a", 60_000, "other") is not None
        proxy.lose_answers("findAndModify")
        assert drive(adapter.lock, "acquire", "a", 60_000, "other") is None

    def test_an_acquisition_that_never_arrived_is_an_error_and_may_be_tried_again(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        proxy.refuse("findAndModify")
        with pytest.raises(StoreUnavailable, match="lock:a"):
            drive(adapter.lock, "acquire", "a", 60_000)
        assert direct.go_goscope_locks.count_documents({}) == 0
        proxy.heal()
        assert drive(adapter.lock, "acquire", "a", 60_000) is not None

    def test_what_can_not_be_found_out_is_said_and_given_back(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        proxy.lose_answers("findAndModify")
        proxy.refuse("find")
        with pytest.raises(OutcomeUnknown, match="given back") as caught:
            drive(adapter.lock, "acquire", "a", 60_000)
        assert caught.value.__cause__ is not None
        assert direct.go_goscope_locks.count_documents({}) == 0, "its own claim was removed"

    def test_it_gives_back_its_own_claim_only(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        assert drive(adapter.lock, "acquire", "a", 60_000, "holder") is not None
        proxy.lose_answers("findAndModify")
        proxy.refuse("find")
        with pytest.raises(OutcomeUnknown):
            drive(adapter.lock, "acquire", "a", 60_000)
        assert direct.go_goscope_locks.find_one({})["owner"] == "holder"

    def test_a_write_concern_error_is_settled(self, adapter: MongoDBAdapter, drive: Drive, direct: Any) -> None:
        with failing(direct, "findAndModify", **FAILED_CONCERN):
            handle = drive(adapter.lock, "acquire", "a", 60_000)
            assert handle is not None
            with pytest.raises(OutcomeUnknown):
                drive(handle, "extend", 120_000)
        with failing(direct, "findAndModify", times=1, **FAILED_CONCERN):
            assert drive(handle, "extend", 120_000) is True
        with failing(direct, "delete", **FAILED_CONCERN):
            assert drive(handle, "release") is True
        assert direct.go_goscope_locks.count_documents({}) == 0

    @pytest.mark.parametrize("times", [1, None])
    def test_a_release_whose_answer_was_lost_is_known(
        self, times: int | None, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        handle = drive(adapter.lock, "acquire", "a", 60_000)
        proxy.lose_answers("delete", times)
        assert drive(handle, "release") is True
        assert direct.go_goscope_locks.count_documents({}) == 0

    def test_a_release_that_never_arrived_is_sent_again_or_said(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        handle = drive(adapter.lock, "acquire", "a", 60_000)
        proxy.refuse("delete", 2)
        assert drive(handle, "release") is True
        assert direct.go_goscope_locks.count_documents({}) == 0
        handle = drive(adapter.lock, "acquire", "a", 60_000)
        proxy.refuse("delete")
        with pytest.raises((OutcomeUnknown, StoreUnavailable)):
            drive(handle, "release")
        assert direct.go_goscope_locks.count_documents({}) == 1
        proxy.heal()
        assert drive(handle, "release") is True

    @pytest.mark.parametrize("times", [1])
    def test_an_extension_whose_answer_was_lost_holds(
        self, times: int, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy
    ) -> None:
        handle = drive(adapter.lock, "acquire", "a", 60_000)
        proxy.lose_answers("findAndModify", times)
        assert drive(handle, "extend", 120_000) is True
        proxy.heal()
        assert drive(handle, "is_valid") is True

    def test_a_command_that_takes_too_long_ends_within_its_limit(
        self, adapter: MongoDBAdapter, drive: Drive, direct: Any
    ) -> None:
        with failing(direct, "findAndModify", blockConnection=True, blockTimeMS=int(LIMIT * 1_000) + 500):
            with pytest.raises((OutcomeUnknown, StoreUnavailable)):
                drive(adapter.lock, "acquire", "a", 60_000)
            # What came too late was not carried out after all: the server had the same limit.
            assert direct.go_goscope_locks.count_documents({}) == 0
        assert drive(adapter.lock, "acquire", "a", 60_000) is not None

    def test_a_cancelled_acquisition_leaves_no_lock(self, adapter: MongoDBAdapter, drive: Drive, direct: Any) -> None:
        if drive._runner is None:
            pytest.skip("only tasks are cancelled")

        async def scenario() -> None:
            with failing(direct, "findAndModify", blockConnection=True, blockTimeMS=400):
                task = asyncio.create_task(adapter.lock.aacquire("a", 60_000))
                while not await asyncio.to_thread(_in_progress, direct):
                    pass
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while await asyncio.to_thread(_in_progress, direct):
                    pass

        drive._runner.run(scenario())
        handle = drive(adapter.lock, "acquire", "a", 60_000)
        assert handle is None or drive(handle, "release"), "at worst it ends with its lease"


def _in_progress(direct: Any) -> bool:
    found = direct.client.admin.aggregate(
        [{"$currentOp": {"localOps": True}}, {"$match": {"command.findAndModify": "go_goscope_locks"}}]
    )
    return bool(found.to_list())


class TestCounts:
    @pytest.mark.parametrize("times", [1, None])
    def test_a_failure_is_counted_once_or_its_outcome_is_said_to_be_unknown(
        self, times: int | None, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        assert drive(adapter.circuit_breaker, "record_failure", "c", 10) == 1
        proxy.lose_answers("findAndModify", times)
        if times is not None:  # the driver sends it again, and the server knows that it was there before
            assert drive(adapter.circuit_breaker, "record_failure", "c", 10) == 2
        else:
            with pytest.raises(OutcomeUnknown):
                drive(adapter.circuit_breaker, "record_failure", "c", 10)
        assert direct.go_goscope_circuit.find_one({})["failureCount"] == 2

    @pytest.mark.parametrize("times", [1, None])
    def test_a_sum_is_made_once(
        self, times: int | None, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        drive(adapter.cache, "set", "n", 5)
        proxy.lose_answers("findAndModify", times)
        if times == 1:
            assert call(adapter, drive, FLOWS.incr, "cache:n", 1) == 6
        else:
            with pytest.raises(OutcomeUnknown):
                call(adapter, drive, FLOWS.incr, "cache:n", 1)
        assert direct.go_goscope_cache.find_one({})["value"] == 6

    def test_what_never_arrived_changes_nothing(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        drive(adapter.cache, "set", "n", 5)
        proxy.refuse("findAndModify")
        with pytest.raises(StoreError):
            call(adapter, drive, FLOWS.incr, "cache:n", 1)
        assert direct.go_goscope_cache.find_one({})["value"] == 5


class TestCache:
    def test_a_lost_answer_to_a_read_is_read_again(self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy) -> None:
        drive(adapter.cache, "set", "k", 1)
        for how in (proxy.lose_answers, proxy.refuse):
            how("find", 1)
            assert drive(adapter.cache, "get", "k") == 1
            how("find", 1)
            assert call(adapter, drive, FLOWS.get_many, ["cache:k"]) == {"cache:k": 1}

    def test_a_read_that_fails_for_good_is_an_error_and_no_unknown_outcome(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy
    ) -> None:
        proxy.refuse("find")
        with pytest.raises(StoreUnavailable):
            drive(adapter.cache, "get", "k")
        assert proxy.seen.count("find") == 2, "it was tried twice, not for ever"

    @pytest.mark.parametrize("method", ["set", "delete"])
    def test_a_lost_answer_to_a_write_is_retried_by_the_driver(
        self, method: str, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        drive(adapter.cache, "set", "k", 1)
        proxy.lose_answers("update", 1)
        proxy.lose_answers("delete", 1)
        if method == "set":
            drive(adapter.cache, "set", "k", 2)
            assert direct.go_goscope_cache.find_one({})["value"] == 2
        else:
            assert drive(adapter.cache, "delete", "k") is True
            assert direct.go_goscope_cache.count_documents({}) == 0

    def test_add_never_takes_its_own_entry_for_anothers(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy
    ) -> None:
        proxy.lose_answers("update", 1)
        assert call(adapter, drive, FLOWS.add, "cache:k", 1, None) is True
        proxy.lose_answers("update", 1)
        assert call(adapter, drive, FLOWS.add, "cache:k", 2, None) is False

    @pytest.mark.parametrize("command", ["findAndModify", "update"])
    def test_a_set_is_not_sent_again_where_it_might_overwrite_anothers(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any, command: str
    ) -> None:
        if command == "update":
            drive(adapter.cache, "set", "k", 1)  # the first of a second brings the server's time along
        proxy.lose_answers(command)
        with pytest.raises(OutcomeUnknown):
            drive(adapter.cache, "set", "k", 2)
        assert proxy.seen.count(command) == 2, "the driver's own retry, which the server recognises, and no more"
        assert direct.go_goscope_cache.find_one({})["value"] == 2


@pytest.mark.parametrize(("limit", "enough"), [("socketTimeoutMS", True), ("timeoutMS", False)])
def test_the_deletion_of_a_range_may_take_longer_than_an_answer(
    limit: str, enough: bool, server: ReplicaSet, drive: Drive, direct: Any
) -> None:
    url = f"mongodb://127.0.0.1:{server.ports[0]}/?directConnection=true&appname=tested&{limit}=400"

    def cleared(provider: Any) -> Any:
        with failing(direct, "delete", blockConnection=True, blockTimeMS=900):
            return drive(provider, "clear")

    with MongoClient[dict[str, Any]](url) as client:
        native = AsyncMongoClient[dict[str, Any]](url)
        executor, aexecutor = SyncExecutor(client["unknown"]), AsyncExecutor(native["unknown"])
        provider = MongoDBAdapter.on(Store(lambda: executor, lambda: aexecutor)).cache
        drive(provider, "set", "k", 1)
        if enough:
            assert cleared(provider) == 1
        else:
            with pytest.raises(OutcomeUnknown):
                cleared(provider)
        if drive._runner is not None:
            drive._runner.run(native.close())


class TestRecords:
    def test_a_claim_whose_answer_was_lost_is_found(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        proxy.lose_answers("findAndModify", 2)
        claim = drive(adapter.idempotency, "begin", "i", 60_000)
        assert proxy.seen.count("findAndModify") == 2
        proxy.heal()
        assert claim.outcome == "started"
        assert drive(adapter.idempotency, "complete", "i", claim.token, "done") is True
        assert drive(adapter.idempotency, "get", "i").value == "done"

    def test_a_completion_whose_answer_was_lost_is_known(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy
    ) -> None:
        claim = drive(adapter.idempotency, "begin", "i", 60_000)
        proxy.lose_answers("findAndModify", 2)
        proxy.lose_answers("update", 2)
        assert drive(adapter.idempotency, "complete", "i", claim.token, "done") is True
        proxy.heal()
        assert drive(adapter.idempotency, "get", "i").value == "done"

    def test_a_saved_checkpoint_whose_answer_was_lost_is_no_conflict(
        self, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, direct: Any
    ) -> None:
        proxy.lose_answers("insert", 2)
        drive(adapter.checkpoint, "save", Checkpoint("c", "t", 1, datetime.now(UTC), data="x"))
        assert direct.go_goscope_checkpoints.count_documents({}) == 1
