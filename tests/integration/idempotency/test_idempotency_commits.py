"""What must not outrun a commit: completion inside ``atomic()`` and under ``ATOMIC_REQUESTS``, on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import IntegrityError, connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from goscope_django import runtime, signals
from goscope_django.exceptions import IdempotencyConflict, StoreUnavailable
from goscope_django.idempotency import idempotent
from tests.support.transactions import transaction

pytestmark = pytest.mark.django_db(transaction=True)
ways: list[str] = []
states: list[list[str]] = []


def _states() -> list[str]:
    return [one.state for one in runtime.adapter().idempotency.list()]


@idempotent()
def buy(request: HttpRequest) -> HttpResponse:
    """Writes a row and ends in the way that is next in ``ways``."""
    way = ways.pop(0)
    if way == "broken-commit":
        # SQLite, like PostgreSQL, looks at the foreign keys at the end: it is the commit that fails.
        Permission.objects.create(name="broken", codename="broken", content_type_id=999_999)
    Group.objects.create(name=f"{way}-{Group.objects.count()}")
    transaction.on_commit(lambda: states.append(_states()))
    if way == "raise":
        raise RuntimeError
    if way == "rollback":
        transaction.set_rollback(True)
    if way == "savepoint":
        try:
            with transaction.atomic():
                raise KeyError
        except KeyError:
            pass
    if way == "stolen":
        attempt = request.idempotency  # type: ignore[attr-defined]
        provider = runtime.adapter().idempotency
        assert provider.abandon(attempt.name, attempt.token)
        claim = provider.begin(attempt.name, 60_000)
        assert provider.complete(attempt.name, claim.token or 0, {"dropped": "size"})
    return HttpResponse(way, status=500 if way == "500" else 201)


urlpatterns = [path("buy/", buy)]


@pytest.fixture(params=["mongomock", "mongod"], autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(GOSCOPE={"TEST": {"URL": url}}, ROOT_URLCONF=__name__):
        adapter = runtime.adapter()
        adapter.wipe()
        ways.clear()
        states.clear()
        yield adapter


@pytest.fixture
def _atomic_requests() -> Iterator[None]:
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connection.settings_dict["ATOMIC_REQUESTS"] = False


def send() -> Any:
    client = Client(raise_request_exception=False)
    return client.post("/buy/", "{}", "application/json", headers={"Idempotency-Key": "k"})


@pytest.mark.sql
@pytest.mark.usefixtures("_atomic_requests")
class TestAtomicRequests:
    def test_the_result_is_there_after_the_commit_and_not_before(self) -> None:
        ways.append("buy")
        assert send().status_code == 201
        assert states == [["in_progress"]]  # at the commit, before our own hook
        assert _states() == ["completed"]
        assert send()["Idempotent-Replayed"] == "true"
        assert Group.objects.count() == 1

    def test_a_savepoint_that_is_rolled_back_inside_changes_nothing(self) -> None:
        ways.append("savepoint")
        send()
        assert send()["Idempotent-Replayed"] == "true"

    @pytest.mark.parametrize(
        ("way", "status"), [("broken-commit", 500), ("raise", 500), ("rollback", 201), ("500", 500)]
    )
    def test_without_a_commit_a_repeat_runs_at_once(self, way: str, status: int) -> None:
        ways.extend([way, "buy"])
        first = send()
        assert first.status_code == status
        assert _states() == []
        again = send()
        assert (again.status_code, again.content) == (201, b"buy")
        assert "Idempotent-Replayed" not in again
        assert Group.objects.filter(name__startswith="buy").count() == 1
        # A 500 that the view returned is committed by Django, only not kept by us.
        assert Group.objects.count() == (2 if way == "500" else 1)
        assert send()["Idempotent-Replayed"] == "true"

    def test_a_claim_that_was_taken_over_is_not_completed_by_the_first(self, store: Any) -> None:
        lost: list[Any] = []

        def hear(sender: Any, key: str, token: int, **_: Any) -> None:
            lost.append(token)

        signals.idempotent_lost.connect(hear)
        ways.append("stolen")
        try:
            first = send()
        finally:
            signals.idempotent_lost.disconnect(hear)
        assert (first.status_code, first["Idempotent-Stored"]) == (201, "false")
        (info,) = store.idempotency.list()
        assert store.idempotency.get(info.key).value == {"dropped": "size"}
        assert len(lost) == 1
        assert lost[0] < info.token
        assert send().status_code == 409

    def test_a_server_that_is_away_at_the_commit_takes_nothing_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any, **__: Any) -> bool:
            raise StoreUnavailable("away")

        monkeypatch.setattr(runtime.adapter().idempotency, "complete", away)
        ways.append("buy")
        first = send()
        assert (first.status_code, first["Idempotent-Stored"]) == (201, "false")
        assert Group.objects.count() == 1


class TestAtomic:
    def test_a_view_without_a_transaction_completes_at_once(self) -> None:
        ways.append("buy")
        send()
        assert _states() == ["completed"]

    def test_a_function_is_complete_with_the_transaction_around_it(self) -> None:
        @idempotent(key="k", name="a_function_is_complete.work")
        def work() -> str:
            Group.objects.create(name="work")
            return "done"

        with transaction.atomic():
            assert work() == "done"
            assert _states() == ["in_progress"]
            with pytest.raises(IdempotencyConflict):
                work()
        assert _states() == ["completed"]
        assert work() == "done"

    @pytest.mark.sql
    def test_a_function_whose_transaction_is_rolled_back_runs_again(self) -> None:
        runs: list[int] = []

        @idempotent(key="k", name="a_function_whose_transaction.work")
        def work() -> None:
            runs.append(1)

        def broken() -> None:
            work()
            Permission.objects.create(name="broken", codename="broken", content_type_id=999_999)

        with pytest.raises(IntegrityError):
            transaction.atomic(broken)()
        assert _states() == []
        work()
        assert len(runs) == 2

    def test_a_transaction_inside_the_function_is_its_own(self) -> None:
        @idempotent(key="k", name="a_transaction_inside_the.work")
        def work() -> None:
            with transaction.atomic():
                Group.objects.create(name="work")

        work()
        assert _states() == ["completed"]
