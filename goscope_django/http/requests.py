"""Who sends a request, and what it asks for. Single flight and idempotency share this.

Rules of this file:

* Two requests have the same identity only if nothing that this file knows of tells them apart. In doubt they differ.
* Credentials become part of an identity as hashes only.
* Looking at ``request.user`` loads the session, which Django takes for a use of it (``Vary: Cookie``). We look without
  leaving a trace: the user counts as used when the view uses it.
* ``caller`` is a flow, since it may load a user from a database.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.utils import timezone, translation
from django.utils.functional import SimpleLazyObject
from django.views.generic.base import View

from goscope_django import conf
from goscope_django.core.flow import Flow, call, invoke
from goscope_django.exceptions import InvalidType
from goscope_django.http import values
from goscope_django.http.recording import VIEW, Trace, Used, raw, recorder_of, source_now
from goscope_django.http.values import ABSENT, Source, is_untouched

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

CREDENTIALS: Final = (
    *("Authorization", "Proxy-Authorization", "X-Authorization", "Authentication", "X-Auth", "X-Auth-Key"),
    *("X-Auth-Token", "X-Auth-User", "X-Auth-Email", "Auth-Token", "X-Access-Token", "Access-Token", "X-Token"),
    "Token",
    *("X-Api-Key", "Api-Key", "Apikey", "X-Apikey", "X-Api-Token", "X-Api-Secret", "X-App-Key", "X-App-Token"),
    *("X-Client-Id", "X-Client-Secret", "X-Client-Key", "X-Secret", "X-Secret-Key", "X-Access-Key", "X-Key-Id"),
    *("X-Session-Id", "X-Session-Token", "X-Session", "X-Jwt", "X-Jwt-Token", "X-Jwt-Assertion", "X-Id-Token"),
    *("X-Refresh-Token", "X-User-Token", "X-User", "X-User-Id", "X-User-Email", "X-Username", "X-Userid"),
    *("X-Remote-User", "Remote-User", "Remote-Email", "Remote-Name", "Remote-Groups", "X-Authenticated-User"),
    *("X-Authenticated-Userid", "X-Authenticated-Email", "X-Authenticated-Groups", "X-Authenticated-Scope"),
    *("X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-Forwarded-Groups"),
    *("X-Forwarded-Access-Token", "X-Forwarded-Client-Cert", "X-Auth-Request-User", "X-Auth-Request-Email"),
    *("X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username", "X-Auth-Request-Access-Token"),
    *("X-Webauth-User", "X-Consumer-Id", "X-Consumer-Username", "X-Consumer-Custom-Id", "X-Credential-Identifier"),
    *("X-Goog-Api-Key", "X-Goog-Iap-Jwt-Assertion", "X-Goog-Authenticated-User-Id", "X-Goog-Authenticated-User-Email"),
    *("X-Amzn-Oidc-Data", "X-Amzn-Oidc-Identity", "X-Amzn-Oidc-Accesstoken", "X-Amz-Security-Token"),
    *("X-Ms-Client-Principal", "X-Ms-Client-Principal-Id", "X-Ms-Client-Principal-Name", "X-Functions-Key"),
    *("Ocp-Apim-Subscription-Key", "Cf-Access-Jwt-Assertion", "Cf-Access-Client-Id", "Cf-Access-Client-Secret"),
    *("Cf-Access-Authenticated-User-Email", "Tailscale-User-Login", "X-Rapidapi-Key", "X-Rapidapi-User"),
    *("X-Gitlab-Token", "Private-Token", "Job-Token", "X-Vault-Token", "X-Shopify-Access-Token", "X-Plex-Token"),
    *("X-Telegram-Bot-Api-Secret-Token", "X-Subject-Token", "X-Service-Token", "X-Internal-Token", "X-Admin-Token"),
    *("Client-Cert", "Client-Cert-Chain", "X-Client-Cert", "X-Client-Certificate", "X-Client-Dn", "X-Client-S-Dn"),
    *("X-Client-Verify", "X-Client-Fingerprint", "X-Ssl-Cert", "X-Ssl-Client", "X-Arr-Clientcert", "X-Mtls-Client-Dn"),
    *("X-Amzn-Mtls-Clientcert", "X-Amzn-Mtls-Clientcert-Leaf", "X-Amzn-Mtls-Clientcert-Subject"),
)
"""Headers that say who asks. Any name with ``SSL_CLIENT`` in it counts as well, as a header and as a variable."""
_CREDENTIALS: Final = frozenset(
    {"REMOTE_USER", "AUTH_USER", "LOGON_USER", "TLS_CLIENT_SUBJECT", "TLS_CLIENT_CERT", "CERT_SUBJECT"}
    | {f"HTTP_{name.upper().replace('-', '_')}" for name in CREDENTIALS}
)

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


def serve_by(request: Any, instance: Any) -> None:
    """Tell the request of the object whose method is called, if that is a class-based view made for this request.

    What ``setup()`` and ``dispatch()`` have put on it may come from the request as well.
    """
    own = isinstance(instance, View) and raw(instance).get("request") is request
    raw(plain(request))[VIEW] = instance if own else None


# Who asks


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``scope`` tells callers apart, ``known`` says whether anything but a session identifies this one.

    ``user`` is the identity of the authenticated user; ``None`` if there is none. ``given``: ``user=`` said it.
    """

    scope: str
    user: str | None
    known: bool
    given: bool = False


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


