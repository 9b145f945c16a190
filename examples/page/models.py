"""What the page shows. A change makes it new at once, everywhere."""

from django.core.cache import cache
from django.db import models, transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver


class Product(models.Model):
    name = models.CharField(max_length=80)


@receiver([post_save, post_delete], sender=Product)
def forget(instance, **kwargs):
    tag = f"product:{instance.pk}"
    transaction.on_commit(lambda: cache.invalidate_tags(tag))
