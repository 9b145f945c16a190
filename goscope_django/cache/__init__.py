"""Django's cache on MongoDB, sync and async. The cache itself is in ``backend``."""

from __future__ import annotations

from goscope_django.cache.backend import MongoDBCache, cache
from goscope_django.cache.keys import plain_key
from goscope_django.cache.locking import CacheLock

__all__ = ["CacheLock", "MongoDBCache", "cache", "plain_key"]
