"""Circuit breaker: a supplier fails at the press of a button, and the shop stops asking it."""

from __future__ import annotations

import time
import zlib
from decimal import Decimal

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST, require_safe

from goscope_django.cache import cache
from goscope_django.circuits import CircuitBreaker, CircuitInfo, CircuitOpen, get_circuit
from testproject.shop.process import stamp

MODES = ("fine", "slow", "down")
PATIENCE = 2.0
"""Seconds after which the shop gives up on the supplier."""

breaker = CircuitBreaker("supplier", failure_threshold=3, reset_timeout=10)


class SupplierFailed(Exception):
    """The supplier did not answer, or not in time."""


def mode() -> str:
    """The state of the supplier's service; it is the same for every process."""
    found: str = cache.get("supplier:mode", "fine")
    return found


def fetch_price(sku: str) -> Decimal:
    """Ask the supplier. This stands for a request over the network: it answers, fails, or takes too long."""
    now = mode()
    if now == "slow":
        time.sleep(PATIENCE)
        raise SupplierFailed(f"no answer within {PATIENCE:g} seconds")
    if now == "down":
        raise SupplierFailed("connection refused")
    return Decimal(zlib.crc32(sku.encode()) % 9_000 + 1_000) / 100


def circuit() -> CircuitInfo | None:
    """What all processes know of the supplier."""
    return get_circuit("supplier")


@require_safe
def quote(request: HttpRequest, sku: str) -> HttpResponse:
    """The supplier's price, as data. An open circuit becomes 503 with ``Retry-After``, by the middleware."""
    try:
        price = breaker.call(fetch_price, sku)
    except SupplierFailed as error:
        return JsonResponse({"sku": sku, "error": str(error), **stamp()}, status=502)
    return JsonResponse({"sku": sku, "price": price, **stamp()})


@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    """Ask once, and say in a sentence what happened."""
    began = time.perf_counter()
    try:
        text = f"The supplier says: {breaker.call(fetch_price, 'P00001')}."
        level = messages.SUCCESS
    except SupplierFailed as error:
        text, level = f"The supplier failed: {error}.", messages.ERROR
    except CircuitOpen as error:
        text = f"The circuit is open, so the supplier was not asked. Next try in {error.retry_after:.0f} seconds."
        level = messages.WARNING
    took = (time.perf_counter() - began) * 1_000
    messages.add_message(request, level, f"{text} That took {took:.0f} ms.", extra_tags="supplier")
    return redirect("/#supplier")


@require_POST
def switch(request: HttpRequest) -> HttpResponse:
    """Break the supplier, or repair it."""
    wanted = request.POST.get("mode")
    if wanted not in MODES:
        return HttpResponseBadRequest(f"mode: one of {', '.join(MODES)}", content_type="text/plain")
    cache.set("supplier:mode", wanted, None)
    messages.info(request, f"From now on the supplier is {wanted}.", extra_tags="supplier")
    return redirect("/#supplier")
