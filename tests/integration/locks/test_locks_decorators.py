"""Functions and views under a lock: each call an acquisition, whose release waits for the end of the transaction."""

# ruff: noqa: PT012 - what is tested is what leaving a block raises

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import connections, transaction
from django.test import AsyncClient, Client, TestCase, override_settings

from goscope_django import locks, runtime, signals
from goscope_django.decorators import locked
from goscope_django.exceptions import InvalidType, LockLost, LockNotAcquired
from goscope_django.locks import lock
from tests.support import lock_views
from tests.support.lock_views import held
from tests.support.locks import raw, settings_for, take_over


@pytest.fixture(params=["real", "mongomock"])
def store(request: pytest.FixtureRequest) -> Iterator[None]:
    url = request.getfixturevalue("mongo_url") if request.param == "real" else "mongomock://"
    with settings_for(url):
        runtime.adapter().ensure_indexes()
        raw().delete_many({})
        lock_views.noted.clear()
        yield
        assert locks.backend().list() == []


@locked("f", blocking_timeout=5)
def found(number: int, *, more: int = 0) -> tuple[bool, int]:
    """What it is for."""
    return held("f"), number + more


@locked(lambda number: f"f{number}", 30, blocking=False)
async def afound(number: int) -> bool:
    return await locks.backend().aget(f"f{number}") is not None


class Stock:
    @locked(lambda self, sku: f"stock:{sku}", blocking_timeout=5)
    def take(self, sku: int) -> bool:
        return held(f"stock:{sku}")

    @locked(lambda self, sku: f"stock:{sku}", blocking_timeout=5)
    async def atake(self, sku: int) -> bool:
        return await locks.backend().aget(f"stock:{sku}") is not None

    @lock("stock:all")
    def count(self) -> bool:
        return held("stock:all")


async def test_functions_and_methods(store: None) -> None:
    assert found(1, more=2) == (True, 3)
    assert not held("f")
    assert await afound(7)
    assert await locks.backend().aget("f7") is None
    assert Stock().take(3)
    assert await Stock().atake(4)
    assert Stock().count()


def test_a_decorated_function_looks_like_itself() -> None:
    assert (found.__name__, found.__doc__) == ("found", "What it is for.")
    assert list(inspect.signature(found).parameters) == ["number", "more"]
    assert inspect.iscoroutinefunction(afound)
    assert not inspect.iscoroutinefunction(found)


