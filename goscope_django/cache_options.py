"""What a ``CACHES`` entry says, judged; and the small matters of keys, timeouts and room.

Rule of this file: no method of the cache stands here, only what they all need.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.core.cache.backends.base import default_key_func

from goscope_django import arguments, conf
from goscope_django.exceptions import ConfigurationError, InvalidType, InvalidValue
from goscope_django.forking import at_fork
from goscope_django.mongodb import urls
from goscope_django.mongodb.cache_flows import CacheFlows
from goscope_django.mongodb.expressions import Clock
from goscope_django.mongodb.flow import Flow

OPTIONS: Final = ("MAX_ENTRIES", "CULL_FREQUENCY", "SERIALIZER", "ON_ERROR")
SERIALIZERS: Final = ("auto", "bson")
DEFAULT_CULL_FREQUENCY: Final = 3
INT64: Final = 2**63
PATIENCE: Final = 60.0
"""Seconds after which somebody else makes room, should whoever began never end."""

_ORDINARY_SECONDS: Final = 10**9


def plain_key(key: Any, key_prefix: str, version: int | None) -> str:
    """A ``KEY_FUNCTION`` that stores ``foo`` as ``foo``, as Node's adapter reads it; a ``KEY_PREFIX`` stands before
    it."""
    return f"{key_prefix}:{key}" if key_prefix else str(key)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """One alias's entry in ``CACHES``. ``timeout`` is in seconds or ``None``."""

    location: str
    timeout: float | timedelta | None
    max_entries: int | None
    cull_frequency: int
    pickle: bool
    on_error: conf.OnError | None
    default_key_function: bool


def cache_options(location: object, params: Mapping[str, Any]) -> CacheOptions:
    """The options of a cache. Raises ``ImproperlyConfigured`` (``BadSettings``) for the first that can't be used."""
    try:
        return _judged(location, params)
    except (ConfigurationError, InvalidType, InvalidValue) as error:
        raise conf.BadSettings(str(error)) from None


def _judged(location: object, params: Mapping[str, Any]) -> CacheOptions:
    options = params.get("OPTIONS") or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"CACHES OPTIONS: a dict is needed, not {type(options).__name__}")
    for name in options:
        if name not in OPTIONS:
            raise ConfigurationError(f"CACHES OPTIONS[{name!r}] is unknown. {conf.suggestion(name, OPTIONS)}")
    if not isinstance(location, str):
        raise ConfigurationError(f"CACHES LOCATION={location!r:.80}: one URL (str), or '' for GOSCOPE['URL']")
    if location:
        urls.parse(location, "CACHES LOCATION", base=conf.base_dir())
    timeout = params.get("timeout", params.get("TIMEOUT", 300))
    milliseconds_of(timeout, "CACHES TIMEOUT")
    limit = params.get("max_entries", options.get("MAX_ENTRIES"))
    if limit is not None:
        arguments.count(limit, "CACHES OPTIONS['MAX_ENTRIES']")
    cull = params.get("cull_frequency", options.get("CULL_FREQUENCY", DEFAULT_CULL_FREQUENCY))
    arguments.count(cull, "CACHES OPTIONS['CULL_FREQUENCY']", least=0)
    serializer = options.get("SERIALIZER", "auto")
    if serializer not in SERIALIZERS:
        raise ConfigurationError(
            f"CACHES OPTIONS['SERIALIZER']={serializer!r:.80}: one of {', '.join(map(repr, SERIALIZERS))} is allowed"
        )
    on_error = options.get("ON_ERROR")
    if on_error is not None:
        conf.on_error(on_error, "CACHES OPTIONS['ON_ERROR']")
    function = params.get("KEY_FUNCTION")
    return CacheOptions(
        location=location,
        timeout=timeout,
        max_entries=limit,
        cull_frequency=cull,
        pickle=serializer != "bson",
        on_error=on_error,
        default_key_function=function in (None, default_key_func, "django.core.cache.backends.base.default_key_func"),
    )


def alias_of(location: object, params: Mapping[str, Any]) -> str:
    """The alias whose entry in ``CACHES`` is this one (Django does not say); else what its keys begin with."""
    from django.core.cache import caches

    for alias, entry in caches.settings.items():
        rest = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
        if rest == params and entry.get("LOCATION", "") == location:
            return str(alias)
    return str(params.get("KEY_PREFIX") or "(unnamed)")


def milliseconds_of(timeout: object, name: str = "timeout") -> int | None:
    """Milliseconds of a cache's timeout; ``None`` for never; 0 for zero and less, which delete.

    Raises ``InvalidType`` (a ``TypeError``) for ``bool``, text and the like, ``InvalidValue`` (a ``ValueError``) for
    NaN, infinity and more than a thousand years.
    """
    if timeout is None:
        return None
    if type(timeout) is int and 0 < timeout < _ORDINARY_SECONDS:  # nearly always
        return timeout * 1_000
    if isinstance(timeout, timedelta):
        return 0 if timeout <= timedelta(0) else arguments.duration_milliseconds(timeout, name)
    if (
        isinstance(timeout, (int, float))
        and not isinstance(timeout, bool)
        and -arguments.MAX_MILLISECONDS < timeout <= 0
    ):
        return 0
    return arguments.duration_milliseconds(timeout, name)


