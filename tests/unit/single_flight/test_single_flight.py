"""Single flight inside one process, sync and async: who runs, who shares what, and who never does."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, update_wrapper
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory, override_settings
from django.urls import ResolverMatch
from django.utils.decorators import method_decorator
from django.views import View

from goscope_django.exceptions import GoscopeError, InvalidType, InvalidValue, RemoteError, StoreUnavailable
from goscope_django.mongodb.single_flight.values import Terms
from goscope_django.process import outage
from goscope_django.signals import degraded, recovered
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import plan as single_flight_plan
from goscope_django.single_flight import policy as single_flight_policy
from goscope_django.single_flight import single_flight
from goscope_django.single_flight.plan import flights
from tests.support.flights import Gate, await_until, in_the_air, roles, wait_until, waiting

rf = RequestFactory()
AWAY = {"TEST": {"URL": "mongodb://127.0.0.1:1/never?serverSelectionTimeoutMS=100"}}


@pytest.fixture(autouse=True)
def _empty(goscope: object) -> Iterator[None]:
    outage._outages.pop("single_flight", None)
    yield
    outage._outages.pop("single_flight", None)
    assert not single_flight_group.group._entries, "somebody was left behind"
    assert not in_the_air(), "a flight was left in the air"


def same(gate: Gate, call: Callable[[], Any], number: int) -> list[Any]:
    return gate.together([call] * number)


# Who runs, and what is shared


def test_threads_with_the_same_request_run_the_view_once() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        response = JsonResponse({"name": "é"}, status=203, headers={"X-Own": "1"})
        response.xframe_options_exempt = True
        return response

    responses = same(gate, lambda: view(rf.get("/a?b=1")), 8)
    assert gate.entered == 1
    assert roles(responses) == ["follower"] * 7 + ["leader"]
    for response in responses:
        assert (response.status_code, response.content, response["X-Own"]) == (203, b'{"name": "\\u00e9"}', "1")
        assert response["Content-Type"] == "application/json"
        assert response.xframe_options_exempt
    assert len({id(response) for response in responses}) == 8, "middleware changes each response for itself"


async def test_tasks_with_the_same_request_run_the_view_once() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        await gate.ahold()
        return HttpResponse("once", headers={"X-Own": "1"})

    responses = await gate.atogether([lambda: view(rf.get("/a"))] * 8)
    assert gate.entered == 1
    assert roles(responses) == ["follower"] * 7 + ["leader"]
    assert {response.content for response in responses} == {b"once"}


def test_a_request_that_begins_after_the_end_runs_the_view_anew() -> None:
    runs = []

    @single_flight(linger=60)
    def view(request: HttpRequest) -> HttpResponse:
        runs.append(1)
        return HttpResponse(str(len(runs)))

    assert [view(rf.get("/again")).content for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 3),
        KeyError("name"),
        Http404("gone"),
        PermissionDenied("not you"),
        StoreUnavailable("away"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        OSError(2, "no such file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_shared_and_the_function_is_not_run_once_per_waiter(error: Exception) -> None:
    gate = Gate()

    @single_flight(key="fails", name="an_exception_is_shared.fails")
    def fails() -> None:
        gate.hold()
        raise error

    caught = same(gate, fails, 6)
    assert gate.entered == 1
    for one in caught:
        assert type(one) is type(error)
        assert (one.args, str(one)) == (error.args, str(error))
    assert sum(one is error for one in caught) == 1, "each raises an exception of its own"


async def test_tasks_share_an_exception() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        await gate.ahold()
        raise Http404("gone")

    caught = await gate.atogether([lambda: view(rf.get("/a"))] * 5)
    assert gate.entered == 1
    assert [type(one) for one in caught] == [Http404] * 5


def test_an_exception_of_ones_own_class_keeps_its_nearest_known_base() -> None:
    gate = Gate()

    class NotFoundHere(Http404):
        def __init__(self, shelf: object, place: int) -> None:
            super().__init__(f"nothing at {place}")
            self.place = place

    @single_flight(key="own", name="an_exception_of_ones.fails")
    def fails() -> None:
        gate.hold()
        raise NotFoundHere(object(), 7)

    caught = same(gate, fails, 3)
    assert gate.entered == 1
    remote = [one for one in caught if isinstance(one, RemoteError)]
    assert len(remote) == 2
    for one in remote:
        assert isinstance(one, Http404)
        assert str(one) == "nothing at 7"
        assert one.error_type.endswith("NotFoundHere")


def test_values_of_any_type_are_shared_and_not_aliased() -> None:
    gate = Gate()

    @single_flight(key=lambda number, **_: f"value-{number}", name="values_of_any_type.value")
    def value(number: int, *, other: int = 0) -> dict[str, Any]:
        gate.hold()
        return {"number": number, "tuple": (1, {2}), "wait": timedelta(seconds=1), "list": [1]}

    found = same(gate, lambda: value(3), 4)
    assert gate.entered == 1
    for one in found:
        assert one == {"number": 3, "tuple": (1, {2}), "wait": timedelta(seconds=1), "list": [1]}
        one["list"].append(2)
        assert one["list"] == [1, 2]


def test_what_can_not_be_stored_is_not_shared() -> None:
    gate = Gate()

    @single_flight(key="lock", name="what_can_not_be.value")
    def value() -> Any:
        gate.hold()
        return threading.Lock()

    found = same(gate, value, 3)
    assert gate.entered == 3
    assert len({id(one) for one in found}) == 3


def test_two_functions_with_one_key_share_nothing() -> None:
    gate = Gate()

    @single_flight(key="7", name="two_functions_with_one.price")
    def price() -> str:
        gate.hold()
        return "price"

    @single_flight(key="7", name="two_functions_with_one.stock")
    def stock() -> str:
        gate.hold()
        return "stock"

    assert gate.together([price, stock, price, stock]) == ["price", "stock", "price", "stock"]
    assert gate.entered == 2


def test_a_key_of_none_means_not_to_share_this_call() -> None:
    gate = Gate()

    @single_flight(key=lambda number: None, name="a_key_of_none.value")
    def value(number: int) -> int:
        gate.hold()
        return number

    assert same(gate, lambda: value(1), 3) == [1, 1, 1]
    assert gate.entered == 3


def test_a_function_that_calls_itself_does_not_wait_for_itself() -> None:
    @single_flight(key="same", blocking_timeout=3600, name="a_function_that_calls.down")
    def down(number: int) -> int:
        return number if number == 0 else down(number - 1)

    assert down(3) == 0


GATE = Gate()
LAMBDAS: list[Any] = [lambda: [GATE.hold(), 1][1], lambda: [GATE.hold(), 2][1]]  # type: ignore[func-returns-value]


def test_two_functions_without_a_name_never_share() -> None:
    decorate = single_flight(key="k")
    assert GATE.together([decorate(one) for one in LAMBDAS]) == [1, 2]
    for nameless in (partial(int, "1"), partial(int, "2")):
        with pytest.raises(InvalidType, match="name"):
            single_flight(key="k")(nameless)


def test_a_partial_that_was_given_a_name_may_be_shared() -> None:
    gate = Gate()

    def add(one: int, other: int) -> int:
        gate.hold()
        return one + other

    three = single_flight(key="three", name="a_partial_that_was")(update_wrapper(partial(add, 1), add))
    assert gate.together([partial(three, 2)] * 2) == [3, 3]
    assert gate.entered == 1


def test_who_has_the_patience_of_centuries_waits() -> None:
    gate = Gate()

    @single_flight(
        key="long",
        blocking_timeout=timedelta(days=900 * 365),
        name="who_has_the_patience.value",
    )
    def value() -> int:
        gate.hold()
        return 7

    assert gate.together([value] * 3) == [7] * 3
    assert gate.entered == 1


# Only GET and HEAD, unless told otherwise


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
def test_other_methods_run_on_their_own(method: str) -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse()

    responses = same(gate, lambda: view(getattr(rf, method)("/a")), 3)
    assert gate.entered == 3
    assert roles(responses) == ["bypass"] * 3


def test_a_key_lets_other_methods_share() -> None:
    gate = Gate()

    @single_flight(key=lambda request: request.body.decode(), name="a_key_lets_other.view")
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.body)

    bodies = ["a", "b", "a", "b"]
    calls = [lambda body=body: view(rf.post("/a", body, content_type="text/plain")) for body in bodies]
    assert [response.content.decode() for response in gate.together(calls)] == bodies
    assert gate.entered == 2


def test_head_and_get_are_told_apart() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.method)

    found = gate.together([lambda: view(rf.get("/a")), lambda: view(rf.head("/a"))])
    assert [response.content for response in found] == [b"GET", b"HEAD"]


# Time, death, cancellation


def test_a_caller_whose_time_is_up_runs_the_view_itself() -> None:
    gate = Gate()

    @single_flight(blocking_timeout=0.05)
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse("x")

    responses = same(gate, lambda: view(rf.get("/a")), 3)
    assert all(response.content == b"x" for response in responses)
    assert roles(responses)[-1] == "leader"


def test_a_waiter_goes_on_when_the_contender_has_no_more_time() -> None:
    """The first caller of a process looks for the result of another process; its time ends before the second one's."""
    provider = flights()
    terms = Terms(60_000, 1_000, "another process", 5.0)
    runs = []

    @single_flight(key="handed", blocking_timeout=0.3, name="a_waiter_goes_on.short")
    def short() -> str:
        runs.append("short")
        return "own"

    @single_flight(key="handed", blocking_timeout=30, name="a_waiter_goes_on.short")
    def long() -> str:
        runs.append("long")
        return "own"

    key = "a_waiter_goes_on.short:handed"
    flight = provider.enter(key, terms, None, lambda *_: 0.01, 0.0)
    assert flight.claim is not None
    found: dict[str, str] = {}
    first = threading.Thread(target=lambda: found.update(short=short()))
    first.start()
    second = threading.Thread(target=lambda: found.update(long=long()))
    wait_until(lambda: bool(single_flight_group.group._entries))
    second.start()
    wait_until(lambda: waiting() == 1)
    first.join(20)
    assert found == {"short": "own"}
    assert provider.publish(key, flight, "value", "theirs", 0.1, terms) == "published"
    second.join(20)
    assert found == {"short": "own", "long": "theirs"}
    assert runs == ["short"]


