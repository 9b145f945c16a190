"""Reads an idempotent request: its key, and its fingerprint, which shows another payload under the same key.

Rules of this file:

* Two requests have one fingerprint only if method, path, query, content type and body are the same. The order of query
  parameters with different names does not count. Of a multipart body the fields and the digests of the files count, not
  the boundary, which changes each time.
* Of JSON (``application/json`` and ``+json``) the order of keys, white space, the way in which a string is escaped and
  the parameter ``charset`` do not count. Numbers are the same if their text is. See ``canonical``.
* The view can still read the body. What Django streams to disk is not read into memory here; what Django refuses
  (``DATA_UPLOAD_MAX_MEMORY_SIZE``) is refused in the same way, before anything is claimed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain
from typing import Any, Final
from urllib.parse import parse_qsl

from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadhandler import MemoryFileUploadHandler, TemporaryFileUploadHandler
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest, RawPostDataException
from django.http.multipartparser import MultiPartParser
from django.utils.datastructures import MultiValueDict

from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.http import requests

HEADER: Final = "Idempotency-Key"
DEEPEST: Final = 100
"""How deep arrays and objects of a JSON body may lie in one another to be compared as JSON."""
_BARE: Final = re.compile(r"[ -!#-~][ -~]{0,254}")
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ALLOWED: Final = "1 to 255 printable ASCII characters are allowed, bare or as a quoted string"


def parse_key(text: str) -> str:
    """The key in a header's value: a string of structured fields (RFC 9651), or bare. Raises ``InvalidValue``."""
    text = text.strip(" \t")
    if _BARE.fullmatch(text):
        return text
    quoted = _QUOTED.fullmatch(text)
    if quoted is None:
        raise InvalidValue(f"{HEADER}: {_ALLOWED}")
    found = re.sub(r"\\(.)", r"\1", quoted[1])
    if not 1 <= len(found) <= 255:
        raise InvalidValue(f"{HEADER}: {_ALLOWED}; this one has {len(found)}")
    return found


def stored_key(request: Any, key: str, scope: str) -> str:
    """The record's key for a client's ``key``. The hash tells records apart, the rest is for people who read it.

    No two methods, hosts, paths or callers (``scope``) share one. It shows the route and not the path: a path may hold
    a secret, such as the token of a link to reset a password.
    """
    inner = requests.plain(request)
    method, host, _ = requests.address(inner)
    route = getattr(inner.resolver_match, "route", None) or ""
    return f"{method} /{route.lstrip('/')} {key} {requests.identity(method, host, inner.path, scope, key)}"


def fingerprint(request: Any) -> str:
    """A sha256 of everything that the request asks for. Reads the body.

    Raises what Django raises for a body that it refuses, and ``RawPostDataException`` if the body was read before.
    """
    inner = requests.plain(request)
    query = sorted(
        parse_qsl(inner.META.get("QUERY_STRING", ""), keep_blank_values=True, errors="surrogateescape"),
        key=lambda pair: pair[0],
    )
    kind, parameters = inner.content_type or "", dict(inner.content_params or {})
    parameters.pop("boundary", None)
    if is_json(kind):
        parameters.pop("charset", None)
    parts = [inner.method, inner.path, repr(query), kind, repr(sorted(parameters.items()))]
    head = (str(part).encode("utf-8", "surrogatepass") for part in parts)
    return _digest(chain(head, _body(request, inner)))


def of_value(value: object) -> str:
    """A sha256 of plain data: what JSON holds, dates, decimals and UUIDs. Raises ``InvalidType`` for anything else."""
    try:
        return hashlib.sha256(json.dumps(value, sort_keys=True, cls=DjangoJSONEncoder).encode()).hexdigest()
    except (TypeError, ValueError) as error:
        raise InvalidType(
            f"a fingerprint of these arguments can't be taken: {error}; give fingerprint= a function"
        ) from None


# JSON


def is_json(kind: str | None) -> bool:
    """Whether a content type (without parameters) is ``application/json`` or ends in ``+json``."""
    found = (kind or "").lower()
    return found == "application/json" or found.endswith("+json")


def canonical(body: bytes) -> bytes | None:
    """One form for all ways to write the same JSON. ``None`` for what is compared as bytes.

    That is what is not UTF-8 or no valid JSON, has a key twice in an object, has ``NaN`` or ``Infinity``, or is deeper
    than ``DEEPEST``. Numbers are kept as the text that was sent: ``1``, ``1.0`` and ``1e0`` differ.
    """
    try:
        return _written(_READER.decode(body.decode("utf-8")), 0).encode()
    except (ValueError, RecursionError):
        return None


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(text)


_READER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_Number, parse_int=_Number, parse_constant=_refuse
)


def _written(value: Any, depth: int) -> str:
    if isinstance(value, (dict, list)) and depth >= DEEPEST:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_written(value[key], depth + 1)}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item, depth + 1) for item in value) + "]"
    return str(value) if isinstance(value, _Number) else json.dumps(value)


def _digest(parts: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(b"%d:" % len(part))
        hasher.update(part)
    return hasher.hexdigest()


def _body(request: Any, inner: HttpRequest) -> Iterator[bytes]:
    if inner.content_type == "multipart/form-data":
        yield from _form(*_parsed(request, inner))
        return
    try:
        body = inner.body
        same = canonical(body) if is_json(inner.content_type) else None
        yield from ((b"bytes", body) if same is None else (b"json", same))
    except RawPostDataException:
        if request is inner:
            raise
        # REST framework has parsed the stream already: only its result is left.
        yield of_value(request.data).encode()


def _parsed(request: Any, inner: HttpRequest) -> tuple[MultiValueDict[str, Any], MultiValueDict[str, Any]]:
    """Fields and files of a multipart body. The view can read the body in every way as before."""
    if not hasattr(inner, "_files") and inner.META.get("CONTENT_LENGTH"):
        # A body that Django would keep in memory is kept there, so that the view can read or parse it as well.
        try:
            body = inner.body
        except (RawPostDataException, RequestDataTooBig):
            if inner.method != "POST" and request is inner:
                raise  # Django parses forms of POST alone, so the view could not read this one any more
        else:
            if inner.method != "POST":
                handlers = [MemoryFileUploadHandler(inner), TemporaryFileUploadHandler(inner)]
                return MultiPartParser(inner.META, BytesIO(body), handlers, inner.encoding).parse()
    if inner.method != "POST" and request is not inner:
        request.data  # noqa: B018 - parsed by REST framework, which hands fields and files on to Django's request
    return inner.POST, inner.FILES


def _form(fields: MultiValueDict[str, Any], files: MultiValueDict[str, Any]) -> Iterator[bytes]:
    for name, values in sorted(fields.lists()):
        yield repr((name, values)).encode("utf-8", "surrogatepass")
    for name, uploads in sorted(files.lists(), key=lambda entry: entry[0]):
        for upload in uploads:
            hasher = hashlib.sha256()
            for chunk in upload.chunks():
                hasher.update(chunk)
            upload.seek(0)
            yield repr((name, upload.name, upload.content_type, hasher.hexdigest())).encode("utf-8", "surrogatepass")
