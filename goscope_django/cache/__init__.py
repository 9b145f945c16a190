"""Django's cache on MongoDB, sync and async: ``MongoDBCache`` is the backend, ``cache`` the default cache, typed."""

from __future__ import annotations

from goscope_django.cache.backend import MongoDBCache, cache
from goscope_django.cache.keys import plain_key
from goscope_django.cache.locking import CacheLock

__all__ = ["CacheLock", "MongoDBCache", "cache", "plain_key"]
