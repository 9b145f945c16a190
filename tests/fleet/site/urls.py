"""URLs of the fleet's site: those of every ``views_<feature>.py`` beside this file."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, URLResolver, path


def pid(request: HttpRequest) -> JsonResponse:
    """Which process answers; also how the launcher learns that the site is up."""
    return JsonResponse({"pid": os.getpid()})


urlpatterns: list[URLPattern | URLResolver] = [path("pid/", pid)]
for module in sorted(Path(__file__).parent.glob("views_*.py")):
    urlpatterns += import_module(f"tests.fleet.site.{module.stem}").urlpatterns
