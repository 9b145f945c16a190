"""Views that run once for many."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import api_view, authentication_classes
from rest_framework.request import Request
from rest_framework.response import Response

from goscope_django.signals import flight_taken_over
from goscope_django.single_flight import single_flight
from tests.fleet.site.notes import note


def _taken_over(sender: object, key: str, **_: Any) -> None:
    note("taken over", key=key)


flight_taken_over.connect(_taken_over)


def _work(request: HttpRequest, what: str) -> dict[str, Any]:
    note(what)
    time.sleep(float(request.GET.get("seconds", "1")))
    note(f"{what} done")
    return {"pid": os.getpid(), "ended": time.time()}


@single_flight(timeout=1.5, blocking_timeout=30)
def slow(request: HttpRequest) -> HttpResponse:
    return JsonResponse(_work(request, "slow"))


@single_flight(blocking_timeout=30)
async def slow_async(request: HttpRequest) -> HttpResponse:
    note("slow async")
    await asyncio.sleep(1)
    return JsonResponse({"pid": os.getpid()})


@single_flight(blocking_timeout=30)
def fails(request: HttpRequest) -> HttpResponse:
    _work(request, "fails")
    raise Http404("nothing here")


@single_flight(blocking_timeout=30)
def cookie(request: HttpRequest) -> HttpResponse:
    response = JsonResponse(_work(request, "cookie"))
    response.set_cookie("seen", str(os.getpid()))
    return response


@single_flight(blocking_timeout=30)
def stream(request: HttpRequest) -> HttpResponseBase:
    _work(request, "stream")

    def chunks() -> Iterator[bytes]:
        yield b"a"
        yield b"b"

    return StreamingHttpResponse(chunks())


@single_flight(blocking_timeout=30)
def no_store(request: HttpRequest) -> HttpResponse:
    return JsonResponse(_work(request, "no-store"), headers={"Cache-Control": "no-store"})


class Bearer(BaseAuthentication):
    """Authenticates by name, as a token would, inside the view."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        name = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return (_User(name), None) if name else None


class _User:
    is_authenticated = True

    def __init__(self, name: str) -> None:
        self.username = name


@single_flight(blocking_timeout=30)
@api_view(["GET"])
@authentication_classes([Bearer])
def whoami(request: Request) -> Response:
    note("whoami")
    time.sleep(1)
    return Response({"name": getattr(request.user, "username", "")})


urlpatterns = [
    path("slow/", slow),
    path("slow-async/", slow_async),
    path("fails/", fails),
    path("cookie/", cookie),
    path("stream/", stream),
    path("no-store/", no_store),
    path("whoami/", whoami),
]