def delta_of(delta: object) -> int:
    """A summand for ``incr``. Raises ``InvalidType`` for anything but an ``int``, ``InvalidValue`` over 64 bits."""
    if type(delta) is not int:
        raise InvalidType(f"delta={delta!r:.80}: a whole number (int) is needed")
    if not -INT64 < delta < INT64:
        raise InvalidValue(f"delta={delta!r:.80}: it must fit in 64 bits")
    return delta


def stored_key(prefix: str, made: object) -> str:
    """The key as stored. Raises for what can't be stored (lone surrogates, more than 64 KiB)."""
    return prefix + arguments.key(made if isinstance(made, str) else str(made))


_SPECIAL: Final = re.compile(r"[*?\[\\]")


class Glob:
    """A pattern as Redis knows it: ``*``, ``?``, ``[abc]``, ``[^a]``, ``[a-z]``, and ``\\`` to take one literally.

    ``prefix`` is what every match begins with; ``only_prefix`` is true if nothing else is asked of it.
    """

    def __init__(self, pattern: object) -> None:
        if not isinstance(pattern, str):
            raise InvalidType(f"pattern={pattern!r:.80}: a glob (str) such as 'user:*' is needed")
        arguments.key(pattern, "pattern")
        self.prefix = pattern[: match.start()] if (match := _SPECIAL.search(pattern)) else pattern
        self.only_prefix = pattern == f"{self.prefix}*"
        self._match = re.compile(_regex(pattern), re.DOTALL).fullmatch

    def matches(self, key: str, start: int = 0) -> bool:
        """Whether ``key`` from ``start`` on matches as a whole."""
        return self.only_prefix or self._match(key, start) is not None


def _end_of_class(pattern: str, at: int) -> int:
    """Where the ``]`` is that ends what begins at ``at``, behind one that is its first character; 0 for nowhere."""
    at += pattern[at : at + 1] == "^"
    first = at
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at if at < len(pattern) else 0


def _class(inner: str) -> str:
    negated = inner.startswith("^")
    parts, at = [], int(negated)
    while at < len(inner):
        at += inner[at] == "\\" and at + 1 < len(inner)
        if inner[at + 1 : at + 2] == "-" and at + 2 < len(inner):
            parts.append(f"{re.escape(inner[at])}-{re.escape(inner[at + 2])}")
            at += 3
        else:
            parts.append(re.escape(inner[at]))
            at += 1
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _regex(pattern: str) -> str:
    parts, at = [], 0
    while at < len(pattern):
        char, at = pattern[at], at + 1
        if char == "*":
            parts.append(".*")
        elif char == "?":
            parts.append(".")
        elif char == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        elif char == "[" and (end := _end_of_class(pattern, at)):
            parts.append(_class(pattern[at:end]))
            at = end + 1
        else:
            parts.append(re.escape(char))
    text = "".join(parts)
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidValue(f"pattern={pattern!r:.80}: not a glob: {error}") from None
    return text


class Headroom:
    """How many entries this process may still add before it counts again. One for each place, shared by all threads.

    The cache is counted when the room is used up, not at every write, and by one caller: what others store meanwhile
    counts the next time. Other processes' writes are not seen until then, so a large cache may overshoot
    ``MAX_ENTRIES`` for a while; half of what is free is taken at a time to keep that small.
    """

    def __init__(self, limit: int, frequency: int) -> None:
        self.limit = limit
        self.frequency = frequency
        self.left = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: another thread may have held the lock, or been about to make room."""
        self._lock = threading.Lock()
        self._busy_until = 0.0

    def take(self, entries: int) -> bool:
        """Use up room for ``entries``; ``False`` if the caller must ``cull`` first."""
        with self._lock:
            if self.left >= entries:
                self.left -= entries
                return True
            if (now := time.monotonic()) < self._busy_until:
                return True  # each would remove a share of its own, and all together everything
            self._busy_until = now + PATIENCE
            return False

    def cull(self, clock: Clock, flows: CacheFlows, prefix: str) -> Flow[None]:
        """Count, and where the limit is reached remove one in ``frequency`` (all, if that is 0), the soonest to
        expire."""
        left = 0
        try:
            number = yield from flows.count(clock, prefix)
            if number >= self.limit:
                surplus = number - self.limit
                share = number if self.frequency == 0 else surplus + max(1, (number - surplus) // self.frequency)
                number -= yield from flows.cull(clock, prefix, share)
            free = max(1, self.limit - number)
            left = max(0, (free if self.limit < 1_000 else max(1, free // 2)) - 1)
        finally:
            with self._lock:
                self.left, self._busy_until = left, 0.0


_rooms: dict[tuple[str, int, int], Headroom] = {}


def headroom(place: str, limit: int, frequency: int) -> Headroom:
    """This process's room in ``place``."""
    return _rooms.setdefault((place, limit, frequency), Headroom(limit, frequency))


def _after_fork() -> None:
    for one in _rooms.values():
        one.begin_anew()


at_fork(child=_after_fork)
