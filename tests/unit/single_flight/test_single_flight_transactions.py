"""A result never outruns the commit of the transaction in which it was made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, TestCase, override_settings
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import single_flight
from tests.support.flights import Gate, in_the_air, roles, wait_until, waiting
from tests.support.transactions import transaction

rf = RequestFactory()


@pytest.fixture(autouse=True)
def _empty(goscope: object) -> Iterator[None]:
    yield
    assert not single_flight_group.group._entries
    assert not single_flight_group.group._undecided
    assert not in_the_air()


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def follower(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A caller that is waiting for the one who leads."""
    before = waiting()
    started = in_thread(call)
    wait_until(lambda: waiting() == before + 1)
    return started


@pytest.mark.sql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("savepoint", [False, True])
def test_the_result_is_published_by_the_commit(savepoint: bool) -> None:
    gate = Gate()

    @single_flight(key="tx", name="the_result_is_published.value")
    def value() -> int:
        gate.hold()
        Group.objects.create(name=f"group-{gate.entered}")
        return gate.entered

    may_commit = threading.Event()
    returned = threading.Event()

    def leader() -> int:
        with transaction.atomic():
            with transaction.atomic(savepoint=savepoint):
                found = value()
            returned.set()
            assert may_commit.wait(20)
            return found

    first, results = in_thread(leader)
    wait_until(lambda: gate.inside == 1)
    second, others = follower(value)
    gate.open.set()
    assert returned.wait(20)
    assert len(in_the_air()) == 1, "still in the air"
    assert not others
    may_commit.set()
    first.join(20)
    second.join(20)
    assert (results, others) == ([1], [1])
    assert gate.entered == 1


@pytest.mark.django_db(transaction=True)
def test_what_the_leader_does_to_its_value_before_the_commit_is_its_own() -> None:
    gate = Gate()

    @single_flight(key="tx", name="what_the_leader_does.value")
    def value() -> list[int]:
        gate.hold()
        return [1]

    def leader() -> list[int]:
        with transaction.atomic():
            found = value()
            found.append(2)
            return found

    first, results = in_thread(leader)
    wait_until(lambda: gate.inside == 1)
    second, others = follower(value)
    gate.open.set()
    first.join(20)
    second.join(20)
    assert (results, others) == ([[1, 2]], [[1]])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "inner", [pytest.param(False, id="transaction"), pytest.param(True, id="savepoint", marks=pytest.mark.sql)]
)
def test_after_a_rollback_a_waiter_runs_it(inner: bool) -> None:
    gate = Gate()

    @single_flight(key="tx", name="after_a_rollback_a.value")
    def value() -> int:
        gate.hold()
        return gate.entered

    def leader() -> int:
        try:
            with transaction.atomic():
                if not inner:
                    value()
                    raise RuntimeError
                try:
                    with transaction.atomic():
                        value()
                        raise RuntimeError
                except RuntimeError:
                    return 0
        except RuntimeError:
            return 0
        return -1

    first, results = in_thread(leader)
    wait_until(lambda: gate.inside == 1)
    second, others = follower(value)
    gate.open.set()
    first.join(20)
    second.join(20)
    assert (results, others) == ([0], [2])


@pytest.mark.django_db(transaction=True)
def test_the_same_call_in_the_same_transaction_does_not_wait_for_its_own_commit() -> None:
    runs = []

    @single_flight(
        key="tx",
        blocking_timeout=3600,
        name="the_same_call_in.value",
    )
    def value() -> int:
        runs.append(1)
        return len(runs)

    with transaction.atomic():
        assert [value(), value()] == [1, 2]
    assert value() == 3


@pytest.mark.django_db(transaction=True)
def test_an_exception_need_not_wait() -> None:
    gate = Gate()

    @single_flight(key="tx", name="an_exception_need_not.value")
    def value() -> int:
        gate.hold()
        raise ValueError("no")

    def leader() -> None:
        with transaction.atomic():
            value()

    first, results = in_thread(leader)
    wait_until(lambda: gate.inside == 1)
    second, others = follower(value)
    gate.open.set()
    first.join(20)
    second.join(20)
    assert [type(one) for one in (*results, *others)] == [ValueError, ValueError]
    assert gate.entered == 1


gate = Gate()


@single_flight()
def report(request: HttpRequest) -> HttpResponse:
    gate.hold()
    Group.objects.get_or_create(name="report")
    return HttpResponse("done")


@single_flight()
@api_view(["GET"])
def missing(request: Request) -> Response:
    gate.hold()
    raise NotFound("nothing here")


urlpatterns = [path("report/", report), path("missing/", missing)]


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from django.db import connections

    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    with override_settings(ROOT_URLCONF=__name__):
        yield


def get(path: str) -> Callable[[], HttpResponse]:
    def call() -> HttpResponse:
        try:
            response: Any = Client().get(path)
            return response  # type: ignore[no-any-return]
        finally:
            connection.close()

    return call


@pytest.mark.sql
@pytest.mark.django_db(transaction=True)
def test_with_atomic_requests_the_view_runs_once(atomic_requests: None) -> None:
    global gate
    gate = Gate()
    found = gate.together([get("/report/")] * 4)
    assert gate.entered == 1
    assert roles(found) == ["follower"] * 3 + ["leader"]
    assert Group.objects.filter(name="report").count() == 1


@pytest.mark.sql
@pytest.mark.django_db(transaction=True)
def test_with_atomic_requests_a_rest_error_is_shared_though_it_rolls_back(atomic_requests: None) -> None:
    global gate
    gate = Gate()
    found = gate.together([get("/missing/")] * 4)
    assert [response.status_code for response in found] == [404] * 4
    assert gate.entered == 1


class InTestCase(TestCase):
    """Django's own test case wraps each test in a transaction that is never committed."""

    def test_the_transaction_of_a_test_does_not_keep_a_result_back(self) -> None:
        runs = []

        @single_flight(
            key="testcase",
            blocking_timeout=3600,
            name="the_transaction_of_a.value",
        )
        def value() -> int:
            runs.append(1)
            return len(runs)

        assert [value(), value()] == [1, 2]
