"""The Django part of the codec: Django's own types as tagged BSON, and signatures by ``SECRET_KEY``.

Rules of this file:

- ``SafeString`` keeps its class: text that was marked safe stays marked, and no other text becomes so.
- Responses of exactly Django's classes are stored as data: status, reason, headers in order and case, cookies with all
  their attributes, charset, content, and any other attributes that views and decorators set (such as
  ``xframe_options_exempt``), as pickling would. Subclasses, REST framework's among them, are pickled.
- A template response must have been rendered, otherwise ``ContentNotRenderedError`` is raised, as pickling does.
  Streaming responses are refused: their content can be read only once.
- Lazy translations are pickled and stay lazy. Storing their text would fix the language.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from http.cookies import Morsel, SimpleCookie
from typing import Any, Final

from django.http import (
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseForbidden,
    HttpResponseGone,
    HttpResponseNotAllowed,
    HttpResponseNotFound,
    HttpResponseNotModified,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    HttpResponseServerError,
    JsonResponse,
    StreamingHttpResponse,
)
from django.http.response import ResponseHeaders
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.utils.encoding import force_bytes
from django.utils.safestring import SafeString

from goscope_django import conf
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.codec.types import BUILTIN_TYPES, UNKNOWN, Child, TypeCodec, damaged, need, need_list

__all__ = ["DJANGO_TYPES", "DjangoSigner", "make_codec"]

SALT: Final = "goscope_django.codec"

RESPONSES: Final[dict[str, type[HttpResponse]]] = {
    kind.__name__: kind
    for kind in (
        HttpResponse,
        HttpResponseBadRequest,
        HttpResponseForbidden,
        HttpResponseGone,
        HttpResponseNotAllowed,
        HttpResponseNotFound,
        HttpResponseNotModified,
        HttpResponsePermanentRedirect,
        HttpResponseRedirect,
        HttpResponseServerError,
        JsonResponse,
        SimpleTemplateResponse,
        TemplateResponse,
    )
}
"""The classes whose responses are kept as data, by the name that is stored."""

_HANDLED: Final = frozenset({"headers", "cookies", "status_code", "closed", "_charset", "_reason_phrase", "_container"})
_BREAKS: Final = frozenset("\r\n\0")
# Of this process only: what to close and whom to tell; `text` is computed from the content.
_DROPPED: Final = frozenset({"_resource_closers", "_handler_class", "_is_rendered", "text"})


def make_codec(*, pickle: bool = True) -> Codec:
    """A codec that knows Django's types; pickles are signed by ``SECRET_KEY``, or refused if ``pickle`` is False."""
    return Codec(signer=DjangoSigner(), pickle=pickle, types=DJANGO_TYPES)


class DjangoSigner:
    """HMAC-SHA256 by a key derived from ``SECRET_KEY``; verifies by ``SECRET_KEY_FALLBACKS`` too.

    Settings are read at each use, so a rotation or ``override_settings`` counts at once. The signature is what
    ``salted_hmac(salt, data, algorithm="sha256")`` gives, 32 bytes.
    """

    def __init__(self, salt: str = SALT) -> None:
        self._salt = salt

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data`` by the current ``SECRET_KEY``."""
        return hmac.digest(_derived(self._salt, conf.secret()), data, "sha256")

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the current secret or a fallback made ``signature`` of ``data``; compares in constant time."""
        if hmac.compare_digest(self.sign(data), signature):
            return True
        return any(
            hmac.compare_digest(hmac.digest(_derived(self._salt, fallback), data, "sha256"), signature)
            for fallback in conf.former_secrets()
        )


@lru_cache(maxsize=16)
def _derived(salt: str, secret: str | bytes) -> bytes:
    return hashlib.sha256(salt.encode() + force_bytes(secret)).digest()


# Responses


