"""Locks and fencing. Whoever corrects the stock holds its lock, and the row refuses a holder whose token is too old."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from goscope_django.exceptions import LockNotAcquired, StaleFence
from goscope_django.locks import lock
from testproject.shop.models import Product

MOST = 1_000_000


def lock_name(product: Product) -> str:
    """The name of the lock on a product's stock."""
    return f"stock:{product.sku}"


@require_POST
def correct(request: HttpRequest) -> HttpResponse:
    """Set the stock to what was counted, under the lock."""
    product = get_object_or_404(Product, sku=request.POST.get("sku", ""))
    counted = request.POST.get("counted", "")
    if not counted.isascii() or not counted.isdigit() or int(counted) > MOST:
        messages.error(request, f"A whole number up to {MOST} is needed.", extra_tags="stock")
        return redirect("/#stock")
    try:
        with lock(lock_name(product), timeout=10, blocking_timeout=3) as handle:
            # Read under the lock: what was read before may be old.
            product.refresh_from_db()
            before, product.stock = product.stock, int(counted)
            product.save_fenced(handle, update_fields=["stock"])
    except LockNotAcquired:
        messages.error(request, "Somebody else is counting this product just now.", extra_tags="stock")
    else:
        text = f"{product.sku}: {before} became {product.stock}, written with token {handle.token}."
        messages.success(request, text, extra_tags="stock")
    return redirect("/#stock")


@require_POST
def stale(request: HttpRequest) -> HttpResponse:
    """Why fencing is needed: a worker sleeps past its lease, another one corrects the stock, and the first wakes up."""
    product = get_object_or_404(Product, sku=request.POST.get("sku", ""))
    told = []
    # A lease that nobody renews: to the others, a process that hangs looks just like this.
    sleeper = lock(lock_name(product), timeout=0.5, auto_extend=False, blocking_timeout=3).acquire()
    told.append(f"A slow worker got the lock with token {sleeper.token} and fell asleep.")
    with lock(lock_name(product), timeout=10, blocking_timeout=3) as handle:
        product.refresh_from_db()
        product.stock += 1
        product.save_fenced(handle, update_fields=["stock"])
        told.append(f"When its lease had ended, another worker got token {handle.token} and wrote {product.stock}.")
    late = Product.objects.get(pk=product.pk)
    late.stock = 0
    try:
        late.save_fenced(sleeper, update_fields=["stock"])
        told.append("The slow worker woke up and overwrote it.")
    except StaleFence:
        told.append("The slow worker woke up and wanted to write 0. Its token was too old, and the row refused it.")
    finally:
        sleeper.release()
    messages.success(request, " ".join(told), extra_tags="stock")
    return redirect("/#stock")