def caller(request: Any, user: Any = None, *, alone: bool = False) -> Flow[Caller]:
    """A flow: who sends ``request``.

    The scope is the authenticated user, and in every case a hash of the other credentials (``credentials``); with
    neither, a hash of the session cookie. With ``alone`` an authenticated user is the whole scope: a token may be
    another one by the time a request is repeated. ``user`` replaces all of that: a value (text, number, UUID, a model
    instance) or a function of the request, in a task also a coroutine function. One that gives ``None`` or an anonymous
    user changes nothing. Raises ``InvalidType`` for a user without ``pk``, ``id`` or ``username``.
    """
    found = _given((yield from invoke(user, request)) if callable(user) else user)
    return found or _caller(request, user_identity((yield from _peek(request))), alone)


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
    return Caller(identity("given", text), text, known=True, given=True)


def _caller(request: Any, user: str | None, alone: bool) -> Caller:
    inner = plain(request)
    with _silent(inner):
        said = () if alone and user is not None else credentials(inner)
        known = user is not None or bool(said)
        session = None if known else inner.COOKIES.get(conf.session_cookie_name())
    return Caller(identity("caller", user, *said, session), user, known)


def credentials(inner: HttpRequest) -> list[str]:
    """Names and values of everything in a request by which servers, proxies and views commonly tell who asks.

    These are the headers ``CREDENTIALS`` and those of ``GOSCOPE["CREDENTIAL_HEADERS"]``, ``REMOTE_USER``, and the
    variables and headers of a client certificate. The session cookie is none of them.
    """
    meta = inner.META
    more = conf.current().credential_headers
    names = _CREDENTIALS if not more else _CREDENTIALS.union(f"HTTP_{name}" for name in more)
    found = [name for name in meta if name in names or "SSL_CLIENT" in name]
    said: list[str] = []
    for name in sorted(found):
        if meta[name]:
            said += (name, str(meta[name]))
    certificate = _certificate(inner)
    return said if certificate is None else [*said, "tls", certificate]


def _certificate(inner: Any) -> str | None:
    """The client certificate in an ASGI scope."""
    tls = (inner.__dict__.get("scope", {}).get("extensions") or {}).get("tls") or {}
    chain, name = tls.get("client_cert_chain"), tls.get("client_cert_name")
    return identity(name, *(chain or ())) if chain or name else None


# What a view uses


def watch(request: Any) -> Trace:
    """Begin to note what the view uses. The caller must end it by ``Trace.end``, whatever happens."""
    inner = plain(request)
    _veil(inner)
    return Trace(request, inner)


def read(
    request: Any, flight: str, names: Iterable[str], ignored: Collection[str], used: Used | None = None
) -> Flow[str]:
    """A flow: a hash of the values of ``names``, as they are now, or for a leader as they were on entry (``used``).

    Raises ``Incomparable``, which says the name. It may load the user, and evaluate lazy attributes.
    """
    inner, names = plain(request), sorted(names)
    if used is not None and used.source is not None:
        source = used.source
        if "user" in names:
            source.user = _named(_looked_at(source.attributes))
    else:
        source = source_now(request, inner)
        if "user" in names:
            source.user = _named((yield from _peek(request)))
    found: str = yield from call(_digest, _adigest, source, flight, names, ignored)
    return found


def _named(user: Any) -> Any:
    """What tells users apart, also somebody's own kind of guest. ``None`` for Django's anonymous user."""
    try:
        return user_identity(user) or (None if _is_nobody(user) else user)
    except InvalidType:
        return ABSENT


def _is_nobody(user: Any) -> bool:
    kind = type(user)
    return (kind.__module__, kind.__qualname__) == ("django.contrib.auth.models", "AnonymousUser")


def _looked_at(attributes: Mapping[str, Any]) -> Any:
    """The user among the attributes on entry. Who has put another one there meanwhile has not loaded ours."""
    for name, source in ((_LOOKED_AT, "user"), (_ALOOKED_AT, "auser")):
        looked = attributes.get(name)
        if looked is not None and looked.user is not ABSENT and looked.given is attributes.get(source):
            return looked.user
    return attributes.get("user")


