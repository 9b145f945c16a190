"""Stock that is counted by hand: the last count is right, and a late one is refused."""

from django.db import models

from goscope_django.fencing import FencedModel


class Item(FencedModel):  # it has the column `fence`
    sku = models.CharField(max_length=40, unique=True)
    left = models.IntegerField(default=0)
