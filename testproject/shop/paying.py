"""Idempotency: a form that is sent twice pays once.

A browser's form can't send an ``Idempotency-Key`` header, so the key is a hidden field, made together with the form.
Programs send the header, which ``@idempotent`` reads if no ``key`` is given.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from decimal import Decimal

from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import render
from django.views.decorators.http import require_POST

from goscope_django.decorators import idempotent
from testproject.shop import basket
from testproject.shop.models import Payment

CARDS = (10, 25, 50)
"""What gift cards cost."""


def payment_key(request: HttpRequest) -> str | None:
    """The header that programs send, or the form's hidden field."""
    return request.headers.get("Idempotency-Key") or request.POST.get("key")


def payload(request: HttpRequest) -> list[str | None]:
    """What makes it the same payment: the script sends the form as multipart, the browser as urlencoded."""
    return [request.POST.get("card")]


def for_people(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A refusal is data (problem+json), for programs. Somebody in front of a browser gets a page instead."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest) -> HttpResponse:
        response = view(request)
        asks_for_pages = "text/html" in request.headers.get("Accept", "")
        if response.headers.get("Content-Type") != "application/problem+json" or not asks_for_pages:
            return response
        told = json.loads(response.content)
        return render(request, "shop/refused.html", {"told": told}, status=response.status_code)

    return wrapped


@require_POST
@for_people
@idempotent(key=payment_key, required=True, on_conflict="wait", fingerprint=payload)
def pay(request: HttpRequest) -> HttpResponse:
    """Charge for the basket or a gift card. A repeat waits for the running request and gets the same page."""
    card = request.POST.get("card")
    if card is not None and card not in map(str, CARDS):
        return HttpResponseBadRequest("There is no such gift card.", content_type="text/plain")
    amount = basket.total(request) if card is None else Decimal(card)
    if not amount:
        return HttpResponseBadRequest("There is nothing in the basket.", content_type="text/plain")
    time.sleep(1)  # the bank takes a second
    with transaction.atomic():
        payment = Payment.objects.create(key=payment_key(request) or "", amount=amount, process=os.getpid())
    if card is None:
        basket.empty(request)
    return render(request, "shop/paid.html", {"payment": payment})
