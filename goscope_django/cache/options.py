"""What an entry of ``CACHES`` says, and what the cache's methods accept as a timeout or a summand.

Rule of this file: it checks and converts. It opens nothing and keeps nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.core.cache.backends.base import default_key_func

from goscope_django import conf
from goscope_django.core import arguments
from goscope_django.exceptions import ConfigurationError, InvalidType, InvalidValue
from goscope_django.mongodb.driver import urls

Timeout = Any
"""Seconds (int or float), a timedelta, ``None`` for never, or Django's ``DEFAULT_TIMEOUT``. Zero and less delete."""

OPTIONS: Final = ("TIMEOUT", "MAX_ENTRIES", "CULL_FREQUENCY", "SERIALIZER", "ON_ERROR", "NEAR", "SIGN", "COMPRESS")
NEAR: Final = ("MAX_ENTRIES", "MAX_BYTES", "MAX_STALE")
SERIALIZERS: Final = ("auto", "bson")
DEFAULT_CULL_FREQUENCY: Final = 3
DEFAULT_MIN_BYTES: Final = 8_192
INT64: Final = 2**63

_ORDINARY_SECONDS: Final = 10**9
_WHOLE: Final = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class NearOptions:
    """What ``NEAR`` says. ``max_stale`` is in seconds."""

    max_entries: int = 10_000
    max_bytes: int = 67_108_864
    max_stale: float = 1.0


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """An entry of ``CACHES``, checked. ``timeout`` is in seconds; ``None`` means never.

    ``sign``: every value is signed. ``min_bytes``: values of so many bytes and more are compressed; ``None``: none are.
    """

    location: str
    timeout: float | timedelta | None
    max_entries: int | None
    cull_frequency: int
    pickle: bool
    on_error: conf.OnError | None
    default_key_function: bool
    sign: bool
    min_bytes: int | None
    near: NearOptions | None = None


def cache_options(location: object, params: Mapping[str, Any]) -> CacheOptions:
    """Check an entry of ``CACHES``. Raises ``ImproperlyConfigured`` (``BadSettings``) for the first fault."""
    try:
        return _checked(location, params)
    except (ConfigurationError, InvalidType, InvalidValue) as error:
        raise conf.BadSettings(str(error)) from None


