"""``CircuitOpen`` in views: Django and DRF, sync and async, functions and classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from goscope_django import circuits
from goscope_django.circuits import circuit_breaker
from goscope_django.exceptions import LockNotAcquired
from tests.support.circuits import Boom, own_store

MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "goscope_django.middleware.CircuitOpenMiddleware"]
guard = circuit_breaker("supplier", failure_threshold=2, reset_timeout=20)


def answer(request: HttpRequest) -> HttpResponse:
    if "fail" in request.GET:
        raise Boom
    return HttpResponse("fine")


@guard
def function(request: HttpRequest) -> HttpResponse:
    return answer(request)


@guard
async def native(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return answer(request)


@method_decorator(guard, name="dispatch")
class Dispatched(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


@method_decorator(guard, name="dispatch")
class AsyncDispatched(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return answer(request)


@method_decorator(guard, name="get")
class AsyncMethod(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return answer(request)


class Rest(APIView):
    authentication_classes: list[Any] = []

    @guard
    def get(self, request: Request) -> Response:
        if "fail" in request.query_params:
            raise Boom
        return Response("fine")


@api_view(["GET"])
@guard
def rest_function(request: Request) -> Response:
    if "fail" in request.query_params:
        raise Boom
    return Response("fine")


class Locked(APIView):
    authentication_classes: list[Any] = []

    def get(self, request: Request) -> Response:
        raise LockNotAcquired("lock 'stock' is held", key="stock")


def writes(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO circuits_written VALUES (1)")
    return function(request)


class RestWrites(Rest):
    def get(self, request: Request) -> Response:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO circuits_written VALUES (1)")
        return super().get(request)


urlpatterns = [
    path("function/", function),
    path("native/", native),
    path("dispatched/", Dispatched.as_view()),
    path("async-dispatched/", AsyncDispatched.as_view()),
    path("async-method/", AsyncMethod.as_view()),
    path("as-view/", guard(AsyncMethod.as_view())),
    path("rest/", Rest.as_view()),
    path("rest-function/", rest_function),
    path("locked/", Locked.as_view()),
    path("writes/", writes),
    path("rest-writes/", RestWrites.as_view()),
]
VIEWS = ["function", "native", "dispatched", "async-dispatched", "async-method", "rest", "rest-function"]


@pytest.fixture(autouse=True)
def settings_of_these_tests() -> Iterator[None]:
    with own_store("mongomock://", ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE, ALLOWED_HOSTS=["testserver"]):
        yield


def get(kind: str, url: str, **headers: str) -> Any:
    """The response of a client of one kind; an error in the view is a 500."""
    if kind == "sync":
        return Client(raise_request_exception=False, headers=headers).get(url)
    return asyncio.run(AsyncClient(raise_request_exception=False, headers=headers).get(url))


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_keeps_failing_is_spared_and_answers_503(view: str, kind: str) -> None:
    assert get(kind, f"/{view}/").status_code == 200
    assert [get(kind, f"/{view}/?fail=1").status_code for _ in range(2)] == [500, 500]
    refused = get(kind, f"/{view}/")
    assert refused.status_code == 503
    assert 18 <= int(refused["Retry-After"]) <= 20
    assert refused["Cache-Control"] == "no-store"
    assert "supplier" not in refused.content.decode()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/problem+json"),
        ("application/problem+json, */*", "application/problem+json"),
        ("text/html,application/json;q=0.5", "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
    ],
)
def test_the_body_is_what_the_client_reads(accept: str, kind: str) -> None:
    circuits.force_open("supplier")
    refused = get("sync", "/function/", accept=accept)
    assert (refused.status_code, refused["Content-Type"]) == (503, kind)
    if "json" in kind:
        assert json.loads(refused.content)["status"] == 503


def test_other_errors_pass_the_middleware_by() -> None:
    with pytest.raises(Boom):
        Client().get("/function/?fail=1")


class TestRestHandler:
    @pytest.fixture(autouse=True)
    def handler(self) -> Iterator[None]:
        with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": "goscope_django.rest.exception_handler"}):
            yield

    @pytest.mark.parametrize("middleware", [MIDDLEWARE, []])
    @pytest.mark.parametrize("view", ["rest", "rest-function"])
    def test_an_open_circuit_is_503_in_the_clients_format(self, view: str, middleware: list[str]) -> None:
        circuits.force_open("supplier")
        with override_settings(MIDDLEWARE=middleware):
            refused = get("sync", f"/{view}/", accept="application/json")
        assert (refused.status_code, refused["Content-Type"], refused["Retry-After"]) == (503, "application/json", "20")
        assert refused.json()["detail"]
        assert "supplier" not in refused.content.decode()

    def test_a_held_lock_is_409(self) -> None:
        refused = get("sync", "/locked/", accept="application/json")
        assert (refused.status_code, refused["Retry-After"]) == (409, "1")
        assert "stock" not in refused.content.decode()

    def test_what_is_not_ours_is_left_to_drf(self) -> None:
        assert get("sync", "/rest/?fail=1").status_code == 500
        assert Client().post("/rest/").status_code == 405


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("handler", ["rest_framework.views.exception_handler", "goscope_django.rest.exception_handler"])
@pytest.mark.parametrize("view", ["writes", "rest-writes"])
def test_what_a_refused_request_wrote_is_rolled_back(view: str, handler: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE circuits_written (number integer)")
    try:
        circuits.force_open("supplier")
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": handler}):
            assert get("sync", f"/{view}/").status_code == 503
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM circuits_written")
            assert cursor.fetchone() == (0,)
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("DROP TABLE circuits_written")
