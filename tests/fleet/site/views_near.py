"""What a process reads and sets by its near cache, and how often it had it at hand."""

from __future__ import annotations

import os
from typing import Any

from django.core.cache import caches
from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, URLResolver, path

from goscope_django.cache.near import near_of

cache: Any = caches["near"]


def _said(value: Any) -> JsonResponse:
    near = near_of("near")
    return JsonResponse({"pid": os.getpid(), "value": value, "hits": near.figures.hits if near else 0})


def read(request: HttpRequest) -> JsonResponse:
    """Read it."""
    return _said(cache.get("page"))


async def aread(request: HttpRequest) -> JsonResponse:
    """Read it in a task."""
    return _said(await cache.aget("page"))


def write(request: HttpRequest, value: int) -> JsonResponse:
    """Set it and read it."""
    cache.set("page", value)
    return _said(cache.get("page"))


urlpatterns: list[URLPattern | URLResolver] = [
    path("near/", read),
    path("near/async/", aread),
    path("near/<int:value>/", write),
]