def _digest(source: Source, flight: str, names: list[str], ignored: Collection[str]) -> str:
    with _silent(source.request):
        return values.digest(source, flight, names, ignored)


async def _adigest(source: Source, flight: str, names: list[str], ignored: Collection[str]) -> str:
    """Async version of ``_digest``. Lazy attributes are evaluated on Django's thread for sync code."""
    untouched = (is_untouched(source.attributes.get(name[2:])) for name in names if name.startswith("a:"))
    if any(untouched):
        return await sync_to_async(_digest, thread_sensitive=True)(source, flight, names, ignored)
    return _digest(source, flight, names, ignored)


def _silent(inner: Any) -> contextlib.AbstractContextManager[None]:
    recorder = recorder_of(inner)
    return contextlib.nullcontext() if recorder is None else recorder.silent()


def adopt(request: Any, names: Iterable[str], *, either: bool) -> None:
    """Note for the traces that are open that somebody else's view has read ``names``, and the user (``either``)."""
    inner = plain(request)
    recorder = recorder_of(inner)
    if recorder is not None:
        recorder.adopt(names, user=either)
    if either:
        _set_accessed(inner, True)  # so that Django says Vary: Cookie, as it does for the leader


# Looking at the user without a trace


@dataclass(slots=True, eq=False)
class _Looked:
    """The user that stands in the request in place of Django's lazy one. ``user`` is the one that was loaded."""

    given: Any
    load: Callable[[], Any]
    user: Any = ABSENT
    reads: frozenset[str] = frozenset()
    """What somebody's own loading has read of the request beside the user: whoever uses the user has read it too."""


def _used(inner: Any, looked: _Looked) -> Any:
    """The user, for whom the view asked: note it, and tell Django, which then says ``Vary: Cookie``."""
    recorder = recorder_of(inner)
    if recorder is not None:
        recorder.adopt(looked.reads, user=True)
    _set_accessed(inner, True)
    return looked.user


def _set_accessed(inner: Any, accessed: bool) -> None:
    session = inner.__dict__.get("session")
    if hasattr(session, "accessed"):
        with _silent(inner):
            session.accessed = accessed


@contextlib.contextmanager
def _unseen(inner: Any) -> Iterator[None]:
    """What is loaded inside counts neither as read nor as a use of the session."""
    before = bool(getattr(inner.__dict__.get("session"), "accessed", False))
    with _silent(inner):
        yield
    recorder = recorder_of(inner)
    if recorder is None or not any(trace.itself or trace.user_used for trace in recorder.traces):
        _set_accessed(inner, before)  # else another task of the view has used it meanwhile


@contextlib.contextmanager
def _apart(inner: Any, looked: _Looked) -> Iterator[None]:
    """``_unseen`` for a loading that is not Django's: what it reads is kept, and counts when the user is used.

    Whether a second factor was given, for example, stands in the session, and then on the user.
    """
    before = bool(getattr(inner.__dict__.get("session"), "accessed", False))
    trace = Trace(inner, inner)
    try:
        yield
    finally:
        looked.reads = trace.end().reads - {"user"}
        _set_accessed(inner, before)


def _is_djangos(load: Any) -> bool:
    return getattr(getattr(load, "func", load), "__module__", None) == "django.contrib.auth.middleware"


def _veil(inner: Any) -> None:
    """Put in place of Django's lazy user one that says when it is used: each trace is to know of the first time.

    So also in place of one that somebody has loaded already, or of one of ours that was used.
    """
    attributes = inner.__dict__
    user, looked = attributes.get("user"), attributes.get(_LOOKED_AT)
    if isinstance(looked, _Looked) and looked.given is user and is_untouched(user):
        pass
    elif type(user) is SimpleLazyObject:
        attributes["user"] = _veiled(inner, user)
    load, looked = attributes.get("auser"), attributes.get(_ALOOKED_AT)
    if load is not None and not (isinstance(looked, _Looked) and looked.given is load):
        attributes["auser"] = _aveiled(inner, load)


def _veiled(inner: Any, user: Any) -> Any:
    djangos = _is_djangos(user.__dict__.get("_setupfunc"))

    def load() -> Any:
        if looked.user is ABSENT:
            with _unseen(inner) if djangos else _apart(inner, looked), contextlib.suppress(AttributeError):
                bool(user.is_authenticated)  # loads it
            looked.user = user.__dict__["_wrapped"]
        return looked.user

    def use() -> Any:
        load()
        return _used(inner, looked)

    before = inner.__dict__.get(_LOOKED_AT)
    looked = _Looked(SimpleLazyObject(use), load)
    if not is_untouched(user):
        looked.user = user.__dict__["_wrapped"]
        if isinstance(before, _Looked) and before.given is user:
            looked.reads = before.reads
        elif not djangos and getattr(looked.user, "is_authenticated", False):
            looked.reads = frozenset({"session"})  # nobody knows what its loading has read
    inner.__dict__[_LOOKED_AT] = looked
    return looked.given