def test_each_call_is_an_acquisition(store: None) -> None:
    tokens: list[int] = []

    def note(token: int, **_: Any) -> None:
        tokens.append(token)

    signals.lock_acquired.connect(note)
    threads = [threading.Thread(target=found, args=(1,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signals.lock_acquired.disconnect(note)
    assert len(tokens) == 6
    assert tokens == sorted(set(tokens))


def test_a_call_in_vain(store: None) -> None:
    take_over("f7")
    with pytest.raises(LockNotAcquired):
        asyncio.run(afound(7))
    raw().delete_many({})


def test_an_error_of_the_function_is_its_own(store: None) -> None:
    @locked("e")
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not held("e")


def test_a_lock_that_was_lost_fails_the_call(store: None) -> None:
    @locked("e")
    def slow() -> int:
        take_over("e")
        return 1

    with pytest.raises(LockLost):
        slow()
    raw().delete_many({})


def test_generators_are_refused() -> None:
    with pytest.raises(InvalidType, match="generator"):

        @locked("g")
        def numbers() -> Iterator[int]:
            yield 1

    with pytest.raises(InvalidType, match="generator"):

        @lock("g")
        async def anumbers() -> Any:
            yield 1


# Transactions.


@pytest.mark.django_db(transaction=True)
def test_inside_atomic_the_release_waits_for_the_commit(store: None) -> None:
    at_commit: list[bool] = []
    with transaction.atomic():
        transaction.on_commit(lambda: at_commit.append(held("f")))
        assert found(1)[0]
        assert held("f")
    assert at_commit == [True]
    assert not held("f")


@pytest.mark.django_db(transaction=True)
def test_a_rollback_releases_too(store: None) -> None:
    with suppress(KeyError), transaction.atomic():
        found(1)
        assert held("f")
        raise KeyError
    assert not held("f")


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_that_is_rolled_back_releases_its_own(store: None) -> None:
    with transaction.atomic():
        with suppress(KeyError), transaction.atomic():
            found(1)
            raise KeyError
        assert not held("f")
        with transaction.atomic():
            found(1)
        assert held("f")
    assert not held("f")


@pytest.mark.django_db(transaction=True)
def test_a_function_that_raises_is_still_part_of_the_transaction(store: None) -> None:
    """Whoever catches its error commits what it wrote before."""

    @locked("e")
    def fail() -> None:
        raise KeyError

    with transaction.atomic():
        with pytest.raises(KeyError):
            fail()
        assert held("e")
    assert not held("e")


@pytest.mark.django_db(transaction=True)
def test_a_transaction_does_not_wait_for_itself(store: None) -> None:
    tokens: list[int] = []

    def note(token: int, **_: Any) -> None:
        tokens.append(token)

    signals.lock_acquired.connect(note)
    with transaction.atomic():
        assert [found(number)[0] for number in range(3)] == [True] * 3
        with suppress(KeyError), transaction.atomic():
            found(1)
            raise KeyError
        assert held("f")
    signals.lock_acquired.disconnect(note)
    assert len(tokens) == 1
    assert not held("f")


@pytest.fixture
def other_database(transactional_db: None) -> Iterator[str]:
    """The alias of a second SQL database."""
    connections.databases["other"] = {**connections["default"].settings_dict, "NAME": ":memory:"}
    connections["other"].connect()  # Django's test case knows only the databases of the settings, and forbids others
    yield "other"
    connections["other"].close()
    del connections["other"], connections.databases["other"]


@pytest.mark.django_db(transaction=True)
def test_a_transaction_of_another_database_that_goes_on_keeps_the_lock(store: None, other_database: str) -> None:
    in_default = locked("two", using="default")(lambda: held("two"))
    in_other = locked("two", using=other_database)(lambda: held("two"))
    with transaction.atomic(using=other_database):
        with transaction.atomic():
            assert in_default()
            assert [in_other(), in_other()] == [True, True]
        assert held("two")  # what in_other() wrote is not committed yet
    assert not held("two")
    with transaction.atomic():
        with suppress(KeyError), transaction.atomic(using=other_database):
            in_default()
            in_other()
            raise KeyError
        assert held("two")
    assert not held("two")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("robust", [True, False])
def test_where_hooks_run_at_once_the_release_is_not_left_to_the_transaction(
    store: None, monkeypatch: pytest.MonkeyPatch, robust: bool
) -> None:
    """What was released already must not count as held: later calls would run without a lock."""

    def at_once(func: Any, robust: bool = robust) -> None:
        func()

    monkeypatch.setattr(connections["default"], "on_commit", at_once)
    tokens: list[int] = []

    def note(token: int, **_: Any) -> None:
        tokens.append(token)

    signals.lock_acquired.connect(note)
    with transaction.atomic():
        assert found(1)[0]
        assert not held("f")
        assert found(2)[0]
        assert runtime_deferred() == {}
    signals.lock_acquired.disconnect(note)
    assert len(set(tokens)) == 2


@pytest.mark.django_db(transaction=True)
def test_where_the_transaction_has_ended_already_the_lock_is_released(
    store: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic():
        connections["default"].closed_in_transaction = True  # as close() leaves it, where SQLite is not in memory
        try:
            assert found(1)[0]
            assert not held("f")
            assert runtime_deferred() == {}
            assert found(2)[0]
        finally:
            connections["default"].closed_in_transaction = False
    assert not held("f")


async def test_a_function_that_answers_its_cancellation_keeps_its_answer(store: None) -> None:
    begun = asyncio.Event()

    @locked("a")
    async def work() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "as far as it came"
        raise AssertionError

    task = asyncio.ensure_future(work())
    await begun.wait()
    task.cancel()
    assert await task == "as far as it came"
    assert not held("a")


@pytest.mark.django_db(transaction=True)
def test_a_lock_lost_while_the_transaction_runs_rolls_it_back(store: None) -> None:
    with pytest.raises(LockLost), transaction.atomic():
        Group.objects.create(name="made")
        found(1)
        take_over("f")
        kept = list(runtime_deferred().values())
        assert not kept[0].is_valid()
        found(1)
    assert not Group.objects.filter(name="made").exists()
    raw().delete_many({})


def runtime_deferred() -> dict[Any, Any]:
    from goscope_django.locks.decorator import _deferred

    return {place: one.handle for place, one in _deferred.held.items()}


@pytest.mark.django_db(transaction=True)
def test_outside_atomic_of_the_database_that_counts(store: None) -> None:
    @locked("u", using="default")
    def counts() -> None:
        pass

    with transaction.atomic():
        counts()
        assert held("u")
    assert not held("u")
    with connections["default"].cursor():
        counts()
    assert not held("u")


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_sees_no_transaction(store: None) -> None:
    """A limit that the documentation names: Django's connections belong to synchronous code."""
    with transaction.atomic():
        assert async_to_sync(afound)(7)
        assert not held("f7")
    assert asyncio.run(sync_in_a_coroutine())


async def sync_in_a_coroutine() -> bool:
    def work() -> bool:
        with transaction.atomic():
            found(1)
            inside = held("f")
        return inside and not held("f")

    return await sync_to_async(work)()


class InATestCase(TestCase):
    def test_without_a_transaction_of_ones_own(self) -> None:
        assert found(1)[0]
        assert not held("f")
        assert found(1)[0]

    def test_with_one(self) -> None:
        with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
            assert found(1)[0]
            assert found(2)[0]
            assert held("f")
        assert not held("f")


# Views.

SYNC = ["function", "class", "api-function", "api"]


def test_a_plain_method_of_an_asynchronous_view_stays_plain(store: None) -> None:
    assert lock_views.AsyncClassBased().helper() is True
    assert not held("helper")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("view", [*SYNC, "method?n=7", "coroutine", "async-class"])
@override_settings(ROOT_URLCONF="tests.support.lock_views")
def test_views(store: None, view: str) -> None:
    response = Client().get(f"/{view}")
    assert response.status_code == 200
    assert lock_views.noted["inside"] is True
    assert lock_views.noted.get("at_commit", True) is True
    assert not held("view")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("view", ["function", "coroutine", "async-class"])
@override_settings(ROOT_URLCONF="tests.support.lock_views")
async def test_views_under_asgi(store: None, view: str) -> None:
    response = await AsyncClient().get(f"/{view}")
    assert response.status_code == 200
    assert lock_views.noted["inside"] is True
    assert await locks.backend().aget("view") is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("view", ["foreign", "ours"])
@override_settings(ROOT_URLCONF="tests.support.lock_views")
async def test_an_asynchronous_dispatch_in_another_wrapper(store: None, view: str) -> None:
    """Taken for synchronous, the second of them would wait for the lock in the event loop that the first one needs."""
    responses = await asyncio.wait_for(asyncio.gather(*(AsyncClient().get(f"/{view}") for _ in range(4))), 30)
    assert [response.status_code for response in responses] == [200] * 4
    assert lock_views.noted["inside"] is True
    assert await locks.backend().aget("view") is None


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    settings = connections["default"].settings_dict
    before, settings["ATOMIC_REQUESTS"] = settings.get("ATOMIC_REQUESTS", False), True
    yield
    settings["ATOMIC_REQUESTS"] = before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("view", SYNC)
@override_settings(ROOT_URLCONF="tests.support.lock_views")
def test_atomic_requests(store: None, atomic_requests: None, view: str) -> None:
    response = Client().get(f"/{view}")
    assert response.status_code == 200
    assert lock_views.noted == {"inside": True, "at_commit": True}
    assert not held("view")


@pytest.mark.django_db(transaction=True)
@override_settings(ROOT_URLCONF="tests.support.lock_views")
def test_atomic_requests_that_fail(store: None, atomic_requests: None) -> None:
    response = Client(raise_request_exception=False).get("/function?fail")
    assert response.status_code == 500
    assert lock_views.noted == {"inside": True}
    assert not Group.objects.exists()
    assert not held("view")


@pytest.mark.django_db(transaction=True)
@override_settings(ROOT_URLCONF="tests.support.lock_views")
def test_a_commit_that_fails(store: None, atomic_requests: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import IntegrityError

    def fail(self: object) -> None:
        raise IntegrityError("deferred constraint")

    monkeypatch.setattr(type(connections["default"]), "_commit", fail)
    response = Client(raise_request_exception=False).get("/function")
    monkeypatch.undo()
    assert response.status_code == 500
    assert lock_views.noted == {"inside": True}
    assert not held("view")
