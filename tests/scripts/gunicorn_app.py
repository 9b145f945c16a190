"""A WSGI application that uses the cache, locks and an event loop while it is loaded, and in each request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from typing import Any

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="only-for-tests-" + "x" * 50,
    GOSCOPE={"URL": os.environ["GOSCOPE_TEST_URL"]},
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
    INSTALLED_APPS=["goscope_django"],
)
django.setup()

from django.core.cache import cache  # noqa: E402 - settings come first

from goscope_django import runtime  # noqa: E402

cache.set("loaded-by", os.getpid())
asyncio.run(cache.aget("loaded-by"))


async def _asynchronously() -> Any:
    return await cache.aget("loaded-by")


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Say which process answered and what it saw."""
    count = cache.get_or_set("requests", 0) is not None and cache.incr("requests")
    handle = runtime.adapter().lock.acquire(f"request-{count}", 5_000)
    answer = {
        "pid": os.getpid(),
        "loaded-by": cache.get("loaded-by"),
        "asynchronously": asyncio.run(_asynchronously()),
        "count": count,
        "released": handle is not None and handle.release(),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