def test_who_joins_a_process_that_waits_after_the_publication_runs_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first caller waits for another process and has not seen its result yet when the second one comes."""
    look, pausing = threading.Event(), threading.Event()

    def pause(*_: object) -> float:
        pausing.set()
        assert look.wait(20)
        return 0.0

    monkeypatch.setattr(single_flight_plan, "pause", pause)

    @single_flight(
        key="late",
        blocking_timeout=60,
        name="who_joins_a_process.value",
    )
    def value() -> str:
        return "own"

    provider, terms = flights(), Terms(60_000, 60_000, "another process", 5.0)
    key = "who_joins_a_process.value:late"
    flight = provider.enter(key, terms, None, lambda *_: 0.01, 0.0)
    found: dict[str, str] = {}
    first = threading.Thread(target=lambda: found.update(first=value()))
    first.start()
    assert pausing.wait(20)
    provider.publish(key, flight, "value", "theirs", 0.1, terms)
    time.sleep(0.05)  # more than the server's clock and ours can be in doubt about
    second = threading.Thread(target=lambda: found.update(second=value()))
    second.start()
    wait_until(lambda: waiting() == 1)
    look.set()
    first.join(20)
    second.join(20)
    assert found == {"first": "theirs", "second": "own"}


async def test_a_cancelled_leader_is_replaced_by_a_waiter() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        await gate.ahold()
        return HttpResponse("x")

    leader = asyncio.ensure_future(view(rf.get("/a")))
    await await_until(lambda: gate.inside == 1)
    others = [asyncio.ensure_future(view(rf.get("/a"))) for _ in range(4)]
    await await_until(lambda: waiting() == 4)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    await await_until(lambda: gate.entered == 2)
    gate.open.set()
    assert roles(await asyncio.gather(*others)) == ["follower"] * 3 + ["leader"]
    assert gate.entered == 2


async def test_a_cancelled_waiter_leaves_the_flight_to_the_others() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        await gate.ahold()
        return HttpResponse("x")

    tasks = []
    for _ in range(4):
        tasks.append(asyncio.ensure_future(view(rf.get("/a"))))
        await await_until(lambda: gate.inside + waiting() == len(tasks))
    tasks[1].cancel()
    await asyncio.sleep(0)
    gate.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[1], asyncio.CancelledError)
    assert roles([one for one in found if isinstance(one, HttpResponse)]) == ["follower", "follower", "leader"]
    assert gate.entered == 1


async def test_a_leader_that_is_closed_leaves_the_flight_to_a_waiter() -> None:
    """Nothing can be awaited while a coroutine is closed: its lease ends by itself."""
    runs: list[int] = []

    @single_flight(key="k", timeout=0.3, name="a_leader_that_is.value")
    async def value() -> str:
        runs.append(1)
        if len(runs) == 1:
            await asyncio.Event().wait()
        return "x"

    leader: Any = value()
    context = contextvars.copy_context()
    while not runs:
        context.run(leader.send, None)
    follower = asyncio.ensure_future(value())
    await await_until(lambda: waiting() == 1)
    contextvars.Context().run(leader.close)
    assert await follower == "x"
    assert len(runs) == 2


def test_a_function_may_raise_stop_iteration() -> None:
    gate = Gate()

    @single_flight(key="k", name="a_function_may_raise.value")
    def value() -> str:
        gate.hold()
        raise StopIteration(3)

    found = gate.together([value] * 2)
    assert [(type(one), one.args) for one in found] == [(StopIteration, (3,))] * 2
    assert gate.entered == 1


async def test_a_function_that_ignores_its_cancellation_shares_its_result() -> None:
    began = asyncio.Event()

    @single_flight(key="k", name="a_function_that_ignores.value")
    async def value() -> str:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "not cancelled"

    leader, follower = asyncio.ensure_future(value()), asyncio.ensure_future(value())
    await began.wait()
    await await_until(lambda: waiting() == 1)
    leader.cancel()
    assert [await leader, await follower] == ["done all the same"] * 2


def test_a_leader_that_is_interrupted_lets_another_lead() -> None:
    gate = Gate()

    @single_flight(key="exits", name="a_leader_that_is.value")
    def value() -> str:
        number = gate.entered
        gate.hold()
        if number == 0:
            raise SystemExit(1)
        return "done"

    def call() -> str:
        try:
            return value()
        except SystemExit:
            return "exit"

    assert sorted(gate.together([call] * 4)) == ["done"] * 3 + ["exit"]
    assert gate.entered == 2


# While the server can't be reached


@override_settings(GOSCOPE=AWAY)
def test_without_the_server_the_function_runs_if_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(single_flight_policy.PATIENCE, "ignore", 0.2)
    said: list[str] = []
    degraded.connect(lambda feature, **_: said.append(f"degraded {feature}"), weak=False, dispatch_uid="sf")
    recovered.connect(lambda feature, **_: said.append(f"recovered {feature}"), weak=False, dispatch_uid="sf")
    try:

        @single_flight(on_error="ignore")
        def view(request: HttpRequest) -> HttpResponse:
            return HttpResponse("x")

        assert roles([view(rf.get("/a")) for _ in range(20)]) == ["bypass"] * 20
        assert said == ["degraded single_flight"]
        assert outage.outage("single_flight").ignored == 20
        with override_settings(GOSCOPE={}):
            outage.outage("single_flight")._until = 0.0
            assert roles([view(rf.get("/a"))]) == ["leader"]
        assert said == ["degraded single_flight", "recovered single_flight"]
    finally:
        degraded.disconnect(dispatch_uid="sf")
        recovered.disconnect(dispatch_uid="sf")
    with override_settings(GOSCOPE={}):
        pass


@override_settings(GOSCOPE={**AWAY, "ON_ERROR": "ignore"})
async def test_the_setting_decides_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(single_flight_policy.PATIENCE, "ignore", 0.2)
    monkeypatch.setitem(single_flight_policy.PATIENCE, "raise", 0.2)

    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    @single_flight(on_error="raise")
    async def strict(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    assert roles([await view(rf.get("/a"))]) == ["bypass"]
    with pytest.raises(StoreUnavailable):
        await strict(rf.get("/a"))


# Where it stands


@method_decorator(single_flight(), name="dispatch")
class Plain(View):
    gate = Gate()

    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(name)


class OnMethod(View):
    gate = Gate()

    @method_decorator(single_flight())
    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(name)


class Bare(View):
    gate = Gate()

    @single_flight()
    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(name)


@pytest.mark.parametrize("kind", [Plain, OnMethod, Bare])
def test_class_based_views(kind: Any) -> None:
    kind.gate = Gate()
    view = kind.as_view()
    names = ["a", "b", "a", "b", "a"]
    calls = [lambda name=name: view(rf.get(f"/{name}"), name=name) for name in names]
    responses = kind.gate.together(calls)
    assert [response.content.decode() for response in responses] == names
    assert kind.gate.entered == 2
    assert roles(responses) == ["follower"] * 3 + ["leader"] * 2


class Named(View):
    gate = Gate()
    kind = ""

    def get(self, request: HttpRequest) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(f"{type(self).__name__} {self.kind}")


class OtherNamed(Named):
    pass


def test_two_views_of_classes_under_one_key_never_share() -> None:
    Named.gate = gate = Gate()
    decorate = single_flight(key="k")
    views: list[Any] = [Named.as_view(), OtherNamed.as_view(), Named.as_view(kind="b"), Named.as_view(kind="c")]
    calls = [partial(decorate(view), rf.get("/x")) for view in (*views, Named.as_view())]
    answers = [response.content.decode() for response in gate.together(calls)]
    assert answers == ["Named ", "OtherNamed ", "Named b", "Named c", "Named "]
    assert gate.entered == 4


@method_decorator(single_flight(), name="dispatch")
class AsyncPlain(View):
    gate = Gate()

    async def get(self, request: HttpRequest) -> HttpResponse:
        await self.gate.ahold()
        return HttpResponse("x")


class AsyncOnMethod(View):
    gate = Gate()

    @method_decorator(single_flight())
    async def get(self, request: HttpRequest) -> HttpResponse:
        await self.gate.ahold()
        return HttpResponse("x")


@pytest.mark.parametrize("kind", [AsyncPlain, AsyncOnMethod])
async def test_asynchronous_class_based_views(kind: Any) -> None:
    kind.gate = Gate()
    view: Any = kind.as_view()
    responses = await kind.gate.atogether([lambda: view(rf.get("/a"))] * 4)
    assert kind.gate.entered == 1
    assert roles(responses) == ["follower"] * 3 + ["leader"]


def test_a_function_that_is_no_view_needs_a_key() -> None:
    @single_flight()
    def value(number: int) -> int:
        return number

    with pytest.raises(InvalidType, match="needs a key"):
        value(3)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": 0}, InvalidValue),
        ({"timeout": True}, InvalidType),
        ({"timeout": float("nan")}, InvalidValue),
        ({"blocking_timeout": -1}, InvalidValue),
        ({"linger": 0}, InvalidValue),
        ({"linger": "1"}, InvalidType),
        ({"key": 3}, InvalidType),
        ({"on_error": "pass"}, GoscopeError),
    ],
)
def test_a_wrong_argument_is_told_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        single_flight(**arguments)


def test_parentheses_are_missed() -> None:
    with pytest.raises(InvalidType, match="parentheses"):
        single_flight(lambda request: HttpResponse())  # type: ignore[arg-type]


def test_durations_may_be_timedeltas() -> None:
    @single_flight(timeout=timedelta(seconds=1), blocking_timeout=timedelta(seconds=1), linger=timedelta(seconds=1))
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert roles([view(rf.get("/a"))]) == ["leader"]


def test_a_key_that_is_no_text_is_told() -> None:
    @single_flight(key=lambda number: number, name="a_key_that_is.value")
    def value(number: int) -> int:
        return number

    with pytest.raises(InvalidType, match="key"):
        value(3)


def test_a_leader_is_described_by_method_and_route_without_our_middleware() -> None:
    seen: list[str] = []

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        seen.extend(one.leader for one in in_the_air())
        return HttpResponse("x")

    request = rf.get("/orders/secret-token/?key=secret")
    request.resolver_match = ResolverMatch(view, (), {}, route="orders/<str:token>/")
    assert view(request).content == b"x"
    assert len(seen) == 1
    assert seen[0].endswith("GET /orders/<str:token>/")
    assert "secret" not in seen[0]
