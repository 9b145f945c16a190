"""What an operator does to caches: list keys, delete some, remove all entries or those that match.

Rule of this file: an operator must learn that MongoDB can't be reached. So the cache object here is made of the alias's
own entry, but always asks the server, and raises.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.utils.module_loading import import_string

from goscope_django import conf
from goscope_django.cache import MongoDBCache
from goscope_django.core import arguments
from goscope_django.core.flow import carry_out
from goscope_django.exceptions import InvalidValue, NotFound
from goscope_django.mongodb.driver.limits import within
from goscope_django.operations.place import ACTION_LIMIT, place
from goscope_django.operations.values import Done

LONGEST: Final = 60.0
"""Seconds that a walk through all keys may take."""


def cache_aliases() -> list[str]:
    """The aliases of ``CACHES`` that use our backend. Opens nothing."""
    return list(conf.our_caches())


def cache_of(alias: str) -> MongoDBCache:
    """The alias's cache, as ``strict`` makes it, once its server has answered. Raises ``NotFound``."""
    found = conf.our_caches()
    if alias not in found:
        known = ", ".join(sorted(found)) or "none"
        raise NotFound(f"cache {alias!r}: no alias of CACHES that uses MongoDBCache; these do: {known}", target=alias)
    location = found[alias].get("LOCATION", "")
    carry_out(place(location or None, "CACHES LOCATION").reach())
    return strict(found[alias], alias)


def strict(entry: Mapping[str, Any], alias: str) -> MongoDBCache:
    """A cache of this entry that raises while MongoDB can't be reached."""
    params = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
    backend = import_string(str(entry["BACKEND"]))
    found: MongoDBCache = backend(entry.get("LOCATION", ""), params)
    found.count_as(alias)
    return found.strict()


def cache_keys(alias: str = "default", pattern: str = "*", version: int | None = None, limit: int = 1_000) -> list[str]:
    """Up to ``limit`` live keys of one ``version`` that match the glob ``pattern``, in order. Sessions' are hashed.

    Changes nothing. One round trip, and one for each thousand keys looked at. Raises ``NotFound`` for an ``alias`` that
    is not ours.
    """
    most = arguments.count(limit, "limit")
    with within(LONGEST):
        found = itertools.islice(cache_of(alias).iter_keys(pattern, version=version), most)
        return [arguments.shown_key(key) for key in found]


def delete_cache_keys(alias: str, keys: Sequence[str], version: int | None = None) -> Done:
    """Delete these ``keys`` of one ``version`` of the ``alias``; ``count`` is how many there were. Raises ``NotFound``.

    One round trip for each, and atomic for each only. A key of a session may be given as ``cache_keys`` shows it: that
    takes a walk through the keys that begin alike.
    """
    cache = cache_of(alias)
    with within(LONGEST):
        count = sum(cache.delete(_meant(cache, key, version), version=version) for key in keys)
    return Done(
        action="delete_cache_keys",
        target=alias,
        count=count,
        message=f"{count} of {len(keys)} keys of cache {alias!r} were deleted; the others did not exist.",
    )


def _meant(cache: MongoDBCache, key: str, version: int | None) -> str:
    start, hashed, _ = key.partition(arguments.HASHED)
    if not hashed:
        return key
    pattern = re.sub(r"([][*?])", r"[\1]", start) + "*"
    return next((one for one in cache.iter_keys(pattern, version=version) if arguments.shown_key(one) == key), key)


def clear_cache(alias: str = "default", pattern: str | None = None, version: int | None = None) -> Done:
    """Remove all entries of ``alias``, or those of one ``version`` whose keys match the glob ``pattern``.

    All (every version), and ``"prefix*"``, are one round trip, a delete over a range of the index; another glob is two
    for each thousand keys. Atomic for each entry only. ``count`` is how many were removed. Raises ``NotFound``.
    """
    cache = cache_of(alias)
    if pattern == "":
        raise InvalidValue("pattern='': a glob is needed; None clears all")
    if pattern is None:
        with within(ACTION_LIMIT * 6):
            count = cache.remove_all()
        message = f"Cache {alias!r} was cleared: {count} entries."
    else:
        with within(LONGEST):
            count = cache.delete_pattern(pattern, version=version)
        message = f"{count} entries of cache {alias!r} that match {pattern!r} were removed."
    return Done(action="clear_cache", target=alias, count=count, message=message)
