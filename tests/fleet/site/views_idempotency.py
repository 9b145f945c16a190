"""Views that are not to be run twice."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from goscope_django.idempotency import idempotent
from goscope_django.signals import idempotent_lost
from tests.fleet.site.notes import note


def _lost(sender: object, key: str, token: int, **_: Any) -> None:
    note("lost", key=key, token=token)


idempotent_lost.connect(_lost)


def _receipt(request: HttpRequest, asked: dict[str, Any]) -> HttpResponse:
    token = request.idempotency.token  # type: ignore[attr-defined]
    response = JsonResponse({"pid": os.getpid(), "token": token, "at": time.time()}, status=201)
    response["X-Receipt"] = str(token)
    response.set_cookie("basket", "paid")
    note("paid", order=asked["order"], token=token)
    return response


@csrf_exempt
@idempotent(required=True, lease=1.5)
def pay(request: HttpRequest) -> HttpResponse:
    asked = json.loads(request.body)
    note("pay", order=asked["order"])
    time.sleep(asked.get("seconds", 1))
    return _receipt(request, asked)


@csrf_exempt
@idempotent(required=True, lease=1.5)
async def pay_async(request: HttpRequest) -> HttpResponse:
    asked = json.loads(request.body)
    note("pay", order=asked["order"])
    await asyncio.sleep(asked.get("seconds", 1))
    return _receipt(request, asked)


@csrf_exempt
@idempotent(on_conflict="wait", blocking_timeout=20, lease=1.5)
def pay_patiently(request: HttpRequest) -> HttpResponse:
    asked = json.loads(request.body)
    note("pay", order=asked["order"])
    time.sleep(asked.get("seconds", 1))
    return _receipt(request, asked)


urlpatterns = [path("pay/", pay), path("pay-async/", pay_async), path("pay-patiently/", pay_patiently)]
