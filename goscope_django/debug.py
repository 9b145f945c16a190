"""Keeps passwords and stored values out of Django's pages and mails about errors.

Django shows there the settings, the request's ``META`` (with the environment of ``runserver`` in it), and the variables
of every function that was running. It hides what has a name like ``PASSWORD``, and a URL has none such::

    DEFAULT_EXCEPTION_REPORTER_FILTER = "goscope_django.debug.ExceptionReporterFilter"

Rules of this file:

* A password is masked wherever it stands, also with ``DEBUG = True``. Known are those of every URL in the settings, and
  of ``CLIENT_OPTIONS``.
* Variables of this package and of the driver hold what is stored. They are shown with ``DEBUG = True`` only.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterator, Mapping
from types import FrameType
from typing import Any, Final
from urllib.parse import quote, quote_plus

from django.http import HttpRequest
from django.template.defaultfilters import pprint
from django.utils.module_loading import import_string
from django.views.debug import SafeExceptionReporterFilter

from goscope_django import conf
from goscope_django.mongodb.driver import urls

__all__ = ["ExceptionReporterFilter"]

FILTER: Final = "goscope_django.debug.ExceptionReporterFilter"
LEAST: Final = 4
"""Shorter passwords are masked in URLs, but not where they stand alone: too much would be."""

MASK: Final = "***"
_URL: Final = re.compile(r"([A-Za-z][\w+.-]*://[^\s/?#:@'\"]*:)[^\s'\"]*@")
_DEEP: Final = 8
_STORES: Final = ("goscope_django", "pymongo", "bson")


class _Shown:
    """A variable's value as a text: what Django prints is its ``repr``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class ExceptionReporterFilter(SafeExceptionReporterFilter):
    """Django's filter, which also masks passwords in URLs. Make your own filter a subclass of it.

    All methods raise nothing and send nothing.
    """

    def cleanse_setting(self, key: str | int, value: Any) -> Any:
        """The setting ``key``, or an item of ``META`` or of the cookies: its ``value`` as it may be shown."""
        return _masked(super().cleanse_setting(key, value), secrets())

    def get_traceback_frame_variables(self, request: HttpRequest | None, tb_frame: FrameType) -> ItemsView[str, Any]:
        """The variables of a function, whose frame is ``tb_frame``, as they may be shown with ``request``'s page."""
        known, found = secrets(), dict(super().get_traceback_frame_variables(request, tb_frame))
        if self.is_active(request) and _of_a_store(tb_frame):
            return dict.fromkeys(found, self.cleansed_substitute).items()
        return {name: _Shown(hidden(str(pprint(value)), known)) for name, value in found.items()}.items()


def _of_a_store(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _STORES


def hidden(text: str, known: list[re.Pattern[str]]) -> str:
    """``text`` without passwords: those ``known``, and any in a URL."""
    for secret in known:
        text = secret.sub(MASK, text)
    return _URL.sub(rf"\g<1>{MASK}@", text)


def _masked(value: Any, known: list[re.Pattern[str]]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {_masked(name, known): _masked(one, known) for name, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_masked(one, known) for one in value)
    text = value if isinstance(value, str) else repr(value)
    shown = hidden(text, known)
    if shown == text:
        return value
    return shown if isinstance(value, str) else _Shown(shown)


def secrets() -> list[re.Pattern[str]]:
    """What finds the passwords that the settings hold, the longest first."""
    found = set(_in_settings())
    forms: set[str] = set()
    for one in found:
        words = {one, *one.split()} if re.search(r"\s", one) else {one}  # long texts are shown in several lines
        for word in words:
            forms |= {word, quote(word, safe=""), quote_plus(word), repr(word)[1:-1], ascii(word)[1:-1]}
    return [re.compile(re.escape(one)) for one in sorted(forms, key=len, reverse=True) if len(one) >= LEAST]


def _in_settings() -> Iterator[str]:
    known = conf.every_setting()
    for value in known.values():
        yield from _passwords(value, 0)
    yield from _malformed()
    ours = known.get("GOSCOPE")
    options = ours.get("CLIENT_OPTIONS") if isinstance(ours, Mapping) else None
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if re.search("(?i)pass|secret|token", str(name)) and isinstance(value, str):
            yield value
        elif str(name).lower() == "authmechanismproperties":
            yield from _properties(value)
        elif str(name).lower() == "host":
            yield from _passwords(value, 0)


def _malformed() -> Iterator[str]:
    """The passwords in our own settings that should be URLs, and are none: ``user:password@host/shop``."""
    ours = conf.every_setting().get("GOSCOPE")
    given = ours if isinstance(ours, Mapping) else {}
    under_test = given.get("TEST")
    stores = [given.get("URL"), under_test.get("URL") if isinstance(under_test, Mapping) else None]
    for value in (*stores, *(entry.get("LOCATION") for entry in conf.our_caches().values())):
        if isinstance(value, str) and "://" not in value and "@" in value:
            credentials = value.rpartition("@")[0]
            yield from {part for part in (credentials.partition(":")[2], credentials.rpartition(":")[2]) if part}


def _properties(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from (one.partition(":")[2] for one in value.split(","))
    elif isinstance(value, Mapping):
        yield from (one for one in value.values() if isinstance(one, str))


def _passwords(value: object, depth: int) -> Iterator[str]:
    if depth > _DEEP:
        return
    if isinstance(value, str):
        if "://" in value:
            yield from urls.secrets_of(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _passwords(one, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from _passwords(one, depth + 1)


def shown_settings() -> str:
    """All settings as the filter that is in force shows them. Empty if it can't be made: Django says so elsewhere."""
    try:
        return repr(import_string(conf.reporter_filter())().get_safe_settings())
    except Exception:  # noqa: BLE001
        return ""
