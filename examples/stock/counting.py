"""One counts at a time; who was overtaken writes nothing."""

from django.db.models import F

from goscope_django.locks import lock
from stock.models import Item


def correct(sku, count):
    """``count(sku)`` may take minutes. Raises ``StaleFence`` if somebody else counted meanwhile."""
    with lock(f"stock:{sku}", blocking_timeout=5) as handle:
        item = Item.objects.get(sku=sku)
        item.left = count(sku)
        item.save_fenced(handle, update_fields=["left"])


def sell(sku, number):
    """Needs no lock: the condition is part of the write. Returns whether there was enough."""
    changed = Item.objects.filter(sku=sku, left__gte=number)
    return bool(changed.update(left=F("left") - number))