def _pack_response(response: HttpResponse, child: Child) -> object:
    kind = type(response)
    state = response.__getstate__()  # raises ContentNotRenderedError, and leaves out what Django would not pickle
    if not isinstance(state, dict) or not _HANDLED - {"status_code"} <= state.keys():
        return UNKNOWN
    headers, cookies, chunks = state["headers"], state["cookies"], state["_container"]
    extra = {name: item for name, item in state.items() if name not in _HANDLED and name not in _DROPPED}
    if (
        type(headers) is not ResponseHeaders
        or type(cookies) is not SimpleCookie
        or not all(type(morsel) is Morsel for morsel in cookies.values())
        or not all(type(chunk) is bytes for chunk in chunks)
        or any(hasattr(kind, name) for name in extra)  # something of the class was replaced on the instance
        or "Set-Cookie" in headers  # past the response's cookies, which are read back as what they are
        or not _BREAKS.isdisjoint(state["_reason_phrase"] or "")
    ):
        return UNKNOWN
    return [
        kind.__name__,
        child(state.get("status_code")),
        child(state["_reason_phrase"]),
        child(state["_charset"]),
        state["closed"],
        [[child(header), child(text)] for header, text in headers.items()],
        [_pack_morsel(name, morsel, child) for name, morsel in cookies.items()],
        b"".join(chunks) if chunks else None,
        child(extra),
    ]


def _pack_morsel(name: str, morsel: Morsel[Any], child: Child) -> object:
    attributes = {attribute: item for attribute, item in morsel.items() if item != ""}
    return [child(name), child(morsel.key), child(morsel.value), child(morsel.coded_value), child(attributes)]


def _unpack_response(data: object, child: Child) -> HttpResponse:
    name, status, reason, charset, closed, headers, cookies, content, extra = need_list(data, 9)
    kind = RESPONSES[need(str, name)]
    response = kind.__new__(kind)
    HttpResponse.__init__(response)
    response.headers = ResponseHeaders({})
    for pair in need(list, headers):
        header, text = need_list(pair, 2)
        if need(str, child(header)).strip().lower() == "set-cookie":
            raise damaged("a stored response sets a cookie past its cookies")
        response.headers[child(header)] = need(str, child(text))  # refuses line breaks
    # Past the setters, which would encode by charset and refuse content of class 304.
    state = response.__dict__
    if status is not None:
        state["status_code"] = need(int, child(status))
    state["_reason_phrase"] = _line_or_none(child(reason))
    state["_charset"] = _line_or_none(child(charset))
    state["_container"] = [] if content is None else [need(bytes, content)]
    if isinstance(response, SimpleTemplateResponse):
        state["_is_rendered"] = True
    response.closed = need(bool, closed)
    for cookie in need(list, cookies):
        _unpack_morsel(response.cookies, cookie, child)
    for attribute, item in need(dict, child(extra)).items():
        if attribute in _HANDLED or attribute in _DROPPED or hasattr(kind, attribute):
            raise damaged("a stored response would replace a part of its class")
        state[need(str, attribute)] = item
    return response


def _line_or_none(data: object) -> str | None:
    if data is None:
        return None
    if not _BREAKS.isdisjoint(need(str, data)):  # the reason is sent as it is, and what follows would be headers
        raise damaged("a stored response holds a line break outside of its content")
    return need(str, data)


def _unpack_morsel(cookies: SimpleCookie, data: object, child: Child) -> None:
    name, key, value, coded, attributes = need_list(data, 5)
    morsel: Morsel[Any] = Morsel()
    morsel.set(need(str, child(key)), child(value), need(str, child(coded)))
    morsel.update(need(dict, child(attributes)))
    if not _BREAKS.isdisjoint(morsel.OutputString()):  # not every Python looks for what begins another header
        raise damaged("a stored cookie holds a line break")
    cookies[need(str, child(name))] = morsel


def _refuse_streaming(response: StreamingHttpResponse, _: Child) -> object:
    raise InvalidType(f"a {type(response).__name__} can't be stored: its content is a stream, which can be read once")


def _never(_data: object, _: Child) -> object:
    raise damaged("a stored value has a tag that is never written")


def _bare(text: SafeString) -> str:
    return str.__str__(text)  # str() would give the SafeString itself


def _unpack_safe(data: object, child: Child) -> SafeString:
    return SafeString(need(str, child(data)))


DJANGO_TYPES: Final[tuple[TypeCodec, ...]] = (
    TypeCodec("safestring", (SafeString,), lambda text, child: child(_bare(text)), _unpack_safe),
    TypeCodec("response", tuple(RESPONSES.values()), _pack_response, _unpack_response),
    TypeCodec("streaming", (StreamingHttpResponse,), _refuse_streaming, _never, subclasses=True),
    *BUILTIN_TYPES,
)
"""Django's types and every tagged type that needs no Django."""
