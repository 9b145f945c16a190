"""The values of what a view looked at in a request, as texts that can be compared and hashed.

Rules of this file:

* A name is a short text: ``m:HTTP_X_A`` (an entry of ``META``, so also a header), ``c:cart`` (a cookie), ``s:state``
  (an entry of an ASGI scope that ``META`` does not have), ``a:tenant`` (an attribute that middleware put there),
  ``v:tenant`` (one that a class-based view was given before), or a word for a whole: ``headers``, ``META``,
  ``cookies``, ``scope``, ``attributes``, ``user``, ``session``, ``body``, ``GET``. Names are published and logged;
  values are only hashed.
* That there is nothing is a value. Values of different types differ, even if Python calls them equal.
* What has no text that says all of it can't be compared: ``Incomparable``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.db.models import Model
from django.http import HttpRequest
from django.utils.functional import LazyObject, Promise, empty
from django.utils.safestring import SafeString

from goscope_django import conf

Names = tuple[str, ...]
ABSENT: Final = object()
_NUMBERS: Final = (bool, int, float, complex, decimal.Decimal, fractions.Fraction)
_DATES: Final = (dt.date, dt.datetime, dt.time, dt.timedelta, uuid.UUID)
_TEXTS: Final = (str, SafeString)
_OF_THE_SERVER: Final = ("asgi", "extensions", "app", "headers", "client", "server")
"""Entries of an ASGI scope that are in ``META`` too, or say nothing of the request. So does an empty ``state``."""


class Incomparable(Exception):
    """A value that can't be compared. Its only argument is the name of what was read."""


def text_of(value: Any) -> str:
    """A text that is the same for equal values alone. Raises ``Incomparable`` for types that this file does not know.

    A lazy object is evaluated.
    """
    kind = type(value)
    if kind in _TEXTS:
        return f"s{value}"
    if value is None or value is ABSENT:
        return "n" if value is None else "-"
    if kind is bytes:
        return f"b{value.hex()}"
    if kind in _NUMBERS or kind in _DATES:
        return f"{kind.__name__}:{value!r}"
    if issubclass(kind, LazyObject):
        return text_of(_evaluated(value))
    if issubclass(kind, Promise):
        return f"s{value}"
    if isinstance(value, enum.Enum):
        return f"e{kind.__module__}.{kind.__qualname__}:{value.name}:{value.value!r:.200}"
    if isinstance(value, tuple):
        parts = [text_of(one) for one in value]
        return f"t{kind.__module__}.{kind.__qualname__}:" + "".join(f"{len(part)}:{part}" for part in parts)
    if isinstance(value, Model) and value.pk is not None:
        return f"o{value._meta.label_lower}:{text_of(value.pk)}"
    raise Incomparable


def _evaluated(value: Any) -> Any:
    if value.__dict__.get("_wrapped") is empty:
        value._setup()
    return value.__dict__["_wrapped"]


def is_untouched(value: Any) -> bool:
    """Whether it is a lazy object that nobody has evaluated yet."""
    return issubclass(type(value), LazyObject) and object.__getattribute__(value, "__dict__").get("_wrapped") is empty


@dataclass(slots=True)
class Source:
    """Where values are read: what ``META``, the cookies, the scope and the attributes of a request hold."""

    request: HttpRequest
    meta: Mapping[str, Any]
    cookies: Mapping[str, Any]
    scope: Mapping[str, Any]
    attributes: Mapping[str, Any]
    outer: Mapping[str, Any]
    """The attributes of REST framework's request around it."""
    view: Mapping[str, Any]
    """The attributes that a class-based view was given before what is shared began."""
    user: Any = ABSENT
    """The identity of the user, where it is needed."""

    def value(self, name: str, ignored: Collection[str]) -> str:
        """The text of one value. Raises ``Incomparable``."""
        kind, colon, rest = name.partition(":")
        try:
            if colon:
                return text_of(self._single(kind, rest))
            return self._whole(name, ignored)
        except Exception as error:
            # A lazy object may raise anything when it is evaluated, and so may reading a body.
            raise Incomparable(name) from error

    def _single(self, kind: str, name: str) -> Any:
        if kind == "m":
            return self.meta.get(name, ABSENT)
        if kind == "c":
            return self.cookies.get(name, ABSENT)
        if kind == "s":
            return self.scope.get(name, ABSENT)
        if kind == "a":
            return self.outer.get(name, self.attributes.get(name, ABSENT))
        if kind == "v":
            return self.view.get(name, ABSENT)
        raise Incomparable

    def _whole(self, name: str, ignored: Collection[str]) -> str:
        if name == "headers":
            return _entries((one for one in self.meta.items() if is_header(one[0])), "m", ignored)
        if name == "META":
            # What a server puts beside the request (streams, functions) has a name in lower case with a point.
            return _entries((one for one in self.meta.items() if not _is_plumbing(*one)), "m", ignored)
        if name == "cookies":
            return _entries(self.cookies.items(), "c", ignored)
        if name == "scope":
            own = (
                (key, value)
                for key, value in self.scope.items()
                if key not in _OF_THE_SERVER and (key != "state" or value)
            )
            return _entries(own, "s", ignored) + self._whole("META", ignored)
        if name == "session":
            session = self.attributes.get("session")
            return text_of(None if session is None else session.session_key)
        if name == "user":
            if self.user is ABSENT:
                raise Incomparable
            return text_of(self.user)
        if name == "body":
            return hashlib.blake2b(self.request.body, digest_size=20).hexdigest()
        if name == "GET":
            return self.request.GET.urlencode()
        raise Incomparable


def _is_plumbing(name: str, value: Any) -> bool:
    if "." not in name or name.upper() == name:
        return False
    try:
        text_of(value)
    except Incomparable:
        return True
    return False


def is_header(name: str) -> bool:
    """Whether an entry of ``META`` is a header."""
    return name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")


def _entries(entries: Iterable[tuple[str, Any]], kind: str, ignored: Collection[str]) -> str:
    kept = sorted((name, text_of(value)) for name, value in entries if not is_ignored(f"{kind}:{name}", ignored))
    return "".join(f"{len(name)}:{name}{len(text)}:{text}" for name, text in kept)


# Names that a developer says


def plain_name(name: str) -> str:
    """How ``ignore_reads`` knows a name: without its kind, a header as ``META`` has it without ``HTTP_``."""
    kind, colon, rest = name.partition(":")
    if not colon:
        return kind
    return rest.removeprefix("HTTP_") if kind == "m" else rest


def is_ignored(name: str, ignored: Collection[str]) -> bool:
    """Whether ``ignored`` (of ``spoken``) leaves ``name`` out."""
    return bool(ignored) and plain_name(name) in ignored


def spoken(names: Iterable[str]) -> frozenset[str]:
    """``ignore_reads`` as it is compared: each name as it stands, and as the name of a header."""
    said = list(names)
    return frozenset((*said, *(name.upper().replace("-", "_").removeprefix("HTTP_") for name in said)))


# Hashes


@lru_cache(maxsize=4)
def _secret(key: str | bytes) -> bytes:
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else bytes(key)
    return hashlib.blake2b(b"goscope_django.single_flight" + data, digest_size=32).digest()


def digest(source: Source, flight: str, names: Iterable[str], ignored: Collection[str]) -> str:
    """One hash of the values of ``names``, which only this project (by ``SECRET_KEY``) can make, for this flight alone.

    Raises ``Incomparable`` with the first name that can't be compared.
    """
    parts = [flight]
    for name in names:
        parts += (name, source.value(name, ignored))
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), key=_secret(conf.secret_key()), digest_size=20
    ).hexdigest()
