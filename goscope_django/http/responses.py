"""Responses as plain data, and whether one may be given to another caller. Single flight and idempotency share this.

Rules of this file:

* A response is kept as status, reason, headers in order, body, and the plain attributes that views and decorators put
  on it for middleware (``xframe_options_exempt``). No pickle, no class: it comes back as an ``HttpResponse``.
* Cookies are never kept: they belong to one client.
* In doubt a response is not given to another caller, and a word says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from goscope_django.exceptions import InvalidType
from goscope_django.http.recording import Used
from goscope_django.http.requests import Caller, plain

REFUSED: Final = frozenset({401, 403, 429})
"""These statuses are about who asks or how often: anonymous callers don't share them."""

_BREAKS: Final = frozenset("\r\n\0")
_OWN: Final = {
    *("headers", "cookies", "status_code", "closed", "text"),
    *("_charset", "_reason_phrase", "_container", "_resource_closers", "_handler_class"),
    *("using", "context_data", "template_name", "_is_rendered", "_post_render_callbacks", "_request"),
    *("data", "exception", "content_type", "accepted_media_type", "accepted_renderer", "renderer_context"),
}
"""Attributes that are kept in another form, or that are useless once there is a body."""
_PLAIN: Final = (str, int, float, bool, type(None))


def is_response(value: object) -> bool:
    """Whether ``value`` is one of Django's responses."""
    return isinstance(value, HttpResponseBase)


def needs_rendering(response: Any) -> bool:
    """Whether it is a template or REST framework response that is not rendered yet."""
    return callable(getattr(response, "render", None)) and not getattr(response, "is_rendered", True)


def render(request: Any, response: Any) -> Any:
    """``response`` rendered, so that it has a body. Raises whatever rendering raises.

    A REST framework response from inside a view has no renderer yet: it gets the one negotiated for ``request``.
    """
    if not needs_rendering(response):
        return response
    if hasattr(response, "data") and not hasattr(response, "accepted_renderer"):
        view = (getattr(request, "parser_context", None) or {}).get("view")
        if view is None or not hasattr(request, "accepted_renderer"):
            raise InvalidType("a REST framework response can be shared from inside a REST framework view only")
        response.accepted_renderer = request.accepted_renderer
        response.accepted_media_type = request.accepted_media_type
        response.renderer_context = view.get_renderer_context()
    return response.render()


async def arender(request: Any, response: Any) -> Any:
    """Async version of ``render``. Runs on Django's thread for sync code, since templates may query the database."""
    if not needs_rendering(response):
        return response
    return await sync_to_async(render, thread_sensitive=True)(request, response)


def pack(response: Any) -> dict[str, Any]:
    """A rendered response as a document of plain values. Raises ``InvalidType`` for a streaming response."""
    if response.streaming:
        raise InvalidType(f"a {type(response).__name__} can't be stored: its content can be read once")
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "headers": [[name, value] for name, value in response.items() if name.lower() != "set-cookie"],
        "body": bytes(response.content),
        "extra": {name: value for name, value in vars(response).items() if name not in _OWN and _is_plain(value)},
    }


def unpack(packed: Mapping[str, Any]) -> HttpResponse:
    """A response made of what ``pack`` gave. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
    body, status, extra = packed["body"], packed["status"], packed["extra"]
    if not (isinstance(body, bytes) and isinstance(status, int) and isinstance(extra, Mapping)):
        raise TypeError("not a packed response")
    reason = str(packed["reason"])
    if not _BREAKS.isdisjoint(reason):  # it is sent as it is, and what follows would be headers
        raise ValueError("a stored reason holds a line break")
    response = HttpResponse(body, status=status, reason=reason)
    del response.headers["Content-Type"]
    for name, value in packed["headers"]:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError("a stored header is not text")
        if name.strip().lower() == "set-cookie":
            raise ValueError("a stored response sets no cookies")  # ``pack`` never stores them, so somebody else did
        response.headers[name] = value  # refuses line breaks
    for name, value in extra.items():
        if name not in _OWN and not hasattr(HttpResponse, name):
            setattr(response, name, value)
    return response


def size(packed: Mapping[str, Any]) -> int:
    """About how many bytes ``packed`` takes in a document: at most a kilobyte too few."""
    headers = sum(len(name) + 3 * len(value) + 24 for name, value in packed["headers"])
    return len(packed["body"]) + headers + 3 * len(repr(packed["extra"]))


def _is_plain(value: object) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    return type(value) in _PLAIN and not (type(value) is int and abs(value) >= 2**63)


def sets_cookies(response: Any) -> bool:
    """Whether it sets a cookie. Cookies that middleware adds later are not known yet."""
    return bool(response.cookies) or response.has_header("Set-Cookie")


def cache_directives(response: Any) -> frozenset[str]:
    """The names of the directives in ``Cache-Control``, in lower case."""
    return frozenset(one.partition("=")[0].strip() for one in _listed(response, "Cache-Control"))


def vary_on(response: Any) -> tuple[str, ...]:
    """The header names in ``Vary``, in lower case, sorted."""
    return tuple(sorted(set(_listed(response, "Vary"))))


def _listed(response: Any, header: str) -> list[str]:
    return [one for one in (part.strip().lower() for part in response.get(header, "").split(",")) if one]


def why_private(request: Any, response: Any, caller: Caller, used: Used) -> str | None:
    """Why ``response`` is for this request alone, in a word. ``None``: other requests of this caller may have it.

    To be called when the view has run; ``used`` is what it used.
    """
    if response.streaming:
        return "stream"
    if sets_cookies(response):
        return "cookie"
    directives = cache_directives(response)
    if "no-store" in directives or ("private" in directives and not caller.known):
        return "cache-control"
    if "*" in vary_on(response):
        return "vary"
    if response.status_code in REFUSED and not caller.known:
        return "refused"
    return why_bound(request, caller, used)


def refuses(error: Exception) -> bool:
    """Whether an exception becomes a response with a status of ``REFUSED``: Django's, or one with ``status_code``."""
    return isinstance(error, PermissionDenied) or getattr(error, "status_code", None) in REFUSED


def why_bound(request: Any, caller: Caller, used: Used) -> str | None:
    """Why what a view made or raised may depend on something that only this request has, in a word, or ``None``."""
    inner = plain(request)
    if used.changed or (used.itself and caller.user is None):
        return "session"
    if used.csrf:
        return "csrf"
    if getattr(inner, "_csp_nonce", None):  # a lazy one is false until it is used
        return "nonce"
    if used.messages:
        return "messages"
    if caller.user is None and getattr(used.user, "is_authenticated", False) and not used.reads:
        return "user"  # the view has found out who asks, by something that it did not read of the request
    return None
