"""What must not outrun a commit on ``django_mongodb_backend``: records, locks, flights and tasks."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection as default
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from django_mongodb_backend.transaction import atomic
from pymongo.errors import AutoReconnect

from goscope_django import locks, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.decorators import idempotent, locked, single_flight
from goscope_django.exceptions import IdempotencyConflict, LockNotAcquired
from goscope_django.locks.decorator import _deferred
from tests.mongodb_backend.test_following import UNKNOWN, fail_commit, labelled

connection: Any = default


class Boom(Exception):
    """What the blocks of these tests raise."""


def names() -> list[str]:
    return sorted(Group.objects.values_list("name", flat=True))


def states() -> list[str]:
    return [one.state for one in runtime.adapter().idempotency.list()]


def held(key: str) -> bool:
    return locks.backend().get(key) is not None


# Idempotency


@idempotent(key="order:{n}")
def place(n: int) -> str:
    Group.objects.create(name=f"order {n}")
    return f"order {n} placed"


def test_an_order_whose_transaction_is_rolled_back_is_placed_again(store: Any) -> None:
    with suppress(Boom), atomic():
        place(n=1)
        raise Boom
    assert names() == []
    assert states() == []
    assert place(n=1) == "order 1 placed"
    assert names() == ["order 1"]
    assert place(n=1) == "order 1 placed"
    assert names() == ["order 1"]


def test_the_result_is_recorded_after_the_commit(store: Any) -> None:
    at_commit: list[list[str]] = []
    with atomic():
        transaction.on_commit(lambda: at_commit.append(states()))
        place(n=1)
        assert states() == ["in_progress"]
        with pytest.raises(IdempotencyConflict):
            place(n=1)
    assert at_commit == [["in_progress"]]
    assert states() == ["completed"]


def test_in_an_inner_block_that_fails_it_is_recorded_with_the_outer_one(store: Any) -> None:
    with atomic(), suppress(Boom), atomic():
        place(n=1)
        raise Boom
    assert (names(), states()) == (["order 1"], ["completed"])


def test_in_djangos_atomic_there_is_nothing_to_wait_for(store: Any) -> None:
    with suppress(Boom), transaction.atomic():
        place(n=1)
        assert states() == ["completed"]
        raise Boom
    assert (names(), states()) == (["order 1"], ["completed"])


def test_a_failed_commit_gives_the_claim_up(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_commit(monkeypatch, labelled(AutoReconnect("away"), "TransientTransactionError"))
    with pytest.raises(AutoReconnect), atomic():
        place(n=1)
    assert (names(), states()) == ([], [])
    assert place(n=1) == "order 1 placed"


@pytest.mark.parametrize("stored", [True, False])
def test_an_unknown_commit_leaves_the_claim_to_its_lease(
    store: Any, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    @idempotent(key="short", name="short", lease=1.5, on_conflict="wait", blocking_timeout=30)
    def work() -> str:
        Group.objects.create(name=f"work {Group.objects.count()}")
        return "done"

    fail_commit(monkeypatch, labelled(AutoReconnect("away"), UNKNOWN), first=stored)
    with pytest.raises(AutoReconnect), atomic():
        work()
    assert states() == ["in_progress"]  # neither completed nor given up
    assert names() == (["work 0"] if stored else [])
    assert work() == "done"  # after the lease, which nobody renews
    assert states() == ["completed"]


@idempotent()
def buy(request: HttpRequest) -> HttpResponse:
    Group.objects.create(name="bought")
    return HttpResponse("bought", status=201)


def buying(request: HttpRequest) -> HttpResponse:
    """A view that has its transaction around the decorated one."""
    try:
        with atomic():
            response = buy(request)
            if "fail" in request.GET:
                raise Boom
    except Boom:
        return HttpResponse("failed", status=500)
    return response


@locked("view")
def locking(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(held("view")))


urlpatterns = [path("buy/", buying), path("locking/", locking)]


@override_settings(ROOT_URLCONF=__name__)
def test_views(store: Any) -> None:
    def send(address: str) -> Any:
        return Client().post(address, "{}", "application/json", headers={"Idempotency-Key": "k"})

    assert send("/buy/?fail=1").status_code == 500
    assert (names(), states()) == ([], [])
    assert send("/buy/").status_code == 201
    again = send("/buy/")
    assert (again.status_code, again["Idempotent-Replayed"]) == (201, "true")
    assert names() == ["bought"]


@override_settings(ROOT_URLCONF=__name__)
def test_atomic_requests_is_no_transaction_here(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert Client().get("/locking/").content == b"True"
    assert not held("view")
    assert _deferred.held == {}


# Locks


@locked("stock", timeout=5, blocking=False)
def stock() -> bool:
    return held("stock")


def test_in_djangos_atomic_a_lock_is_released_at_once(store: Any) -> None:
    for _ in range(2):
        with transaction.atomic():
            assert stock()
            assert not held("stock")
            assert stock()  # under a lock of its own
        assert _deferred.held == {}


def test_the_release_waits_for_the_commit(store: Any) -> None:
    at_commit: list[bool] = []
    with atomic():
        transaction.on_commit(lambda: at_commit.append(held("stock")))
        assert stock()
        assert held("stock")
        assert stock()  # a transaction does not wait for itself
    assert at_commit == [True]
    assert not held("stock")


def test_a_rollback_releases_too(store: Any) -> None:
    with suppress(Boom), atomic():
        stock()
        with suppress(Boom), atomic():
            raise Boom
        assert held("stock")
        raise Boom
    assert not held("stock")


def test_a_failed_commit_releases_and_later_calls_take_a_lock_of_their_own(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_commit(monkeypatch, labelled(AutoReconnect("away"), "TransientTransactionError"))
    with pytest.raises(AutoReconnect), atomic():
        stock()
    assert not held("stock")
    with atomic():
        assert stock()
        assert held("stock")
    assert not held("stock")


def test_an_unknown_commit_leaves_the_lock_to_its_lease(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @locked("short", timeout=1.5, blocking=False)
    def work() -> bool:
        return held("short")

    @locked("short", blocking_timeout=30)
    def patient() -> bool:
        return held("short")

    fail_commit(monkeypatch, labelled(AutoReconnect("away"), UNKNOWN))
    with pytest.raises(AutoReconnect), atomic():
        work()
    assert held("short")
    with pytest.raises(LockNotAcquired), atomic():
        work()  # it is not held by this transaction
    assert patient()  # after the lease, which nobody renews


def test_a_lock_on_the_transaction_of_one_database(store: Any) -> None:
    @locked("one", using="default", blocking=False)
    def one() -> bool:
        return held("one")

    with atomic(using="default"):
        assert one()
        assert held("one")
    assert not held("one")


# Single flight


def test_a_flight_is_published_after_the_commit(store: Any) -> None:
    runs: list[str] = []

    @single_flight(key="flight", name="flight", blocking_timeout=30)
    def read() -> str:
        runs.append("run")
        return f"result {len(runs)}"

    results: list[str] = []
    others = [threading.Thread(target=lambda: results.append(read())) for _ in range(3)]
    with suppress(Boom), atomic():
        assert read() == "result 1"
        for thread in others:
            thread.start()
        raise Boom
    for thread in others:
        thread.join(30)
    assert "result 1" not in results  # what was rolled back reaches nobody
    assert len(results) == 3
    with atomic():
        assert read().startswith("result")


# Tasks


def test_a_task_is_completed_with_the_transaction_around_it(store: Any) -> None:
    with suppress(Boom), atomic():
        with checkpointed("import") as task:
            task.save({"at": 1})
        raise Boom
    with checkpointed("import") as task:
        assert not task.completed
        assert task.data == {"at": 1}
    with atomic(), checkpointed("second"):
        pass
    with checkpointed("second") as task:
        assert task.completed


def test_places_of_a_loop_come_back_with_a_rollback(store: Any) -> None:
    for number in range(6):
        Group.objects.create(name=f"group {number}")
    with checkpointed("loop") as task:
        loop = task.track(Group.objects.all(), every=1)
        next(loop)
        with suppress(Boom), atomic():
            next(loop)
            next(loop)
            raise Boom
        task.save()
        loop.close()  # type: ignore[attr-defined]
        raise_later = task.done
    assert raise_later is not None
    assert raise_later <= 1


def test_a_save_waits_for_the_commit_where_that_is_said(store: Any) -> None:
    with checkpointed("saving") as task:
        with suppress(Boom), atomic():
            task.save({"at": 1}, on_commit=True)
            raise Boom
        assert task.data is None
        with atomic():
            task.save({"at": 2}, on_commit=True)
        assert task.sequence == 1


def test_a_tracked_queryset_with_object_ids(store: Any) -> None:
    made = [Group.objects.create(name=f"group {number}").pk for number in range(7)]
    seen: list[Any] = []
    with suppress(Boom), checkpointed("ids") as task:
        for group in task.track(Group.objects.all(), every=1, page=2):
            seen.append(group.pk)
            if len(seen) == 4:
                raise Boom
    with checkpointed("ids") as task:
        again = [group.pk for group in task.track(Group.objects.all(), every=1, page=2)]
    assert [*seen[:3], *again] == made
