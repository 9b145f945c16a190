"""A database of ``django_mongodb_backend`` for a while, beside whatever the settings of the suite name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from django.db import connections

ALIAS = "orders"


@contextmanager
def mongodb_alias(url: str, alias: str = ALIAS, **entry: Any) -> Iterator[Any]:
    """Yield the connection of a new entry ``alias`` in ``DATABASES``, on the server and database of ``url``."""
    parts = urlsplit(url)
    given = {
        "ENGINE": "django_mongodb_backend",
        "HOST": urlunsplit(parts._replace(path="/")),
        "NAME": parts.path[1:],
        **entry,
    }
    connections.settings[alias] = given
    # Django fills in what an entry does not say once, for all entries.
    for name, value in connections.settings["default"].items():
        given.setdefault(name, {} if isinstance(value, dict) else value if name != "NAME" else "")
    given["OPTIONS"], given["TEST"] = entry.get("OPTIONS", {}), {"NAME": given["NAME"], **entry.get("TEST", {})}
    given["ATOMIC_REQUESTS"], given["USER"], given["PASSWORD"] = False, entry.get("USER", ""), entry.get("PASSWORD", "")
    try:
        made: Any = connections[alias]
    except BaseException:
        del connections.settings[alias]
        raise
    try:
        yield made
    finally:
        made.close_pool()
        del connections[alias]
        del connections.settings[alias]
