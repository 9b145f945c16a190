"""The shop's tables in Django's admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin

from testproject.shop.models import Payment, Product, SupplierOffer

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[Any]
else:
    _Admin = admin.ModelAdmin


@admin.register(Product)
class ProductAdmin(_Admin):
    """Products; their stock is corrected in the shop, under a lock."""

    list_display = ("sku", "name", "category", "price", "stock", "fence")
    list_filter = ("category",)
    search_fields = ("sku", "name")
    readonly_fields = ("stock", "fence")


@admin.register(Payment)
class PaymentAdmin(_Admin):
    """Payments."""

    list_display = ("id", "key", "amount", "process", "made")


@admin.register(SupplierOffer)
class SupplierOfferAdmin(_Admin):
    """Rows that were imported."""

    list_display = ("sku", "name", "price", "attempt")
    search_fields = ("sku",)
