"""The site for gunicorn, which has read from its near cache before it forks (``--preload``)."""

from __future__ import annotations

import time
from typing import Any

from django.core.cache import caches

from goscope_django.cache.near import near_of
from tests.fleet.site.wsgi import application

__all__ = ["application"]

cache: Any = caches["near"]
deadline = time.monotonic() + 30
cache.set("page", 0)
while (near := near_of("near")) is None or not near.figures.hits:
    cache.get("page")
    assert time.monotonic() < deadline, "nothing is kept"
