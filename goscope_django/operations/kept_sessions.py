"""Finds the sessions that are kept in a cache: who clears it signs people out, and must know that before.

Rule of this file: what counts is what is removed. Sessions stand in every alias whose clearing removes them, be it the
one of ``SESSION_CACHE_ALIAS`` or another one with the same keys.
"""

from __future__ import annotations

import re
from typing import Final

from goscope_django import conf
from goscope_django.cache import MongoDBCache
from goscope_django.core.flow import carry_out
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb import overview
from goscope_django.mongodb.driver.limits import within
from goscope_django.operations.caches import cache_of, strict
from goscope_django.operations.place import ACTION_LIMIT, place
from goscope_django.operations.wording import number

OURS: Final = "goscope_django.sessions"
DJANGOS: Final = "django.contrib.sessions.backends.cache"


def _start(engine: str) -> str | None:
    """What the keys of sessions begin with under this ``SESSION_ENGINE``. Django's ``cached_db`` signs nobody out."""
    if engine == OURS:
        from goscope_django import sessions  # it loads Django's sessions, which a project may not have

        return sessions.PREFIX
    return "django.contrib.sessions.cache" if engine == DJANGOS else None


def stored_in(cache: MongoDBCache, location: str) -> str | None:
    """What the stored keys of the sessions begin with that clearing ``cache`` removes; ``None``: it removes none.

    ``location`` is the cache's own. Asks no server. Raises ``InvalidValue`` where a ``KEY_FUNCTION`` leaves that open.
    """
    start, entry = _start(conf.session_engine()), conf.our_caches().get(conf.session_cache_alias())
    if start is None or entry is None:
        return None
    try:
        stored = strict(entry, conf.session_cache_alias()).stored_start(start)
        theirs = place(entry.get("LOCATION") or None, "CACHES LOCATION")
        mine = place(location or None, "CACHES LOCATION")
        prefix, regex = cache.stored_range()
    except ConfigurationError:
        return None
    inside = stored.startswith(prefix) and (regex is None or re.match(regex, stored) is not None)
    return stored if inside and mine.connection is theirs.connection else None


def signed_out(alias: str, pattern: str | None = None, version: int | None = None) -> str:
    """A sentence on who will be signed out if ``clear_cache`` is called with this; empty if nobody will.

    ``alias``, ``pattern`` and ``version`` are those of ``clear_cache``. Changes nothing. One round trip, and with a
    ``pattern`` that sessions may match one for each thousand keys. Raises no ``StoreError``: the sentence then says
    that the number is not known.
    """
    entry = conf.our_caches().get(alias)
    if entry is None:
        return ""
    location = entry.get("LOCATION", "")
    try:
        stored = stored_in(strict(entry, alias), location)
        if stored is None:
            return ""
        if pattern is None:
            where = place(location or None, "CACHES LOCATION")
            found = carry_out(where.act(overview.live_entries, stored))
        else:
            found = _matching(alias, pattern, version, stored)
    except GoscopeError:
        return "Sessions are kept in it: people will be signed out, how many is not known."
    if not found:
        return ""
    most = number(found, at_least=found >= overview.MOST_ENTRIES)
    return f"Sessions are kept in it: {most} {'person' if found == 1 else 'people'} will be signed out."


def _matching(alias: str, pattern: str, version: int | None, stored: str) -> int:
    cache = cache_of(alias)
    base = cache.stored_start("", version)
    with within(ACTION_LIMIT):
        return sum(f"{base}{key}".startswith(stored) for key in cache.iter_keys(pattern, version=version))
