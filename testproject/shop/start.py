"""The start page. It says in a few sentences what each feature is for, and shows what it is doing now."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from goscope_django.cache import cache
from testproject.shop import basket, catalogue, importing, paying, report, supplier
from testproject.shop.models import Payment, Product


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """Everything at a glance. Messages stand beside the feature that they are about."""
    told: dict[str, list[Any]] = defaultdict(list)
    for message in messages.get_messages(request):
        told[message.extra_tags or "start"].append(message)
    context = {
        "told": dict(told),
        "private": settings.GOSCOPE["URL"].startswith("embedded://"),
        "figures": cache.get(catalogue.FIGURES),
        "figures_left": cache.ttl(catalogue.FIGURES),
        "pieces": basket.count(request),
        "session": request.session.session_key,
        "key": uuid.uuid4(),
        "cards": paying.CARDS,
        "payments": Payment.objects.order_by("-id")[:3],
        "mode": supplier.mode(),
        "modes": supplier.MODES,
        "circuit": supplier.circuit(),
        "runs": report.runs(),
        "product": Product.objects.first(),
        "importing": importing.state(),
    }
    return render(request, "shop/start.html", context)
