"""``manage.py demo_data``: fills the shop. It leaves alone what is already there."""

from __future__ import annotations

import os
import random
import secrets
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from testproject.shop.models import Product, Sale

PRODUCTS = 4_000
SALES = 30_000
USER = "demo"
KINDS = {
    "Garden": ("Spade", "Rake", "Trowel", "Watering can", "Hose", "Wheelbarrow"),
    "Kitchen": ("Kettle", "Pan", "Ladle", "Whisk", "Colander", "Grater"),
    "Office": ("Stapler", "Lamp", "Notebook", "Folder", "Pen", "Ruler"),
    "Outdoors": ("Tent", "Rucksack", "Flask", "Compass", "Rope", "Lantern"),
    "Toys": ("Kite", "Puzzle", "Marble run", "Spinning top", "Yo-yo", "Train"),
    "Workshop": ("Hammer", "Saw", "Drill", "Spirit level", "Chisel", "Vice"),
}
LOOKS = ("Blue", "Brass", "Folding", "Green", "Heavy", "Light", "Oak", "Old", "Plain", "Red", "Small", "Steel")


class Command(BaseCommand):
    """Products, a year of sales and a staff user."""

    help = "Fills the demo's database: products, sales, and a staff user whose password is printed once."

    def handle(self, *args: Any, **options: Any) -> None:
        """Add what is missing. The rows are the same each time."""
        with transaction.atomic():
            self._products(random.Random(4))
            self._sales(random.Random(2))
        self._user()

    def _products(self, dice: random.Random) -> None:
        if Product.objects.exists():
            return
        products = []
        for number in range(1, PRODUCTS + 1):
            category = dice.choice(list(KINDS))
            name = f"{dice.choice(LOOKS)} {dice.choice(KINDS[category]).lower()} no. {number}"
            price = Decimal(dice.randrange(199, 19_999)) / 100
            stock = dice.randrange(200)
            products.append(Product(sku=f"P{number:05}", name=name, category=category, price=price, stock=stock))
        Product.objects.bulk_create(products, batch_size=1_000)
        self.stdout.write(f"{PRODUCTS} products")

    def _sales(self, dice: random.Random) -> None:
        if Sale.objects.exists():
            return
        products = list(Product.objects.values_list("pk", "price"))
        first = date(2025, 1, 1)
        sales = []
        for _ in range(SALES):
            product, price = dice.choice(products)
            day = first + timedelta(days=dice.randrange(365))
            sales.append(Sale(product_id=product, day=day, quantity=dice.randrange(1, 6), price=price))
        Sale.objects.bulk_create(sales, batch_size=1_000)
        self.stdout.write(f"{SALES} sales")

    def _user(self) -> None:
        users = get_user_model()._default_manager
        if users.filter(username=USER).exists():
            self.stdout.write(
                f"The user {USER!r} is there already. For a new password: manage.py changepassword {USER}"
            )
            return
        given = os.environ.get("DEMO_PASSWORD", "")
        password = given or secrets.token_urlsafe(9)
        users.create_superuser(USER, password=password)
        shown = "with the password of DEMO_PASSWORD" if given else f"with the password {password} (not shown again)"
        self.stdout.write(f"Log in at /admin/ as {USER!r} {shown}")
