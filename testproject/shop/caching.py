"""``django.core.cache.cache`` under its own type, so that type checkers know ``ttl`` and ``delete_pattern``."""

from __future__ import annotations

from typing import cast

from django.core.cache import cache as _cache

from goscope_django.cache import MongoDBCache

cache = cast("MongoDBCache", _cache)
