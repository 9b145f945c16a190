"""What the shop keeps in its SQL database."""

from __future__ import annotations

from django.db import models

from goscope_django.fencing import FencedModel


class Product(FencedModel):
    """Something to sell. Its stock is corrected under a lock; ``fence`` is the newest token that wrote the row."""

    sku = models.CharField(max_length=20, unique=True)
    name = models.CharField(max_length=100)
    category = models.CharField(max_length=30, db_index=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("sku",)

    def __str__(self) -> str:
        return self.name


class Sale(models.Model):
    """Some pieces of a product, sold on one day, with the price of one piece."""

    product = models.ForeignKey(Product, on_delete=models.CASCADE, related_name="sales")
    day = models.DateField()
    quantity = models.PositiveSmallIntegerField()
    price = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product_id} on {self.day}"


class Payment(models.Model):
    """A payment. The table allows two payments with one key; that there is only one is due to ``@idempotent``."""

    key = models.CharField(max_length=64, db_index=True)
    amount = models.DecimalField(max_digits=8, decimal_places=2)
    process = models.PositiveIntegerField()
    made = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.amount} by {self.key}"


class SupplierOffer(models.Model):
    """A row of the supplier's price list, written by the nightly import in its attempt number ``attempt``."""

    sku = models.CharField(max_length=20, unique=True)
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    attempt = models.PositiveIntegerField()

    def __str__(self) -> str:
        return self.sku
