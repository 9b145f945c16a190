"""The cache. A sum over all sales is computed once for all processes, and a whole page is kept."""

from __future__ import annotations

import time
from collections import defaultdict
from decimal import Decimal
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Avg, Count, F, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import cache_page
from django.views.decorators.http import require_POST, require_safe

from goscope_django.cache import cache
from testproject.shop.models import Product, Sale
from testproject.shop.process import stamp

FIGURES = "catalogue:figures"
FOR = 60
"""Seconds that the figures are kept."""


def compute_figures() -> dict[str, Any]:
    """What each category sold: a join of all products with all sales."""
    began = time.perf_counter()
    turnover = F("quantity") * F("price")
    sums = Sale.objects.values_list("product__category").annotate(units=Sum("quantity"), turnover=Sum(turnover))
    sold = defaultdict(lambda: (0, Decimal(0)), {category: (units, money) for category, units, money in sums})
    offered = Product.objects.values("category").annotate(products=Count("id"), average=Avg("price"))
    rows = [
        {
            **row,
            "units": sold[row["category"]][0],
            "turnover": sold[row["category"]][1],
        }
        for row in offered.order_by("category")
    ]
    return {"rows": rows, "milliseconds": round((time.perf_counter() - began) * 1_000), **stamp()}


def figures() -> dict[str, Any]:
    """The figures, at most a minute old. If several processes need them at once, one computes and the others wait."""
    found: dict[str, Any] = cache.get_or_set(FIGURES, compute_figures, FOR)
    return {**found, "seconds_left": cache.ttl(FIGURES)}


@require_safe
def catalogue(request: HttpRequest) -> HttpResponse:
    """The products by page, with the figures of their categories."""
    began = time.perf_counter()
    found = figures()
    took = (time.perf_counter() - began) * 1_000
    products = Product.objects.all()
    category = request.GET.get("category", "")
    if category:
        products = products.filter(category=category)
    page = Paginator(products, 24).get_page(request.GET.get("page"))
    context = {"figures": found, "took": took, "page": page, "category": category}
    return render(request, "shop/catalogue.html", context)


@require_POST
def forget(request: HttpRequest) -> HttpResponse:
    """Remove the figures, so that they are computed for the next visitor."""
    cache.delete_pattern("catalogue:*")
    return redirect("catalogue")


@cache_page(60)
@require_safe
def prices(request: HttpRequest) -> HttpResponse:
    """All products on one page: slow to make, so the page itself is cached."""
    began = time.perf_counter()
    products = list(Product.objects.values("sku", "name", "category", "price"))
    response = render(request, "shop/prices.html", {"products": products, **stamp()})
    response.headers["X-Made-In"] = f"{(time.perf_counter() - began) * 1_000:.0f} ms"
    return response
