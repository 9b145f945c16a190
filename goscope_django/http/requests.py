"""Who sends a request, and what it asks for. Single flight and idempotency share this.

Rules of this file:

* Two requests have the same identity only if nothing that this file knows of tells them apart. In doubt they differ.
* Credentials become part of an identity as hashes only.
* Looking at ``request.user`` loads the session, which Django takes for a use of it (``Vary: Cookie``). We look without
  leaving a trace: the user counts as used when the view uses it. See ``Trace``.
* ``caller`` is a flow, since it may load a user from a database.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.utils import timezone, translation
from django.utils.functional import SimpleLazyObject, empty

from goscope_django import conf
from goscope_django.core.flow import Flow, call, invoke
from goscope_django.exceptions import InvalidType

CONDITIONS: Final = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
    "Range",
)
"""Headers for which a view may answer 304, 412 or 206: such an answer is only for clients that sent the same values."""

NEGOTIATION: Final = ("Accept", "Accept-Language")
"""Headers by which a view may choose a representation even if it forgets to say so in ``Vary``."""

_TRACES: Final = "_goscope_traces"
_LOOKED_AT: Final = "_goscope_user"
_ALOOKED_AT: Final = "_goscope_auser"


def digest(text: str | bytes) -> str:
    """160 bits of a hash in hexadecimal."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def identity(*parts: object) -> str:
    """A hash of texts, in which no two different lists of parts look alike. ``None`` differs from ``""``."""
    hasher = hashlib.blake2b(digest_size=20)
    for part in parts:
        text = b"" if part is None else str(part).encode("utf-8", "surrogatepass")
        hasher.update(b"n" if part is None else b"%d:" % len(text))
        hasher.update(text)
    return hasher.hexdigest()


def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any | None:
    """The request among a view's arguments (first, or second after ``self``), also REST framework's; else ``None``."""
    for candidate in (*args[:2], kwargs.get("request")):
        if isinstance(candidate, HttpRequest) or isinstance(getattr(candidate, "_request", None), HttpRequest):
            return candidate
    return None


def plain(request: Any) -> HttpRequest:
    """Django's request, also from inside REST framework's."""
    inner = getattr(request, "_request", None)
    return inner if isinstance(inner, HttpRequest) else request


# Who asks


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``scope`` tells callers apart, ``known`` says whether anything but a session identifies this one.

    ``user`` is the identity of the authenticated user; ``None`` if there is none.
    """

    scope: str
    user: str | None
    known: bool


def user_identity(user: Any) -> str | None:
    """A text that no two users share, ``None`` for an anonymous one. ``InvalidType`` if it has no name."""
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    meta = getattr(user, "_meta", None)
    kind = getattr(meta, "label_lower", None) or f"{type(user).__module__}.{type(user).__qualname__}"
    for name in ("pk", "id", "username"):
        found = getattr(user, name, None)
        if found is not None and found != "":
            return f"{kind}:{name}={found}"
    raise InvalidType(f"a user of type {kind} has neither pk, id nor username: say user= to tell callers apart")


def caller(request: Any, user: Any = None) -> Flow[Caller]:
    """A flow: who sends ``request``.

    The scope is the authenticated user, and in every case a hash of the ``Authorization`` header; with neither, a hash
    of the session cookie. ``user`` replaces all of that: a value (text, number, UUID, a model instance) or a function
    of the request, in a task also a coroutine function. One that gives ``None`` or an anonymous user changes nothing.
    Raises ``InvalidType`` for a user without ``pk``, ``id`` or ``username``.
    """
    found = _given((yield from invoke(user, request)) if callable(user) else user)
    return found or _caller(request, user_identity((yield from _peek(request))))


def _given(value: Any) -> Caller | None:
    text: str | None
    meta = getattr(value, "_meta", None)
    if value is None:
        return None
    if hasattr(value, "is_authenticated"):
        text = user_identity(value)
        if text is None:
            return None
    elif meta is not None:
        text = f"{meta.label_lower}:{value.pk}"
    elif isinstance(value, (str, bytes, int, tuple)) or type(value).__module__ in ("uuid", "bson.objectid"):
        text = f"{type(value).__name__}:{value!s}"
    else:
        raise InvalidType(f"user={type(value).__name__}: text, a number, a UUID or a model instance is needed")
    return Caller(identity("given", text), text, known=True)


def _caller(request: Any, user: str | None) -> Caller:
    inner = plain(request)
    authorization = inner.META.get("HTTP_AUTHORIZATION") or None
    known = user is not None or authorization is not None
    session = None if known else inner.COOKIES.get(conf.session_cookie_name())
    return Caller(identity("caller", user, authorization, session), user, known)


# Looking at the user without a trace


@dataclass(frozen=True, slots=True)
class Used:
    """What a view used.

    ``itself``: the session. ``either``: the session or the user. ``user``: the user that the view put into the request.
    """

    itself: bool
    either: bool
    user: Any = None


class Trace:
    """Notes what a view uses of session and user, from ``watch`` to ``end``. Several may be open on one request."""

    __slots__ = ("_before", "_inner", "_user", "user_used")

    def __init__(self, inner: Any) -> None:
        session = getattr(inner, "session", None)
        self._inner = inner
        self._user = inner.__dict__.get("user")
        self._before = bool(getattr(session, "accessed", False))
        self.user_used = False
        if session is not None:
            session.accessed = False

    def end(self) -> Used:
        """What was used since ``watch``."""
        inner, traces = self._inner, _traces(self._inner)
        traces.remove(self)
        session, user = getattr(inner, "session", None), inner.__dict__.get("user")
        itself = bool(getattr(session, "accessed", False))
        if session is not None:
            # A trace that is still open has noted that the user was used, and will tell Django.
            session.accessed = self._before or itself or (self.user_used and not traces)
        return Used(itself, itself or self.user_used, None if user is self._user else user)


def watch(request: Any) -> Trace:
    """Begin to note what the view uses. The caller must end it by ``Trace.end``, whatever happens."""
    inner = plain(request)
    trace = Trace(inner)
    _traces(inner).append(trace)
    return trace


def _traces(inner: Any) -> list[Trace]:
    found: list[Trace] | None = inner.__dict__.get(_TRACES)
    if found is None:
        found = inner.__dict__[_TRACES] = []
    return found


def _use(inner: Any) -> None:
    """The user was asked for: note it. If no trace is open, tell Django at once."""
    traces = _traces(inner)
    for trace in traces:
        trace.user_used = True
    if not traces:
        inner.session.accessed = True


def _untouched(inner: Any) -> bool:
    """Whether nobody has asked for the user yet, and asking would be taken for a use of the session."""
    user = inner.__dict__.get("user")
    return (
        isinstance(user, SimpleLazyObject)
        and user.__dict__.get("_wrapped") is empty
        and not getattr(getattr(inner, "session", None), "accessed", True)
    )


def _peek(request: Any) -> Flow[Any]:
    """The user. If nobody has asked for it yet, our looking leaves no trace: only the view's asking will count."""
    inner = plain(request)
    if inner is not request or not _untouched(inner):
        return getattr(request, "user", None)
    return (yield from call(_look, _alook, inner))


