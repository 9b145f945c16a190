"""The state's section of caches. Each alias is counted by itself, since it may have a store of its own."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.cache import caches

from goscope_django import conf
from goscope_django.cache import MongoDBCache
from goscope_django.cache.near import near_of
from goscope_django.core.flow import Flow
from goscope_django.core.ticks import tick
from goscope_django.exceptions import GoscopeError
from goscope_django.mongodb import overview
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.execute import CACHE
from goscope_django.mongodb.figures import OTHER, Hour
from goscope_django.operations import convert
from goscope_django.operations.caches import strict
from goscope_django.operations.kept_sessions import stored_in
from goscope_django.operations.place import TIME_LIMIT, Place, place
from goscope_django.operations.servers import index_item
from goscope_django.operations.values import Cache, CacheAlias, CacheFigures, IndexItem, NamespaceItem, NearItem

OUTSIDE = "(outside CACHES)"


@dataclass(slots=True)
class _Alias:
    """An alias, and what was found."""

    name: str
    entry: Mapping[str, Any]
    cache: MongoDBCache | None = None
    where: Place | None = None
    degraded: bool = False
    error: str | None = None
    entries: int | None = None
    at_least: bool = False
    stored: str | None = None
    sessions: int | None = None
    indexes: tuple[IndexItem, ...] = ()


def _aliases(here: Place) -> list[_Alias]:
    found = []
    for name, entry in conf.our_caches().items():
        one = _Alias(name, entry)
        found.append(one)
        try:
            cache = strict(entry, name)
            cache.stored_range()  # raises what is wrong with the settings
            one.cache = cache
            one.degraded = caches[name].degraded  # type: ignore[attr-defined]  # the one that requests use
            location = entry.get("LOCATION", "")
            own = place(location, "CACHES LOCATION") if location else here
            one.where = here if own.connection is here.connection else own
            one.stored = stored_in(cache, location)
        except GoscopeError as error:
            one.error = str(error)
    return found


def _read(clock: Clock, one: _Alias, own: bool) -> Flow[None]:
    assert one.cache is not None
    one.entries, one.at_least = yield from overview.cache_entries(clock, *one.cache.stored_range())
    if one.stored is not None:
        one.sessions = yield from overview.live_entries(clock, one.stored)
    if own:
        one.indexes = tuple(map(index_item, (yield from indexes.check(clock, collection=CACHE))))


def _asked(here: Place, one: _Alias, lost: GoscopeError | None) -> bool:
    """Whether the alias's store is to be asked."""
    if one.error is None and lost is not None and one.where is here:
        one.error = str(lost)
    return one.error is None


def _turns(here: Place, aliases: list[_Alias], lost: GoscopeError | None) -> Iterator[tuple[_Alias, Place, float]]:
    """Which alias is asked, where, and for how many seconds at most.

    Those of the main store come first. Each of the others gets a part of the time, so that one that can't be reached
    takes nothing from the rest.
    """
    asked = [(one, one.where) for one in aliases if _asked(here, one, lost) and one.where is not None]
    others = sum(where is not here for _, where in asked)
    for one, where in sorted(asked, key=lambda pair: pair[1] is not here):
        yield one, where, TIME_LIMIT if where is here else TIME_LIMIT / (1 + others)


def read(here: Place, parts: Mapping[str, Any], lost: GoscopeError | None, *, only: str | None = None) -> Flow[Cache]:
    """The section, or one alias of it. One command for each alias, one more where sessions are kept, two for a store of
    its own."""
    aliases = [one for one in _aliases(here) if only in (None, one.name)]
    for one, where, seconds in _turns(here, aliases, lost):
        try:
            yield from where.ask(seconds, _read, one, where is not here)
        except GoscopeError as error:
            one.error = str(error)
    return _cache(here, aliases, parts)


def _cache(here: Place, aliases: list[_Alias], parts: Mapping[str, Any]) -> Cache:
    hour, entries = parts["figures"], parts["entries"]
    known: Hour | None = hour if isinstance(hour, Hour) else None
    shown = [_alias(here, one, known) for one in aliases]
    names = {one.alias for one in shown}
    if known is not None:
        for name in sorted(known.aliases.keys() - names):
            label = name if name == OTHER else f"{name} {OUTSIDE}"
            shown.append(
                CacheAlias(alias=label, key_prefix="", figures=_of(known, name), namespaces=_namespaces(known, name))
            )
    kept = [one.sessions for one in aliases if one.name == conf.session_cache_alias()]
    total: dict[str, int] = {}
    for counts in known.aliases.values() if known else ():
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return Cache(
        error=entries.error if isinstance(entries, Cache) else None,
        entries=None if isinstance(entries, Cache) else entries,
        sessions=next(iter(kept), None),
        figures=convert.cache_figures(total),
        aliases=tuple(shown),
    )


def _alias(here: Place, one: _Alias, hour: Hour | None) -> CacheAlias:
    return CacheAlias(
        alias=one.name,
        key_prefix=str(one.entry.get("KEY_PREFIX", "")),
        error=one.error,
        url=one.where.shown if one.where is not None and one.where is not here else None,
        entries=one.entries,
        at_least=one.at_least,
        sessions=one.sessions,
        max_entries=one.cache.options.max_entries if one.cache is not None else None,
        degraded=one.degraded,
        near=_near(one.name),
        figures=_of(hour, one.name),
        namespaces=_namespaces(hour, one.name),
        indexes=one.indexes,
    )


def _near(alias: str) -> NearItem | None:
    found = near_of(alias)
    if found is None:
        return None
    stream, figures = found.stream, found.figures
    proved = stream.proof
    return NearItem(
        process=f"{socket.gethostname()}:{os.getpid()}",
        stream="none" if stream.alone else "open" if stream.generation else "opening",
        entries=len(found.kept),
        bytes=found.kept.bytes,
        hits=figures.hits,
        removed=figures.removed,
        renewed=figures.renewed,
        emptied=figures.emptied,
        evicted=found.kept.evicted,
        proved_ago=max(0.0, tick() - proved) if math.isfinite(proved) else None,
    )


def _of(hour: Hour | None, alias: str) -> CacheFigures:
    return convert.cache_figures(hour.aliases.get(alias, {}) if hour else {})


def _namespaces(hour: Hour | None, alias: str) -> tuple[NamespaceItem, ...]:
    """The busiest first. What is counted under no namespace stands under ``(other)``."""
    if hour is None:
        return ()
    named = {name: counts for (of, name), counts in hour.pairs.items() if of == alias}
    rest = dict(hour.aliases.get(alias, {}))
    for counts in named.values():
        for name, count in counts.items():
            rest[name] = rest.get(name, 0) - count
    if any(count > 0 for count in rest.values()):
        other = named.setdefault(OTHER, {})
        for name, count in rest.items():
            other[name] = other.get(name, 0) + max(0, count)
    busiest: Callable[[tuple[str, Mapping[str, int]]], tuple[int, str]] = lambda item: (-sum(item[1].values()), item[0])  # noqa: E731
    return tuple(
        NamespaceItem(namespace=name, figures=convert.cache_figures(counts))
        for name, counts in sorted(named.items(), key=busiest)
    )
