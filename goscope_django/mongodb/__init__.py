"""The MongoDB adapter. Needs no Django: usable from any Python program.

>>> from pymongo import MongoClient
>>> from goscope_django.mongodb import MongoDBAdapter
>>> adapter = MongoDBAdapter(MongoClient()["app"])      # doctest: +SKIP
>>> with adapter.lock.acquire("report", ttl=5_000) as held:     # doctest: +SKIP
...     print(held.token)
"""

from __future__ import annotations

from goscope_django.contracts import (
    Checkpoint,
    CircuitBreakerState,
    IdempotencyClaim,
    IdempotencyRecord,
    LockHandle,
    LockInfo,
)
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyAdapter

__all__ = [
    "Checkpoint",
    "CircuitBreakerState",
    "IdempotencyClaim",
    "IdempotencyRecord",
    "LockHandle",
    "LockInfo",
    "MongoDBAdapter",
    "MongoDBIdempotencyAdapter",
]
