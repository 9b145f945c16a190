"""Checks of arguments: durations, counts, keys, functions and patterns.

Rule of this file: it decides whether an argument is allowed, and converts its unit; nothing else. Every error names the
argument, the value and what is allowed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import re
from datetime import timedelta
from typing import Final

from goscope_django.exceptions import InvalidType, InvalidValue

MAX_MILLISECONDS: Final = 1_000 * 31_557_600_000
"""A thousand years. Later instants do not fit in a ``datetime``."""

MAX_KEY_BYTES: Final = 64 * 1024

Duration = int | float | timedelta


def shown(value: object) -> str:
    """``value`` for an error, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


HASHED: Final = "sha256-"
"""What a key of a session is shown as begins with, in place of the key."""

_SESSION: Final = re.compile(
    r"(django\.contrib\.sessions\.(?:cached_db|cache)|(?<!goscope\.)session[\w.-]*[:/|])([0-9A-Za-z]{8,})",
    re.IGNORECASE,
)


def shown_key(key: str) -> str:
    """A key of the cache for logs and operators: the key of a session in it is a hash, since who reads it is logged in.

    Such keys are those of Django's own engines, and what stands behind a word with ``session`` in it. The keys of our
    own engine are hashes already.
    """
    return _SESSION.sub(lambda found: f"{found[1]}{_hashed(found[2])}", key)


def _hashed(text: str) -> str:
    return f"{HASHED}{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _bounded(name: str, value: object, milliseconds: float, *, zero: bool) -> int:
    if not math.isfinite(milliseconds):
        raise InvalidValue(f"{name}={shown(value)}: a finite duration is needed")
    if milliseconds < 0 or (milliseconds == 0 and not zero):
        raise InvalidValue(f"{name}={shown(value)}: must be {'zero or more' if zero else 'greater than zero'}")
    if milliseconds > MAX_MILLISECONDS:
        raise InvalidValue(f"{name}={shown(value)}: at most 1000 years ({MAX_MILLISECONDS} milliseconds)")
    return math.ceil(milliseconds)


def _in_milliseconds(value: timedelta) -> float:
    return value.days * 86_400_000 + value.seconds * 1_000 + value.microseconds / 1_000


def ttl_milliseconds(value: object, name: str = "ttl") -> int:
    """``value`` (whole milliseconds or a ``timedelta``) as milliseconds, 1 to a thousand years.

    Raises ``InvalidType`` for anything else (``bool`` included), ``InvalidValue`` for zero, negative and huge ones.
    """
    if isinstance(value, timedelta):
        return _bounded(name, value, _in_milliseconds(value), zero=False)
    if type(value) is not int:
        raise InvalidType(f"{name}={shown(value)}: whole milliseconds (int) or a timedelta is needed")
    return _bounded(name, value, value, zero=False)


def duration_milliseconds(value: object, name: str, *, zero: bool = False) -> int:
    """``value`` (seconds as int or float, or a ``timedelta``) as milliseconds, rounded up.

    Raises ``InvalidType`` for ``bool``, text and the like, ``InvalidValue`` for NaN, infinity, negative and huge ones
    and, unless ``zero``, for zero.
    """
    if isinstance(value, timedelta):
        return _bounded(name, value, _in_milliseconds(value), zero=zero)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidType(f"{name}={shown(value)}: seconds (int or float) or a timedelta is needed")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(f"{name}={shown(value)}: a finite duration is needed")
    if abs(value) > MAX_MILLISECONDS:
        raise InvalidValue(f"{name}={shown(value)}: at most 1000 years in seconds ({MAX_MILLISECONDS // 1000})")
    return _bounded(name, value, round(value * 1_000, 6), zero=zero)


def duration_seconds(value: object, name: str, *, zero: bool = False) -> float:
    """Like ``duration_milliseconds``, in seconds."""
    return duration_milliseconds(value, name, zero=zero) / 1_000


def count(value: object, name: str, *, least: int = 1) -> int:
    """``value`` if it is an ``int`` (not ``bool``) of at least ``least``."""
    if type(value) is not int:
        raise InvalidType(f"{name}={shown(value)}: a whole number (int) is needed")
    if value < least:
        raise InvalidValue(f"{name}={shown(value)}: must be at least {least}")
    if value > 2**63 - 1:
        raise InvalidValue(f"{name}={shown(value)}: at most 2**63 - 1")
    return value


def key(value: object, name: str = "key") -> str:
    """``value`` if it is text of at most 64 KiB that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidType(f"{name}={shown(value)}: text (str) is needed, not {type(value).__name__}")
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidValue(f"{name}={shown(value)}: text with lone surrogates can't be stored") from None
    if size > MAX_KEY_BYTES:
        raise InvalidValue(f"{name}={shown(value)}: {size} bytes; at most {MAX_KEY_BYTES} are allowed")
    return value


def function(value: object, decorator: str) -> None:
    """Raise ``InvalidType`` unless ``value`` can be decorated. A generator can't: its call returns before its work."""
    if not callable(value):
        raise InvalidType(
            f"{decorator}: {shown(value)} was decorated; a function is needed. Is the decorator written with its "
            f"parentheses?"
        )
    if isinstance(value, type):
        raise InvalidType(
            f"{decorator}: the class {value.__qualname__} was decorated; a function is needed. For a view's class "
            f"there is method_decorator(..., name='dispatch')"
        )
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise InvalidType(f"{decorator}: {shown(value)} was decorated; its work goes on after the call: no generators")


def named_function(value: object, decorator: str) -> None:
    """Like ``function``, for decorators that need the function's name. A bare ``partial`` has none."""
    function(value, decorator)
    if isinstance(value, functools.partial) and not hasattr(value, "__qualname__"):
        raise InvalidType(
            f"{decorator}: {shown(value)} was decorated, which has no name; update_wrapper() gives it one"
        )


def flag(value: object, name: str) -> bool:
    """``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise InvalidType(f"{name}={shown(value)}: True or False is needed")
    return value


def pattern(value: object, name: str = "pattern") -> re.Pattern[str] | None:
    """A compiled regular expression (Python's syntax), or ``None`` for ``None``.

    A regular expression is code: some take without end on a short text, and nothing interrupts them. So it must be the
    program's own, never a user's; for those there are globs and ``re.escape``.
    """
    if value is None:
        return None
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        return value
    if not isinstance(value, str):
        raise InvalidType(f"{name}={shown(value)}: a regular expression (str) or None is needed")
    try:
        return re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidValue(f"{name}={shown(value)}: not a regular expression: {error}") from error
