"""``idempotent`` on functions, methods and coroutines: over a real server and mongomock."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.http import HttpRequest
from django.test import RequestFactory, override_settings

from goscope_django import runtime
from goscope_django.core.flow import ask
from goscope_django.exceptions import (
    ConfigurationError,
    IdempotencyConflict,
    IdempotencyError,
    IdempotencyMismatch,
    InvalidType,
    InvalidValue,
    StoreUnavailable,
)
from goscope_django.idempotency import Attempt, current, idempotent

COLOURS = ["sync", "async"]


@pytest.fixture(params=["mongomock", "mongod"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(GOSCOPE={"TEST": {"URL": url}}):
        adapter = runtime.adapter()
        adapter.wipe()
        yield adapter


@pytest.fixture(params=COLOURS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_mode(mode: str, func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``func`` made idempotent sync or async; to be called like a plain function."""
    options.setdefault("name", func.__qualname__)  # that of a function inside its test
    if mode == "sync":
        return idempotent(**options)(func)

    async def twin(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    twin.__signature__ = inspect.signature(func)  # type: ignore[attr-defined]
    twin.__qualname__ = func.__qualname__
    decorated = idempotent(**options)(twin)
    assert inspect.iscoroutinefunction(decorated)
    return lambda *args, **kwargs: asyncio.run(decorated(*args, **kwargs))


VALUES: list[Any] = [
    *(None, False, 0, "", [], {"a": [1, None]}, "text", Decimal("1.50"), date(2026, 11, 24), (1, 2), {3}),
    *(datetime(2026, 11, 24, 10, 0, 0, 1_000, UTC), {"at": [datetime(2026, 11, 24, tzinfo=UTC)]}),
    *(UUID(int=7), timedelta(seconds=1), b"bytes", 2**70, {"dropped": "by the user"}, {"result": 1}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_result_is_returned_again(store: Any, mode: str, value: Any) -> None:
    runs: list[int] = []

    def work(number: int) -> Any:
        runs.append(number)
        return value

    decorated = in_mode(mode, work, key="work:{number}")
    for _ in range(3):
        found = decorated(1)
        assert found == value
        assert type(found) is type(value)
        assert repr(found) == repr(value)
    assert runs == [1]
    decorated(2)
    assert runs == [1, 2]


def test_an_exception_is_no_result(store: Any, mode: str) -> None:
    runs: list[int] = []

    def work() -> str:
        runs.append(1)
        if len(runs) < 3:
            raise KeyError("not yet")
        return "done"

    decorated = in_mode(mode, work, key="k")
    for _ in range(2):
        with pytest.raises(KeyError, match="not yet"):
            decorated()
        assert store.idempotency.list() == []
    assert [decorated(), decorated()] == ["done", "done"]
    assert len(runs) == 3


def test_a_function_may_raise_stop_iteration(store: Any) -> None:
    runs = []

    @idempotent(key="k", name="a_function_may_raise.work")
    def work() -> None:
        runs.append(1)
        raise StopIteration(3)

    for _ in range(2):
        with pytest.raises(StopIteration) as raised:
            work()
        assert raised.value.value == 3
    assert len(runs) == 2, "an exception is no result"


def test_cancellation_gives_the_claim_up(store: Any) -> None:
    @idempotent(key="k", name="cancellation_gives_the_claim.work")
    async def work(hang: bool) -> str:
        if hang:
            await asyncio.sleep(60)
        return "done"

    async def scenario() -> str:
        task = asyncio.create_task(work(True))
        while not await store.idempotency.alist():  # noqa: ASYNC110 - the task does not tell
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await work(False)

    assert asyncio.run(scenario()) == "done"


def test_a_coroutine_that_is_closed_does_not_keep_its_claim(request: pytest.FixtureRequest) -> None:
    attempts: list[Any] = []

    @idempotent(key="k", lease=0.3, name="a_coroutine_that_is.work")
    async def work(hang: bool) -> str:
        attempts.append(current())
        if hang:
            await asyncio.sleep(60)
        return "done"

    async def scenario() -> None:
        closed: Any = work(True)
        while not attempts:
            closed.send(None)
        contextvars.Context().run(closed.close)
        assert not attempts[0]._renewal.active
        while True:
            try:
                assert await work(False) == "done"
            except IdempotencyConflict:
                await asyncio.sleep(0.05)
            else:
                return

    with override_settings(GOSCOPE={"TEST": {"URL": "mongomock://"}}):
        runtime.adapter().wipe()
        asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("times", [1, 2])
def test_cancellation_while_the_result_is_being_stored_does_not_lose_it(
    store: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    storing = store.idempotency.acomplete
    begun = asyncio.Event()

    async def slowly(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        await asyncio.sleep(0.05)
        return await storing(*args, **kwargs)

    @idempotent(key="k", name="cancellation_while_the_result.work")
    async def work() -> str:
        runs.append(1)
        return "done"

    async def scenario() -> None:
        task = asyncio.create_task(work())
        await begun.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [one.state for one in await store.idempotency.alist()] == ["completed"]
        assert await work() == "done"

    monkeypatch.setattr(store.idempotency, "acomplete", slowly)
    asyncio.run(scenario())
    assert runs == [1]


def test_concurrently_one_runs_and_the_others_are_told(store: Any, mode: str) -> None:
    entered, gate = threading.Event(), threading.Event()

    def work() -> str:
        entered.set()
        assert gate.wait(20)
        return "done"

    decorated = in_mode(mode, work, key="k")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(decorated)
        assert entered.wait(10)
        with pytest.raises(IdempotencyConflict) as caught:
            decorated()
        gate.set()
        assert first.result(10) == "done"
    assert caught.value.key == "k"
    assert 0 < caught.value.retry_after <= 30


def test_who_waits_gets_the_result(store: Any, mode: str) -> None:
    entered, gate = threading.Event(), threading.Event()
    runs: list[int] = []

    def work() -> object:
        runs.append(1)
        entered.set()
        assert gate.wait(20)
        return None

    decorated = in_mode(mode, work, key="k", on_conflict="wait", blocking_timeout=15)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(decorated)
        assert entered.wait(10)
        others = [pool.submit(decorated) for _ in range(3)]
        threading.Timer(0.2, gate.set).start()
        assert [one.result(15) for one in (first, *others)] == [None] * 4
    assert runs == [1]


def test_who_waits_takes_over_from_one_that_failed(store: Any, mode: str) -> None:
    entered, gate = threading.Event(), threading.Event()
    runs: list[int] = []

    def work() -> str:
        runs.append(1)
        if len(runs) == 1:
            entered.set()
            assert gate.wait(20)
            raise KeyError
        return "second"

    decorated = in_mode(mode, work, key="k", on_conflict="wait", blocking_timeout=15)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(decorated)
        assert entered.wait(10)
        second = pool.submit(decorated)
        threading.Timer(0.2, gate.set).start()
        assert second.result(15) == "second"
        with pytest.raises(KeyError):
            first.result(15)


@pytest.mark.parametrize(
    "fingerprint", [True, lambda amount, note="": amount, lambda amount, note="": {"amount": amount}]
)
def test_other_arguments_under_one_key(store: Any, mode: str, fingerprint: Any) -> None:
    def charge(amount: str, note: str = "") -> str:
        return amount

    decorated = in_mode(mode, charge, key="charge", fingerprint=fingerprint)
    assert decorated("10") == decorated(amount="10") == "10"
    with pytest.raises(IdempotencyMismatch):
        decorated("20")


def test_without_a_fingerprint_the_key_alone_counts(store: Any, mode: str) -> None:
    decorated = in_mode(mode, lambda amount: amount, key="charge")
    assert [decorated(1), decorated(2)] == [1, 1]


def test_two_functions_with_one_key_are_two(store: Any) -> None:
    @idempotent(key="k", name="two_functions_with_one.one")
    def one() -> int:
        return 1

    @idempotent(key="k", name="two_functions_with_one.two")
    def two() -> int:
        return 2

    assert [one(), two(), one()] == [1, 2, 1]


def test_a_method(store: Any) -> None:
    class Till:
        runs = 0

        @idempotent(key=lambda self, order: f"order:{order}", name="a_method.charge")
        def charge(self, order: int) -> int:
            self.runs += 1
            return self.runs

        @idempotent(key="async:{order}", name="a_method.acharge")
        async def acharge(self, order: int) -> int:
            return self.runs

    till = Till()
    assert [till.charge(7), till.charge(order=7), till.charge(8)] == [1, 1, 2]
    assert asyncio.run(till.acharge(7)) == 2


def test_the_attempt_is_there_while_the_work_runs(store: Any, mode: str) -> None:
    def work() -> tuple[str, int]:
        attempt = current()
        assert isinstance(attempt, Attempt)
        assert not attempt.lost
        return attempt.key, attempt.token

    key, token = in_mode(mode, work, key="k")()
    assert key == "k"
    (info,) = store.idempotency.list()
    assert info.token == token
    assert current() is None


def test_a_result_that_can_not_be_kept_is_done_all_the_same(store: Any, mode: str) -> None:
    runs: list[int] = []

    def work() -> Any:
        runs.append(1)
        return threading.Lock()

    decorated = in_mode(mode, work, key="k")
    assert decorated() is not None
    with pytest.raises(IdempotencyError, match="not kept"):
        decorated()
    assert runs == [1]


def test_nor_is_it_lost_to_the_caller_if_the_server_goes_away_then(
    store: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(name: str, token: int, value: Any, **_: Any) -> bool:
        if "dropped" in value:
            raise StoreUnavailable("away")
        raise TypeError("can't be stored")

    async def acomplete(*args: Any, **more: Any) -> bool:
        return complete(*args, **more)

    monkeypatch.setattr(store.idempotency, "complete", complete)
    monkeypatch.setattr(store.idempotency, "acomplete", acomplete)
    assert in_mode(mode, lambda: "done", key="k")() == "done"


def test_a_result_over_the_limit_of_a_document(store: Any, mode: str, request: pytest.FixtureRequest) -> None:
    if "mongomock" in request.node.callspec.id:
        pytest.skip("mongomock: it knows no limit for a document's size")
    decorated = in_mode(mode, lambda: b"x" * (16 * 1024 * 1024), key="k")
    assert len(decorated()) == 16 * 1024 * 1024
    with pytest.raises(IdempotencyError, match="not kept"):
        decorated()


def test_a_damaged_result_is_done_all_the_same(store: Any, mode: str) -> None:
    decorated = in_mode(mode, lambda: 1, key="k")
    decorated()
    damage = {"$set": {"value": {"__goscope__": 99}}}
    store.store.run(lambda clock: ask("go_goscope_idempotency", "update_many", {}, damage))
    with pytest.raises(IdempotencyError, match="read"):
        decorated()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, InvalidValue),
        ({"timeout": True}, InvalidType),
        ({"required": "no"}, InvalidType),
        ({"timeout": float("nan")}, InvalidValue),
        ({"timeout": "1"}, InvalidType),
        ({"lease": -1}, InvalidValue),
        ({"lease": "soon"}, InvalidType),
        ({"blocking_timeout": -1}, InvalidValue),
        ({"key": 5}, InvalidType),
        ({"fingerprint": "x"}, InvalidType),
        ({"on_error": "explode"}, ConfigurationError),
        ({"on_conflict": "explode"}, InvalidValue),
    ],
)
def test_bad_options_are_told_when_it_is_decorated(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        idempotent(**options)


@pytest.mark.parametrize("key", [None, lambda: None, lambda: 5])
def test_a_function_needs_a_key(store: Any, mode: str, key: Any) -> None:
    decorated = in_mode(mode, lambda: 1, key=key)
    with pytest.raises(InvalidType, match="key"):
        decorated()


def test_no_transaction_on_mongomock(store: Any, request: pytest.FixtureRequest) -> None:
    if "mongod]" in request.node.name:
        pytest.skip("this is about mongomock")

    @idempotent(key="k", name="no_transaction_on_mongomock.work")
    def work() -> None:
        attempt = current()
        assert attempt
        with attempt.transaction():
            raise AssertionError("unreachable")

    with pytest.raises(ConfigurationError, match="transactions"):
        work()
    assert store.idempotency.list() == []


def test_an_object_that_can_be_called_is_named_by_its_class(store: Any) -> None:
    class Charge:
        runs = 0

        def __call__(self, order: int) -> int:
            self.runs += 1
            return order

    charge = Charge()
    decorated = idempotent(key="{order}", name="an_object_that_can")(charge)
    assert [decorated(5), decorated(5)] == [5, 5]
    assert charge.runs == 1
    with pytest.raises(InvalidType, match="name"):
        idempotent(key="k", name="an_object_that_can")(partial(charge, 5))


def test_it_keeps_name_and_documentation() -> None:
    @idempotent(key="k", name="it_keeps_name_and.work")
    def work(number: int) -> int:
        """What it does."""
        return number

    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert list(inspect.signature(work).parameters) == ["number"]


@pytest.mark.parametrize("value", [{"paid": 5}, (201, {"paid": 5}), None])
def test_a_view_whose_result_others_make_a_response_of_is_idempotent_too(
    store: Any, mode: str, value: Any, rf: RequestFactory
) -> None:
    runs: list[int] = []

    def pay(request: HttpRequest) -> Any:
        runs.append(1)
        return value

    decorated = in_mode(mode, pay)
    for _ in range(2):
        assert decorated(rf.post("/pay/", {"a": 1}, headers={"Idempotency-Key": "k"})) == value
    assert runs == [1]
    other = decorated(rf.post("/pay/", {"a": 2}, headers={"Idempotency-Key": "k"}))
    assert other.status_code == 422


def test_a_function_that_only_makes_a_coroutine_is_refused_and_nothing_recorded(store: Any) -> None:
    async def work() -> None:
        raise AssertionError("it never runs")

    @idempotent(key="k", name="a_function_that_only.makes")
    def makes() -> Any:
        return work()

    with pytest.raises(InvalidType, match="coroutine"):
        makes()
    assert store.idempotency.list() == []


def test_the_work_does_not_begin_under_a_claim_that_has_ended_already(
    store: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to ``begin`` comes after the end of the lease: somebody else may run the work by then."""
    provider, runs = store.idempotency, []
    begin = provider.begin

    def late(*args: Any, **more: Any) -> Any:
        claim = begin(*args, **more)
        time.sleep(0.35)
        return claim

    async def alate(*args: Any, **more: Any) -> Any:
        return late(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(provider, "begin", late)
        patch.setattr(provider, "abegin", alate)
        with pytest.raises(IdempotencyConflict):
            in_mode(mode, lambda: runs.append(1), key="k", lease=0.3)()
    assert runs == []
    in_mode(mode, lambda: runs.append(1), key="k", lease=0.3)()
    assert runs == [1], "and the next call need not wait"
