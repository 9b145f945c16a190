"""Sessions in the cache: the basket. The setting ``SESSION_ENGINE`` is all that this needs."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from testproject.shop.models import Product


def lines(request: HttpRequest) -> list[dict[str, Any]]:
    """What is in the visitor's basket."""
    wanted: dict[str, int] = request.session.get("basket", {})
    found = Product.objects.filter(sku__in=wanted)
    return [{"product": one, "pieces": wanted[one.sku], "cost": one.price * wanted[one.sku]} for one in found]


def total(request: HttpRequest) -> Decimal:
    """What the basket costs."""
    return sum((line["cost"] for line in lines(request)), Decimal(0))


def count(request: HttpRequest) -> int:
    """How many pieces are in the basket."""
    return sum(request.session.get("basket", {}).values())


def empty(request: HttpRequest) -> None:
    """Put everything back."""
    request.session.pop("basket", None)


@require_safe
def basket(request: HttpRequest) -> HttpResponse:
    """The basket, with a form that pays for it. The form's key is what makes a second click harmless."""
    context = {"lines": lines(request), "total": total(request), "key": uuid.uuid4()}
    return render(request, "shop/basket.html", context)


@require_POST
def add(request: HttpRequest) -> HttpResponse:
    """One more piece of a product."""
    product = get_object_or_404(Product, sku=request.POST.get("sku", ""))
    wanted: dict[str, int] = request.session.get("basket", {})
    wanted[product.sku] = wanted.get(product.sku, 0) + 1
    request.session["basket"] = wanted
    return redirect("basket")
