"""Errors as ``application/problem+json`` (RFC 9457), which both people and programs can read.

Rule of this file: a problem says what the client did or can do. It holds no stored value and no internal name.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Final

from django.http import HttpResponse

CONTENT_TYPE: Final = "application/problem+json"
TYPES: Final = "urn:goscope:problem:"
"""The beginning of each problem's ``type``, a URI that never changes."""


def retry_after_header(seconds: float) -> str:
    """``seconds`` as ``Retry-After`` has it: whole, rounded up, at least 1."""
    return str(max(1, math.ceil(seconds)))


def problem(status: int, kind: str, title: str, detail: str, *, retry_after: float | None = None) -> HttpResponse:
    """A problem as a response. ``retry_after`` (seconds) becomes a ``Retry-After`` of whole seconds, at least one."""
    HTTPStatus(status)  # raises ValueError for a number that is no status
    body = {"type": f"{TYPES}{kind}", "title": title, "status": status, "detail": detail}
    headers = {"Cache-Control": "no-store"}
    response = HttpResponse(json.dumps(body), status=status, content_type=CONTENT_TYPE, headers=headers)
    if retry_after is not None:
        response["Retry-After"] = retry_after_header(retry_after)
    return response