def _look(inner: Any) -> Any:
    user = inner.user
    ours, looked_at = inner.__dict__.get(_LOOKED_AT, (None, None))
    if user is ours:
        return looked_at
    with contextlib.suppress(AttributeError):
        bool(user.is_authenticated)  # loads it

    def use() -> Any:
        _use(inner)
        return user._wrapped

    inner.session.accessed = False
    inner.user = SimpleLazyObject(use)
    inner.__dict__[_LOOKED_AT] = (inner.user, user)
    return user


async def _alook(inner: Any) -> Any:
    load = getattr(inner, "auser", None)
    if load is None:
        return inner.user
    ours, looked_at = inner.__dict__.get(_ALOOKED_AT, (None, None))
    if load is ours:
        return looked_at
    user = await load()

    async def auser() -> Any:
        _use(inner)
        return user

    inner.session.accessed = False
    inner.auser = auser
    inner.__dict__[_ALOOKED_AT] = (auser, user)
    return user


# For what


def host(request: Any) -> str:
    """Scheme and host as the client sees them; a host that is not allowed is kept apart by its raw headers."""
    inner = plain(request)
    try:
        return f"{inner.scheme}://{inner.get_host()}"
    except DisallowedHost:
        raw = [inner.META.get(name) for name in ("HTTP_HOST", "HTTP_X_FORWARDED_HOST", "SERVER_NAME", "SERVER_PORT")]
        return f"{inner.scheme}://{raw!r}"


def header_values(request: Any, names: Iterable[str]) -> list[str | None]:
    """The values of headers, ``None`` where there is none."""
    headers = plain(request).headers
    return [headers.get(name) for name in names]


def representation(request: Any) -> str:
    """A hash of what may decide on a response besides method, address and caller.

    That is ``Accept``, ``Accept-Language``, the active language and time zone, conditional and range headers, and what
    REST framework has negotiated.
    """
    return identity(
        *header_values(request, (*NEGOTIATION, *CONDITIONS)),
        translation.get_language(),
        timezone.get_current_timezone_name(),
        getattr(request, "accepted_media_type", None) if plain(request) is not request else None,
        getattr(request, "version", None) if plain(request) is not request else None,
    )


def address(request: Any) -> tuple[str, str, str]:
    """Method, scheme with host, and full path with query."""
    inner = plain(request)
    return inner.method or "", host(request), inner.get_full_path()


def key(request: Any, scope: str, *more: object) -> str:
    """The identity of a request: method, host, full path with query, ``scope``, ``representation``, and ``more``."""
    return identity(*address(request), scope, representation(request), *more)
