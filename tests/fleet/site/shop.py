"""A shop whose sessions, cache and locks are in MongoDB. Each page uses one feature.

A charge is a line in a file, which no outage of MongoDB touches: two lines for one order are a charge too many.
"""

from __future__ import annotations

import json
import os
import time

from django.contrib import admin
from django.contrib.auth import authenticate, login
from django.contrib.auth.models import User
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.cache import cache_page
from django.views.decorators.csrf import csrf_exempt

from goscope_django.checkpoints import checkpointed
from goscope_django.decorators import circuit_breaker, idempotent, single_flight
from goscope_django.exceptions import LockNotAcquired
from goscope_django.locks import lock
from tests.fleet.site.notes import note


def pid(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"pid": os.getpid()})


@csrf_exempt
def enter(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, username=request.POST["name"], password="secret")
    assert user is not None
    login(request, user)
    return HttpResponse(user.get_username())


def me(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


@csrf_exempt
@idempotent(required=True)
def pay(request: HttpRequest) -> HttpResponse:
    asked = json.loads(request.body)
    order = asked["order"]
    assert isinstance(request.user, User)
    note("asked the bank", order=order)
    time.sleep(asked.get("seconds", 0.05))
    note("charge", order=order, user=request.user.get_username())
    return JsonResponse({"order": order}, status=201)


@cache_page(1)
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"page {time.time()}")


@cache_page(1, cache="lenient")
def lenient_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"page {time.time()}")


def visits(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(caches["lenient"].get_or_set("visits", 1, 60)))


def stock(request: HttpRequest) -> HttpResponse:
    """One at a time may be in the warehouse. The file has what the lock promises."""
    try:
        with lock("warehouse", 10, blocking_timeout=3) as handle:
            note("in", token=handle.token)
            time.sleep(0.01)
            note("out", token=handle.token, lost=handle.lost.is_set())
    except LockNotAcquired:
        return HttpResponse("busy", status=409)
    return HttpResponse(str(handle.token))


@single_flight()
def report(request: HttpRequest) -> HttpResponse:
    return HttpResponse("report")


@single_flight(on_error="ignore")
def lenient_report(request: HttpRequest) -> HttpResponse:
    return HttpResponse("report")


@circuit_breaker("supplier")
def prices(request: HttpRequest) -> HttpResponse:
    return HttpResponse("prices")


def task(request: HttpRequest) -> HttpResponse:
    with checkpointed(f"import:{request.GET['id']}", lease=10) as state:
        for number in state.track(range(3)):
            assert number < 3
    return HttpResponse("imported")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("pid/", pid),
    path("enter/", enter),
    path("me/", me),
    path("pay/", pay),
    path("page/", page),
    path("lenient-page/", lenient_page),
    path("visits/", visits),
    path("stock/", stock),
    path("report/", report),
    path("lenient-report/", lenient_report),
    path("prices/", prices),
    path("task/", task),
]
