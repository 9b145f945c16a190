"""Fenced writes: what a lock protects refuses a holder that comes too late.

>>> with lock("stock:42") as handle:
...     fenced_update_one(stock, {"_id": 42}, {"$inc": {"left": -1}}, handle)   # a MongoDB document
...     item.save_fenced(handle)                                                # a row: ``class Item(FencedModel)``
...     with fenced_transaction(handle) as session: ...                         # many documents of a replica set

``StaleFence`` means that the lock was taken over and nothing was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from goscope_django.exceptions import StaleFence
from goscope_django.fencing.transaction import fenced_transaction
from goscope_django.mongodb.locks.fenced_writes import (
    FENCE,
    afenced_update_one,
    fenced_update_one,
    token_of,
)

if TYPE_CHECKING:
    from goscope_django.fencing.models import FencedModel, FencedQuerySet

__all__ = [
    "FENCE",
    "FencedModel",
    "FencedQuerySet",
    "StaleFence",
    "afenced_update_one",
    "fenced_transaction",
    "fenced_update_one",
    "token_of",
]

_MODELS: Final = ("FencedModel", "FencedQuerySet")


def __getattr__(name: str) -> Any:
    # Models can't be imported before Django's apps are loaded; this module can.
    if name in _MODELS:
        from goscope_django.fencing import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