def _aveiled(inner: Any, load: Any) -> Any:
    djangos = _is_djangos(load)

    async def aload() -> Any:
        if looked.user is ABSENT:
            with _unseen(inner) if djangos else _apart(inner, looked):
                looked.user = await load()
        return looked.user

    async def auser() -> Any:
        await aload()
        return _used(inner, looked)

    looked = inner.__dict__[_ALOOKED_AT] = _Looked(auser, aload)
    return auser


def _peek(request: Any) -> Flow[Any]:
    """The user. If nobody has asked for it yet, our looking leaves no trace: only the view's asking will count."""
    inner = plain(request)
    if inner is not request:
        with _silent(inner):
            return getattr(request, "user", None)
    _veil(inner)
    return (yield from call(_look, _alook, inner))


def _look(inner: Any) -> Any:
    user, looked = inner.__dict__.get("user"), inner.__dict__.get(_LOOKED_AT)
    return looked.load() if looked is not None and looked.given is user else user


async def _alook(inner: Any) -> Any:
    load, looked = inner.__dict__.get("auser"), inner.__dict__.get(_ALOOKED_AT)
    if looked is not None and looked.given is load:
        return await looked.load()
    return inner.__dict__.get("user")


# For what


def host(request: Any) -> str:
    """Scheme and host as the client sees them; a host that is not allowed is kept apart by its raw headers."""
    inner = plain(request)
    try:
        with _silent(inner):
            return f"{inner.scheme}://{inner.get_host()}"
    except DisallowedHost:
        raw = [inner.META.get(name) for name in ("HTTP_HOST", "HTTP_X_FORWARDED_HOST", "SERVER_NAME", "SERVER_PORT")]
        return f"{inner.scheme}://{raw!r}"


def header_values(request: Any, names: Iterable[str]) -> list[str | None]:
    """The values of headers, ``None`` where there is none."""
    meta = plain(request).META
    return [meta.get(f"HTTP_{name.upper().replace('-', '_')}") for name in names]


def representation(request: Any) -> str:
    """A hash of what may decide on a response besides method, address and caller.

    That is ``Accept``, ``Accept-Language``, the active language and time zone, conditional and range headers, what
    REST framework has negotiated, and the encoding by which Django reads the query.
    """
    inner = plain(request)
    with _silent(inner):
        said = header_values(request, (*NEGOTIATION, *CONDITIONS))
    return identity(
        *said,
        translation.get_language(),
        timezone.get_current_timezone_name(),
        timezone.get_current_timezone().utcoffset(None),  # somebody's own zone may have any name
        getattr(request, "accepted_media_type", None) if inner is not request else None,
        getattr(request, "version", None) if inner is not request else None,
        _encoding(inner),
    )


def _encoding(inner: Any) -> str:
    """The encoding of the query: the client may name it in ``Content-Type``, or middleware in ``request.encoding``."""
    said = raw(inner).get("_encoding") or conf.default_charset()
    try:
        return codecs.lookup(said).name
    except LookupError:
        return str(said)


def address(request: Any) -> tuple[str, str, str]:
    """Method, scheme with host, and full path with the raw query."""
    inner = plain(request)
    with _silent(inner):
        path = f"{len(inner.path)}:{inner.path}:{inner.path_info}"  # middleware may have changed the latter
        return inner.method or "", host(request), f"{path}?{inner.META.get('QUERY_STRING', '')}"


def key(request: Any, scope: str, *more: object) -> str:
    """The identity of a request: method, host, full path with query, ``scope``, ``representation``, and ``more``.

    Also the URLconf that middleware has chosen, by which one path may mean another thing.
    """
    urlconf = raw(plain(request)).get("urlconf")
    name = urlconf if isinstance(urlconf, str) else getattr(urlconf, "__name__", None)
    return identity(*address(request), scope, representation(request), name, *more)


def arguments_of(request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A text of a view's arguments beside the request that do not come from its URL: a decorator outside gave them.

    Raises ``Incomparable``.
    """
    match = raw(plain(request)).get("resolver_match")
    from_url = [*getattr(match, "args", ()), *getattr(match, "kwargs", {}).values()]
    place = next((number for number, one in enumerate(args) if one is request), -1)
    given = [*enumerate(args[place + 1 :]), *sorted(kwargs.items())]
    own = [(name, one) for name, one in given if one is not request and not any(one is other for other in from_url)]
    return values.text_of(tuple((str(name), one) for name, one in own)) if own else ""
