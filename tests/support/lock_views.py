"""Views under a lock, for the tests of transactions. Each records what it found."""

from __future__ import annotations

import asyncio
from typing import Any

from django.contrib.auth.models import Group
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.views import APIView

from goscope_django import locks
from goscope_django.decorators import locked, single_flight
from tests.support.transactions import transaction

noted: dict[str, Any] = {}


def held(key: str) -> bool:
    return locks.backend().get(key) is not None


def note() -> None:
    noted["inside"] = held("view")
    transaction.on_commit(lambda: noted.update(at_commit=held("view")))


@locked("view", blocking_timeout=5)
def function(request: HttpRequest) -> HttpResponse:
    note()
    Group.objects.create(name="made")
    if "fail" in request.GET:
        raise ValueError
    return HttpResponse(str(held("view")))


@locked("view", blocking_timeout=5)
async def coroutine(request: HttpRequest) -> HttpResponse:
    noted["inside"] = await locks.backend().aget("view") is not None
    return HttpResponse("done")


@method_decorator(locked("view", blocking_timeout=5), name="dispatch")
class ClassBased(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        note()
        return HttpResponse("done")


@method_decorator(locked("view", blocking_timeout=5), name="dispatch")
class AsyncClassBased(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        noted["inside"] = await locks.backend().aget("view") is not None
        return HttpResponse("done")

    @method_decorator(locked("helper", blocking_timeout=5))
    def helper(self) -> bool:
        return held("helper")


class Wrapped(View):
    """Its ``dispatch`` is reached by the lock through the wrapper of another decorator."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        noted["inside"] = await locks.backend().aget("view") is not None
        await asyncio.sleep(0.01)
        return HttpResponse("done")


@method_decorator([locked("view", blocking_timeout=5), csrf_exempt], name="dispatch")
class Foreign(Wrapped):
    pass


@method_decorator([locked("view", blocking_timeout=5), single_flight(), locked("more")], name="dispatch")
class Ours(Wrapped):
    pass


class Methods(View):
    @method_decorator(locked(lambda request, **_: f"view{request.GET['n']}", blocking_timeout=5))
    def get(self, request: HttpRequest) -> HttpResponse:
        noted["inside"] = held("view7")
        return HttpResponse("done")


@api_view(["GET"])
@locked("view", blocking_timeout=5)
def api_function(request: Any) -> Response:
    note()
    return Response("done")


class Api(APIView):
    @method_decorator(locked("view", blocking_timeout=5))
    def get(self, request: Any) -> Response:
        note()
        return Response("done")


urlpatterns = [
    path("function", function),
    path("coroutine", coroutine),
    path("class", ClassBased.as_view()),
    path("async-class", AsyncClassBased.as_view()),
    path("foreign", Foreign.as_view()),
    path("ours", Ours.as_view()),
    path("method", Methods.as_view()),
    path("api-function", api_function),
    path("api", Api.as_view()),
]
