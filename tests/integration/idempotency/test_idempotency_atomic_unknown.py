"""``idempotent(atomic=...)`` where the commit fails, or nobody can say whether it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from pymongo.errors import PyMongoError

from goscope_django import runtime
from goscope_django.exceptions import IdempotencyConflict
from goscope_django.idempotency import idempotent
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY
from tests.support.backend import ALIAS, mongodb_alias
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy

pytest.importorskip("django_mongodb_backend", reason="django-mongodb-backend is not installed")
from django_mongodb_backend import transaction

pytestmark = [pytest.mark.real, pytest.mark.slow]
UNKNOWN = "UnknownTransactionCommitResult"


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as running:
        with running.client() as client:
            client.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": 1})
        yield running


@pytest.fixture
def proxy(server: ReplicaSet, django_db_blocker: Any) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/shop?directConnection=true&serverSelectionTimeoutMS=2000"
        with (
            django_db_blocker.unblock(),
            mongodb_alias(url, HOST=url),
            override_settings(GOSCOPE={"TEST": {"URL": f"django://{ALIAS}"}}),
        ):
            runtime.adapter().connect()
            yield proxy


@pytest.fixture
def database(server: ReplicaSet, proxy: Proxy) -> Iterator[Any]:
    """The database, not through the proxy; empty."""
    with server.client() as client:
        client["shop"]["order"].insert_one({})
        for name in ("order", IDEMPOTENCY):
            client["shop"][name].delete_many({})
        yield client["shop"]
        client.admin.command("configureFailPoint", "failCommand", mode="off")


@idempotent(key="k", atomic=ALIAS, lease=1.0)
def place(name: str) -> str:
    mine: Any = connections[ALIAS]
    mine.database["order"].insert_one({"name": name}, session=mine.session)
    return name


def within(name: str) -> str:
    with transaction.atomic(ALIAS):
        return place(name)


def names(database: Any) -> list[str]:
    return [one["name"] for one in database["order"].find()]


@pytest.mark.parametrize("call", [place, within], ids=["alone", "in an outer transaction"])
def test_a_commit_that_was_carried_out_but_not_answered_is_found_by_the_next_call(
    database: Any, proxy: Proxy, call: Any
) -> None:
    proxy.lose_answers("commitTransaction")
    with pytest.raises(PyMongoError) as caught:
        call("first")
    assert caught.value.has_error_label(UNKNOWN)
    proxy.heal()
    # The claim was neither given up nor is it renewed any more; the result outranks it.
    assert database[IDEMPOTENCY].count_documents({"key": {"$regex": "^claim:"}}) == 1
    assert call("second") == "first"
    assert names(database) == ["first"]


@pytest.mark.parametrize("call", [place, within], ids=["alone", "in an outer transaction"])
def test_a_commit_that_never_arrived_leaves_the_claim_to_its_lease(database: Any, proxy: Proxy, call: Any) -> None:
    proxy.refuse("commitTransaction")
    proxy.refuse("abortTransaction")
    with pytest.raises(PyMongoError) as caught:
        call("first")
    assert caught.value.has_error_label(UNKNOWN)
    proxy.heal()
    with pytest.raises(IdempotencyConflict):
        call("second")
    deadline = time.monotonic() + 20
    while True:  # until the lease has ended, and the server has given the transaction up
        try:
            assert call("third") == "third"
            break
        except (IdempotencyConflict, PyMongoError):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert names(database) == ["third"]
    assert call("fourth") == "third"


@pytest.mark.parametrize("call", [place, within], ids=["alone", "in an outer transaction"])
@pytest.mark.parametrize("labels", [["TransientTransactionError"], []])
def test_a_commit_that_failed_is_raised_unchanged_and_the_call_can_be_repeated_at_once(
    database: Any, proxy: Proxy, call: Any, labels: list[str]
) -> None:
    data = {"failCommands": ["commitTransaction"], "errorCode": 96, "errorLabels": labels}
    database.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
    with pytest.raises(PyMongoError) as caught:
        call("first")
    assert caught.value.has_error_label("TransientTransactionError") is bool(labels)
    assert database[IDEMPOTENCY].count_documents({}) == 0
    deadline = time.monotonic() + 20
    while True:  # the injected error left the transaction open: the server gives it up within a second or so
        try:
            assert call("second") == "second"
            break
        except PyMongoError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert names(database) == ["second"]