def faults(location: object, params: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with an entry of ``CACHES``: each of its keys and options is looked at by itself."""
    options = params.get("OPTIONS")
    parts: list[tuple[object, Mapping[str, Any]]] = [(location, {})]
    parts += [("", {name: params[name]}) for name in params if name not in ("BACKEND", "LOCATION", "OPTIONS")]
    parts += (
        [("", {"OPTIONS": {name: options[name]}}) for name in options]
        if isinstance(options, Mapping)
        else [("", {"OPTIONS": options})]
    )
    found: list[str] = []
    for part in (*parts, (location, params)):
        try:
            cache_options(*part)
        except conf.BadSettings as error:
            if part != (location, params) or not found:  # the whole has a fault of its own where no part has one
                found.append(str(error))
    return found


def _checked(location: object, params: Mapping[str, Any]) -> CacheOptions:
    options = params.get("OPTIONS") or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"CACHES OPTIONS: a dict is needed, not {type(options).__name__}")
    for name in options:
        if name not in OPTIONS:
            raise ConfigurationError(f"CACHES OPTIONS[{name!r}] is unknown. {conf.suggestion(name, OPTIONS)}")
    if not isinstance(location, str):
        raise ConfigurationError(f"CACHES LOCATION={location!r:.80}: one URL (str), or '' for GOSCOPE['URL']")
    if location:
        conf.target(location, "CACHES LOCATION")
    timeout, name = _given(params, options, "TIMEOUT", 300)
    milliseconds_of(timeout, name)
    limit, name = _given(params, options, "MAX_ENTRIES", None)
    if limit is not None:
        arguments.count(limit, name)
    cull, name = _given(params, options, "CULL_FREQUENCY", DEFAULT_CULL_FREQUENCY)
    arguments.count(cull, name, least=0)
    serializer = options.get("SERIALIZER", "auto")
    if serializer not in SERIALIZERS:
        raise ConfigurationError(
            f"CACHES OPTIONS['SERIALIZER']={serializer!r:.80}: one of {', '.join(map(repr, SERIALIZERS))} is allowed"
        )
    on_error = options.get("ON_ERROR")
    if on_error is not None:
        conf.on_error(on_error, "CACHES OPTIONS['ON_ERROR']")
    sign = options.get("SIGN", False)
    if type(sign) is not bool:
        raise ConfigurationError(f"CACHES OPTIONS['SIGN']={sign!r:.80}: True or False is allowed")
    function = params.get("KEY_FUNCTION")
    return CacheOptions(
        location=urls.Hidden(location),
        timeout=timeout,
        max_entries=limit,
        cull_frequency=cull,
        pickle=serializer != "bson",
        on_error=on_error,
        default_key_function=function in (None, default_key_func, "django.core.cache.backends.base.default_key_func"),
        sign=sign,
        min_bytes=_min_bytes(options.get("COMPRESS")),
        near=_near(options.get("NEAR")),
    )


def _near(given: object) -> NearOptions | None:
    name, default = "CACHES OPTIONS['NEAR']", NearOptions()
    if given is None or given is False:
        return None
    if given is True:
        return default
    if not isinstance(given, Mapping):
        raise ConfigurationError(conf.not_a_dict(given, name, f"True, False or a dict with {', '.join(NEAR)}"))
    for one in given:
        if one not in NEAR:
            raise ConfigurationError(f"{name}[{one!r:.80}] is unknown. {conf.suggestion(one, NEAR)}")
    return NearOptions(
        max_entries=arguments.count(given.get("MAX_ENTRIES", default.max_entries), f"{name}['MAX_ENTRIES']"),
        max_bytes=arguments.count(given.get("MAX_BYTES", default.max_bytes), f"{name}['MAX_BYTES']"),
        max_stale=arguments.duration_seconds(given.get("MAX_STALE", default.max_stale), f"{name}['MAX_STALE']"),
    )


def _min_bytes(compress: object) -> int | None:
    """From how many bytes on ``OPTIONS["COMPRESS"]`` says that values are compressed; ``None``: never."""
    if compress is None:
        return None
    name = "CACHES OPTIONS['COMPRESS']"
    if not isinstance(compress, Mapping):
        needed = f"a dict such as {{'MIN_BYTES': {DEFAULT_MIN_BYTES}}} (or None)"
        raise ConfigurationError(conf.not_a_dict(compress, name, needed))
    for one in compress:
        if one != "MIN_BYTES":
            raise ConfigurationError(f"{name}[{one!r:.80}] is unknown. {conf.suggestion(one, ('MIN_BYTES',))}")
    return arguments.count(compress.get("MIN_BYTES", DEFAULT_MIN_BYTES), f"{name}['MIN_BYTES']")


def _given(params: Mapping[str, Any], options: Mapping[str, Any], name: str, default: object) -> tuple[Any, str]:
    """What the entry says of ``name``, in itself or in ``OPTIONS``, and how an error calls it.

    Text of a whole number is that number, as for Django's own backends; other text is left for the check to refuse.
    """
    for place, key, called in (
        (params, name.lower(), f"CACHES {name}"),
        (params, name, f"CACHES {name}"),
        (options, name, f"CACHES OPTIONS[{name!r}]"),
    ):
        if key in place:
            value = place[key]
            whole = isinstance(value, str) and _WHOLE.fullmatch(value)
            return (int(value) if whole else value), called
    return default, f"CACHES {name}"


def alias_of(location: object, params: Mapping[str, Any]) -> str:
    """The alias of this entry in ``CACHES``, which Django does not tell; its ``KEY_PREFIX`` if there is none."""
    from django.core.cache import caches

    for alias, entry in caches.settings.items():
        rest = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
        if rest == params and entry.get("LOCATION", "") == location:
            return str(alias)
    return str(params.get("KEY_PREFIX") or "(unnamed)")


def milliseconds_of(timeout: object, name: str = "timeout") -> int | None:
    """A cache's timeout in milliseconds; ``None`` for never; 0 for zero and less, which delete the entry.

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


def stale_options(stale: object, background: object) -> tuple[int, bool]:
    """``stale`` in milliseconds (0 for none), and whether to compute in the background. Raises ``InvalidType`` and
    ``InvalidValue`` for what can't be used, also ``background`` where there is no old value that could serve."""
    if arguments.flag(background, "background") and stale is None:
        raise InvalidValue("background=True: it needs stale=..., so that an old value can serve meanwhile")
    return (0 if stale is None else arguments.duration_milliseconds(stale, "stale")), background is True


def delta_of(delta: object) -> int:
    """Check a summand for ``incr``. Raises ``InvalidType`` for all but an ``int``, ``InvalidValue`` over 64 bits."""
    if type(delta) is not int:
        raise InvalidType(f"delta={delta!r:.80}: a whole number (int) is needed")
    if not -INT64 < delta < INT64:
        raise InvalidValue(f"delta={delta!r:.80}: it must fit in 64 bits")
    return delta


def instant_of(when: object, name: str, *, unit: timedelta) -> datetime:
    """An instant as an aware UTC datetime: a datetime (a naive one is local time, as for Redis) or a number of
    ``unit`` since 1970. Raises ``InvalidType``, and ``InvalidValue`` for what no date can be."""
    if isinstance(when, datetime):
        try:
            return when.astimezone(UTC)
        except (OverflowError, OSError, ValueError):
            raise InvalidValue(f"{name}={when!r:.80}: no instant that UTC can express") from None
    if isinstance(when, bool) or not isinstance(when, (int, float)):
        raise InvalidType(f"{name}={when!r:.80}: a datetime or a number since 1970 is needed")
    try:
        if not math.isfinite(when):
            raise OverflowError
        return _EPOCH + when * unit
    except OverflowError:
        raise InvalidValue(f"{name}={when!r:.80}: no instant between the years 1 and 9999") from None


def pexpire_milliseconds(timeout: object) -> Timeout:
    """The timeout of ``pexpire``, given in milliseconds or as a ``timedelta``, as one that ``touch`` takes."""
    if timeout is None or isinstance(timeout, timedelta):
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidType(f"timeout={timeout!r:.80}: milliseconds or a timedelta is needed")
    if not abs(timeout) <= arguments.MAX_MILLISECONDS:  # true of NaN as well
        raise InvalidValue(f"timeout={timeout!r:.80}: at most 1000 years in milliseconds")
    return timedelta(milliseconds=timeout)
