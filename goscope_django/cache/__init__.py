"""Django's cache on MongoDB, synchronous and natively asynchronous.

Rule of this file: Django's cache API, each method a line or two over a flow of ``mongodb.cache_flows``. Names, keys,
timeouts and the server's absence are ``cache_base``'s, what goes beyond Django's API ``cache_extras``'.
"""

from __future__ import annotations

from goscope_django.cache.backend import (
    MongoDBCache,
    cache,
)
from goscope_django.cache.options import (
    plain_key,
)

__all__ = [
    "MongoDBCache",
    "cache",
    "plain_key",
]
