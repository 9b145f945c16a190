"""Single flight: a report that takes two seconds is made once for all who ask for it at the same time."""

from __future__ import annotations

import time
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from goscope_django.cache import cache
from goscope_django.decorators import single_flight
from testproject.shop.catalogue import compute_figures

RUNS = "report:runs"


def runs() -> int:
    """How often the report was made, by any process."""
    found: int = cache.get(RUNS, 0)
    return found


def make_report() -> dict[str, Any]:
    """Today's figures, not the cached ones. It sleeps for two seconds, as if there were millions of rows."""
    cache.add(RUNS, 0, timeout=None)
    number = cache.incr(RUNS)
    time.sleep(2)
    return {"number": number, **compute_figures()}


@require_safe
@single_flight()
def report(request: HttpRequest) -> HttpResponse:
    """The report as a page, or as data with ``?format=json``. ``X-Single-Flight`` says who made it."""
    found = make_report()
    if request.GET.get("format") == "json":
        return JsonResponse(found)
    return render(request, "shop/report.html", {"report": found})
