"""Fenced writes: what a resource refuses, on MongoDB documents, on rows, and in transactions that a takeover aborts."""

# ruff: noqa: PT012, SIM117 - what is tested is what leaving a block raises, and which one

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import mongomock
import pytest
from django.db import DatabaseError, connection, connections, models
from django.test import override_settings
from django.test.utils import isolate_apps
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

from goscope_django import locks, runtime
from goscope_django.exceptions import ConfigurationError, InvalidType, InvalidValue, LockLost, StaleFence
from goscope_django.fencing import (
    FencedModel,
    afenced_update_one,
    fenced_transaction,
    fenced_update_one,
)
from goscope_django.locks import lock
from tests.support.locks import expire, raw, settings_for, take_over
from tests.support.long import examples
from tests.support.mongod import temporary_mongod
from tests.support.transactions import transaction


@pytest.fixture(params=["real", "mongomock"])
def things(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A collection of the project's own."""
    if request.param == "mongomock":
        yield mongomock.MongoClient().shop.things
        return
    with MongoClient[dict[str, Any]](request.getfixturevalue("mongo_url")) as client:
        collection = client.get_default_database().things
        collection.drop()
        yield collection


def test_l3_an_older_token_is_refused(things: Any) -> None:
    things.insert_one({"_id": 1, "left": 10})
    assert fenced_update_one(things, {"_id": 1}, {"$inc": {"left": -1}}, 5).modified_count == 1
    assert fenced_update_one(things, {"_id": 1}, {"$inc": {"left": -1}}, 5).modified_count == 1
    assert fenced_update_one(things, {"_id": 1}, {"$inc": {"left": -1}}, 7).modified_count == 1
    with pytest.raises(StaleFence, match="7"):
        fenced_update_one(things, {"_id": 1}, {"$inc": {"left": -1}}, 6)
    assert things.find_one() == {"_id": 1, "left": 7, "_fence": 7}


def test_no_such_document_is_not_a_refusal(things: Any) -> None:
    assert fenced_update_one(things, {"_id": 1}, {"$set": {"a": 1}}, 5).matched_count == 0
    things.insert_one({"_id": 1, "_fence": 9, "kind": "x"})
    assert fenced_update_one(things, {"_id": 1, "kind": "y"}, {"$set": {"a": 1}}, 5).matched_count == 0


def test_the_filter_may_be_of_any_kind(things: Any) -> None:
    things.insert_many([{"_id": 1, "kind": "x", "_fence": None}, {"_id": 2, "kind": "y"}])
    either = {"$or": [{"kind": "x"}, {"kind": "z"}], "$and": [{"_id": {"$gte": 0}}]}
    assert fenced_update_one(things, either, {"$set": {"a": 1}}, 5).matched_count == 1
    assert things.find_one({"_id": 1})["_fence"] == 5
    with pytest.raises(StaleFence):
        fenced_update_one(things, either, {"$set": {"a": 1}}, 4)


def test_a_pipeline(things: Any) -> None:
    things.insert_one({"_id": 1, "left": 10})
    fenced_update_one(things, {"_id": 1}, [{"$set": {"left": {"$add": ["$left", 1]}}}], 5)
    assert things.find_one() == {"_id": 1, "left": 11, "_fence": 5}
    with pytest.raises(StaleFence):
        fenced_update_one(things, {"_id": 1}, [{"$set": {"left": 0}}], 4)


def test_upserts(things: Any) -> None:
    result = fenced_update_one(things, {"_id": 1}, {"$set": {"a": 1}}, 5, upsert=True)
    assert result.upserted_id == 1
    assert things.find_one() == {"_id": 1, "a": 1, "_fence": 5}
    assert fenced_update_one(things, {"_id": 1}, {"$set": {"a": 2}}, 6, upsert=True).matched_count == 1
    with pytest.raises(StaleFence):
        fenced_update_one(things, {"_id": 1}, {"$set": {"a": 3}}, 5, upsert=True)
    assert things.count_documents({}) == 1
    assert things.find_one()["a"] == 2
    with pytest.raises(InvalidValue, match="_id"):
        fenced_update_one(things, {"name": "x"}, {"$set": {"a": 3}}, 5, upsert=True)


def test_an_upsert_that_collides_for_another_reason(things: Any) -> None:
    things.create_index("name", unique=True)
    things.insert_one({"_id": 1, "name": "x"})
    with pytest.raises(DuplicateKeyError):
        fenced_update_one(things, {"_id": 2}, {"$set": {"name": "x"}}, 5, upsert=True)
    with pytest.raises((DuplicateKeyError, WriteError)):
        things.insert_one({"_id": 3, "name": "y"})
        fenced_update_one(things, {"_id": 3}, {"$set": {"name": "x"}}, 5)


@pytest.mark.parametrize("update", [{"a": 1}, {}, {"$set": {"_fence": 1}}, {"$unset": {"_fence": 1}}])
def test_updates_without_a_fence_are_refused(update: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        fenced_update_one(mongomock.MongoClient().shop.things, {"_id": 1}, update, 5)


def test_what_is_no_token() -> None:
    for wrong in (None, "5", True, 5.0, object()):
        with pytest.raises(InvalidType):
            fenced_update_one(mongomock.MongoClient().shop.things, {"_id": 1}, {"$set": {"a": 1}}, wrong)
    with pytest.raises(InvalidType):
        fenced_update_one(mongomock.MongoClient().shop.things, {"_id": 1}, "nonsense", 5)  # type: ignore[arg-type]


def test_the_callers_update_is_left_alone(things: Any) -> None:
    things.insert_one({"_id": 1})
    update, pipeline = {"$set": {"a": 1}}, [{"$set": {"a": 1}}]
    fenced_update_one(things, {"_id": 1}, update, 5)
    fenced_update_one(things, {"_id": 1}, pipeline, 5)
    assert (update, pipeline) == ({"$set": {"a": 1}}, [{"$set": {"a": 1}}])


async def test_the_asynchronous_twin(mongo_url: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](mongo_url) as client:
        things = client.get_default_database().athings
        assert (await afenced_update_one(things, {"_id": 1}, {"$set": {"a": 1}}, 5, upsert=True)).upserted_id == 1
        with pytest.raises(StaleFence):
            await afenced_update_one(things, {"_id": 1}, {"$set": {"a": 2}}, 4)
        with pytest.raises(StaleFence):
            await afenced_update_one(things, {"_id": 1}, {"$set": {"a": 2}}, 4, upsert=True)


def test_upserts_that_race(mongo_url: str) -> None:
    """Whatever the order, the highest token's value stays."""
    with MongoClient[dict[str, Any]](mongo_url) as client:
        things = client.get_default_database().raced
        for round_ in range(10):
            barrier = threading.Barrier(6)

            def write(token: int, key: int = round_, start: threading.Barrier = barrier) -> None:
                start.wait()
                with suppress(StaleFence):
                    fenced_update_one(things, {"_id": key}, {"$set": {"by": token}}, token, upsert=True)

            threads = [threading.Thread(target=write, args=(token,)) for token in range(1, 7)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert things.find_one({"_id": round_}) == {"_id": round_, "by": 6, "_fence": 6}


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=12))
def test_it_behaves_like_the_model(writes: list[tuple[int, bool, bool]]) -> None:
    """The model: one number, the highest token seen, and the last write that was let through."""
    things: Any = mongomock.MongoClient().shop.things
    seen: int | None = None
    last: int | None = None
    for number, (token, upsert, pipeline) in enumerate(writes):
        update: Any = [{"$set": {"by": number}}] if pipeline and not upsert else {"$set": {"by": number}}
        exists = last is not None
        if exists and seen is not None and seen > token:
            with pytest.raises(StaleFence):
                fenced_update_one(things, {"_id": 1}, update, token, upsert=upsert)
        else:
            fenced_update_one(things, {"_id": 1}, update, token, upsert=upsert)
            if exists or upsert:
                seen, last = token, number
        found = things.find_one({"_id": 1})
        assert found == (None if last is None else {"_id": 1, "by": last, "_fence": seen})


# Rows.


@pytest.fixture
def item(transactional_db: None) -> Iterator[Any]:
    with isolate_apps("django.contrib.contenttypes"):

        class Item(FencedModel):
            name = models.CharField(max_length=20)
            left = models.IntegerField(default=0)
            changed = models.DateTimeField(auto_now=True)

            class Meta:
                app_label = "fencing_tests"

        class Special(Item):
            extra = models.IntegerField(default=0)

            class Meta:
                app_label = "fencing_tests"

        with connection.schema_editor() as editor:
            editor.create_model(Item)
            editor.create_model(Special)
        made: Any = Item
        made.special = Special
        yield made
        with connection.schema_editor() as editor:
            editor.delete_model(Special)
            editor.delete_model(Item)


class Replicated:
    """A router that reads elsewhere than it writes."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.sql
def test_where_reads_go_to_a_replica_the_primary_decides(item: Any) -> None:
    one, two = item.objects.create(name="a", left=10), item.objects.create(name="b", left=10)
    two.save_fenced(9)
    connections.databases["replica"] = {**connection.settings_dict, "NAME": ":memory:"}
    connections["replica"].connect()  # Django's test case forbids databases that it does not know
    try:
        with connections["replica"].schema_editor() as editor:
            editor.create_model(item)  # empty: nothing has been replicated yet
        with override_settings(DATABASE_ROUTERS=[Replicated()]):
            with pytest.raises(StaleFence):
                item.objects.filter(name__in="ab").fenced_update(8, left=1)
            assert item.objects.filter(name="a").fenced_update(8, left=5) == 1
            assert item.objects.using("replica").fenced_update(8, left=5) == 0
    finally:
        connections["replica"].close()
        del connections["replica"], connections.databases["replica"]
    rows = item.objects.using("default").values_list("pk", "left", "fence")
    assert sorted(rows) == [(one.pk, 5, 8), (two.pk, 10, 9)]


def test_a_row_refuses_an_older_token(item: Any) -> None:
    one = item.objects.create(name="a", left=10)
    assert one.fence == 0
    one.left = 9
    one.save_fenced(5)
    one.refresh_from_db()
    assert (one.left, one.fence) == (9, 5)
    late = item.objects.get()
    one.left = 8
    one.save_fenced(7)
    late.left = 100
    with pytest.raises(StaleFence, match="Item"):
        late.save_fenced(6)
    assert late.fence == 5  # as it was: it may be tried with another token
    assert (item.objects.get().left, item.objects.get().fence) == (8, 7)
    one.save_fenced(7)


def test_an_ordinary_save_does_not_set_the_fence_back(item: Any) -> None:
    one = item.objects.create(name="a")
    stale = item.objects.get()
    one.save_fenced(5)
    stale.name = "b"
    stale.save()
    assert (item.objects.get().name, item.objects.get().fence) == ("b", 5)
    stale.save(update_fields=["fence"])
    assert item.objects.get().fence == 5


@pytest.mark.sql
def test_new_rows_update_fields_and_rows_that_are_gone(item: Any) -> None:
    one = item(name="a")
    one.save_fenced(3)
    assert item.objects.get().fence == 3
    one.name, one.left = "b", 7
    before = item.objects.get().changed
    one.save_fenced(4, update_fields=["name"])
    found = item.objects.get()
    assert (found.name, found.left, found.fence, found.changed) == ("b", 0, 4, before)
    one.save_fenced(5)
    assert item.objects.get().changed > before
    item.objects.all().delete()
    with pytest.raises(DatabaseError):
        one.save_fenced(6)
    assert not item.objects.exists()
    again = item(pk=77, name="c")
    again.save_fenced(2)
    twice = item(pk=77, name="d")
    with pytest.raises(StaleFence):
        twice.save_fenced(1)
    assert item.objects.get().name == "c"


def test_rows_of_an_inherited_model(item: Any) -> None:
    one = item.special.objects.create(name="a", extra=1)
    one.extra, one.name = 2, "b"
    one.save_fenced(5)
    late = item.special.objects.get()
    late.extra, late.name = 3, "c"
    with pytest.raises(StaleFence):
        late.save_fenced(4)
    found = item.special.objects.get()
    assert (found.extra, found.name, found.fence) == (2, "b", 5)


@pytest.mark.sql
def test_the_comparison_is_part_of_the_update(item: Any, django_assert_num_queries: Any) -> None:
    one = item.objects.create(name="a")
    with django_assert_num_queries(1) as sent:
        one.save_fenced(5)
    assert "UPDATE" in sent.captured_queries[0]["sql"]
    assert '"fence" <= 5' in sent.captured_queries[0]["sql"]


def test_many_rows_all_or_none(item: Any) -> None:
    for number in range(3):
        item.objects.create(name=f"n{number}", fence=number)
    assert item.objects.fenced_update(2, left=models.F("left") + 1) == 3
    assert set(item.objects.values_list("left", "fence")) == {(1, 2)}
    item.objects.filter(name="n1").fenced_update(9, left=5)
    with pytest.raises(StaleFence):
        item.objects.fenced_update(3, left=0, name="gone")
    assert sorted(item.objects.values_list("left", "fence")) == [(1, 2), (1, 2), (5, 9)]
    assert item.objects.filter(name="nobody").fenced_update(1, left=0) == 0
    assert item.objects.filter(name="n0").fenced_update(3, name="renamed") == 1


def test_a_refusal_inside_atomic_leaves_the_rest_of_it(item: Any) -> None:
    item.objects.create(name="a", fence=9)
    with transaction.atomic():
        item.objects.create(name="b")
        with pytest.raises(StaleFence):
            item.objects.filter(name="a").fenced_update(1, left=1)
    assert item.objects.count() == 2


def test_the_asynchronous_twins_of_rows(item: Any) -> None:
    async def work() -> None:
        one = await item.objects.acreate(name="a")
        await one.asave_fenced(5)
        with pytest.raises(StaleFence):
            await item.objects.afenced_update(4, left=1)
        assert await item.objects.afenced_update(5, left=1) == 1

    from asgiref.sync import async_to_sync

    async_to_sync(work)()


# A lock's handle, and transactions.


@pytest.fixture
def store(mongo_url: str) -> Iterator[Any]:
    """The collection of stock, by the client that the locks use."""
    with settings_for(mongo_url):
        runtime.adapter().ensure_indexes()
        raw().delete_many({})
        stock = raw().database["stock"]
        stock.drop()
        stock.insert_one({"_id": 1, "left": 10})
        yield stock


def test_the_token_of_a_handle(store: Any) -> None:
    first = lock("stock", auto_extend=False).acquire()
    expire("stock")
    second = lock("stock").acquire()
    fenced_update_one(store, {"_id": 1}, {"$inc": {"left": -1}}, second)
    with pytest.raises(StaleFence):
        fenced_update_one(store, {"_id": 1}, {"$inc": {"left": -1}}, first)
    with pytest.raises(StaleFence):
        fenced_update_one(store, {"_id": 1}, {"$inc": {"left": -1}}, first.inner)
    assert store.find_one()["left"] == 9
    second.release()
    first._renewal.stop()


def sold(store: Any, session: Any) -> None:
    stock = session.client[store.database.name].stock
    stock.update_one({"_id": 1}, {"$inc": {"left": -1}}, session=session)


def test_a_transaction_commits(store: Any) -> None:
    with lock("stock") as handle, fenced_transaction(handle) as session:
        sold(store, session)
        assert store.find_one()["left"] == 10
    assert store.find_one()["left"] == 9


def test_an_error_in_the_block_aborts_it(store: Any) -> None:
    with lock("stock") as handle:
        with pytest.raises(KeyError), fenced_transaction(handle) as session:
            sold(store, session)
            raise KeyError
        assert store.find_one()["left"] == 10
        with fenced_transaction(handle) as session:
            sold(store, session)
    assert store.find_one()["left"] == 9


def test_a_takeover_in_the_middle_aborts_it(store: Any) -> None:
    with pytest.raises(LockLost), lock("stock") as handle:
        with pytest.raises(StaleFence), fenced_transaction(handle) as session:
            sold(store, session)
            take_over("stock")
        assert handle.lost.is_set() or not handle.is_valid()
    assert store.find_one()["left"] == 10


def test_a_takeover_before_the_first_command_aborts_it(store: Any) -> None:
    with pytest.raises(LockLost), lock("stock") as handle:
        with pytest.raises(StaleFence), fenced_transaction(handle) as session:
            take_over("stock")
            sold(store, session)
    assert store.find_one()["left"] == 10


def test_an_expiry_without_a_successor_aborts_it(store: Any) -> None:
    with pytest.raises(LockLost), lock("stock") as handle:
        with pytest.raises(StaleFence), fenced_transaction(handle) as session:
            sold(store, session)
            expire("stock")
    assert store.find_one()["left"] == 10


def test_a_lease_that_ends_while_the_transaction_runs_aborts_it(store: Any) -> None:
    """The server's time within a transaction goes on."""
    with pytest.raises(LockLost), lock("stock", 0.4) as handle:
        with pytest.raises(StaleFence), fenced_transaction(handle) as session:
            sold(store, session)
            assert handle.lost.wait()
            while locks.backend().get("stock") is not None:  # by the server's clock it ends a little later
                time.sleep(0.002)
    assert store.find_one()["left"] == 10


def test_a_lock_that_is_lost_already_begins_none(store: Any) -> None:
    with pytest.raises(LockLost), lock("stock") as handle:
        take_over("stock")
        with pytest.raises(StaleFence), fenced_transaction(handle):
            pass
    assert not handle._renewal.sending


def test_its_own_renewal_does_not_abort_it(store: Any) -> None:
    """A renewal would be due: it would write the document that the transaction touches."""
    with lock("stock", 1.5) as handle:
        first = handle._renewal.deadline
        with fenced_transaction(handle) as session:
            sold(store, session)
            assert not handle.lost.wait(0.9)
        assert store.find_one()["left"] == 9
        while handle._renewal.deadline < first + 1.5:  # and afterwards it goes on
            assert not handle.lost.wait(0.01)


async def test_cancelled_while_a_renewal_is_on_its_way_it_lets_renewals_go_on() -> None:
    with settings_for("mongomock://"):
        async with lock("stock") as handle:
            handle._renewal.sending = True
            task = asyncio.ensure_future(fenced_transaction(handle).__aenter__())
            await asyncio.sleep(0)
            assert handle._renewal.paused
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            handle._renewal.sending = False
            assert not handle._renewal.paused


def test_until_the_end_the_next_holder_is_not_kept_waiting(store: Any) -> None:
    """A holder asleep in mid-transaction: the lock can be taken over, and the transaction is what fails."""
    with pytest.raises(LockLost), lock("stock", 30) as handle:
        with pytest.raises(StaleFence), fenced_transaction(handle) as session:
            sold(store, session)
            expire("stock")
            with lock("stock", blocking=False) as second:
                fenced_update_one(store.database.other, {"_id": 1}, {"$set": {"a": 1}}, second, upsert=True)


def test_a_conflict_of_the_callers_own_is_the_drivers_error(store: Any) -> None:
    with lock("stock") as handle:
        with pytest.raises(OperationFailure) as caught, fenced_transaction(handle) as session:
            store.find_one({}, session=session)
            store.update_one({"_id": 1}, {"$inc": {"left": -5}})
            sold(store, session)
        assert caught.value.has_error_label("TransientTransactionError")
    assert store.find_one()["left"] == 5


def test_with_a_client_of_ones_own(store: Any, mongo_url: str) -> None:
    with MongoClient[dict[str, Any]](mongo_url) as client, lock("stock") as handle:
        with fenced_transaction(handle, client) as session:
            assert session.client is client
            sold(store, session)
        with pytest.raises(ConfigurationError), fenced_transaction(handle, AsyncMongoClient(mongo_url)):
            pass
    assert store.find_one()["left"] == 9


async def test_transactions_in_a_coroutine(store: Any) -> None:
    async def asold(session: Any) -> None:
        stock = session.client[store.database.name].stock
        await stock.update_one({"_id": 1}, {"$inc": {"left": -1}}, session=session)

    async with lock("stock") as handle:
        async with fenced_transaction(handle) as session:
            await asold(session)
        assert store.find_one()["left"] == 9
        with pytest.raises(KeyError):
            async with fenced_transaction(handle) as session:
                await asold(session)
                raise KeyError
    with pytest.raises(LockLost):
        async with lock("stock") as handle:
            with pytest.raises(StaleFence):
                async with fenced_transaction(handle) as session:
                    await asold(session)
                    take_over("stock")
    assert store.find_one()["left"] == 9
    await asyncio.sleep(0)


def test_what_has_no_transactions_says_so() -> None:
    with settings_for("mongomock://"), lock("stock") as handle:
        with pytest.raises(ConfigurationError, match="replica set"), fenced_transaction(handle):
            pass
        assert locks.backend().get("stock") is not None
    with pytest.raises(InvalidType):
        fenced_transaction(7)  # type: ignore[arg-type]


@pytest.mark.real
def test_a_standalone_server_says_so() -> None:
    with temporary_mongod(standalone=True) as server:
        with settings_for(server.uri.replace("/?", "/x?")), lock("stock") as handle:
            with pytest.raises(ConfigurationError, match="replica set"), fenced_transaction(handle) as session:
                session.client.x.things.insert_one({"a": 1}, session=session)
            with pytest.raises(ConfigurationError, match="replica set"), fenced_transaction(handle):
                pass
