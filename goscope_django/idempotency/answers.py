"""What is kept of a response or result, and what a repeat gets: the same again, or the reason why not.

Rule of this file: values in, values out. Nothing is sent to the server here.
"""

from __future__ import annotations

from typing import Any, Final

from django.http import HttpResponse

from goscope_django import runtime
from goscope_django.contracts import IdempotencyClaim
from goscope_django.exceptions import IdempotencyConflict, IdempotencyError, IdempotencyMismatch
from goscope_django.http import responses
from goscope_django.http.problems import problem
from goscope_django.process import counters

MAX_BODY: Final = 1024 * 1024
"""Bytes of a response's body that are kept."""
NOT_KEPT: Final = frozenset({401, 403, 429})
"""These statuses are about who asks or how often, not about the request: a repeat runs, as after a server error."""
REPLAYED: Final = "Idempotent-Replayed"
STORED: Final = "Idempotent-Stored"
"""``false`` on a response that was not recorded, since the claim was lost or MongoDB was down: a repeat may run."""

_PER_CONNECTION: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("trailers", "transfer-encoding", "upgrade"),
        *("set-cookie", "date", "age", "x-csrftoken", REPLAYED.lower(), STORED.lower()),
    }
)
"""Headers of one exchange, in lower case."""


def is_kept(response: Any) -> bool:
    """Whether the response is to be kept, so that a repeat gets it."""
    if not responses.is_response(response):
        return True  # frameworks on top of Django make a response of it
    return response.status_code < 500 and response.status_code not in NOT_KEPT


def kept(response: Any) -> dict[str, Any]:
    """What is recorded of a response."""
    if not responses.is_response(response):
        return {"result": response}
    if response.streaming:
        return {"dropped": "stream"}
    if len(response.content) > MAX_BODY:
        return {"dropped": "size"}
    packed = responses.pack(response)
    named = {name.strip().lower() for name in response.get("Connection", "").split(",")}
    packed["headers"] = [one for one in packed["headers"] if one[0].lower() not in _PER_CONNECTION | named]
    return {"response": packed}


def kept_if_any(response: Any) -> dict[str, Any] | None:
    """What is recorded of a response; ``None`` if it is not to be kept."""
    return kept(response) if is_kept(response) else None


def answer(name: str, claim: IdempotencyClaim) -> Any:
    """What a repeat of a request gets: a response, or the result of which a framework makes one."""
    if claim.outcome == "mismatch":
        counters.count("idempotent_mismatches")
        detail = "This Idempotency-Key was used before with another request. Use a new key for a new request."
        return problem(422, "idempotency-key-reused", "Idempotency-Key is already used", detail)
    if claim.outcome == "in_progress":
        counters.count("idempotent_conflicts")
        detail = "A request with this Idempotency-Key is being carried out. Try again later to get its response."
        title = "A request is outstanding for this Idempotency-Key"
        return problem(409, "idempotency-in-progress", title, detail, retry_after=1)
    if isinstance(claim.value, dict) and "result" in claim.value:
        runtime.emit("idempotent_replayed", key=name)
        return claim.value["result"]
    try:
        response = responses.unpack(claim.value["response"])
    except (KeyError, TypeError, ValueError):
        return not_kept()
    if response.has_header("Location"):
        response.url = response["Location"]  # type: ignore[attr-defined]  # as on Django's redirects
    response[REPLAYED] = "true"
    runtime.emit("idempotent_replayed", key=name)
    return response


def not_kept() -> HttpResponse:
    """For a repeat of a request that was carried out, but whose response was not kept."""
    detail = "The request was carried out before and is not carried out again, but its response was not kept."
    return problem(409, "idempotency-response-not-kept", "The response is no longer available", detail)


def undone() -> HttpResponse:
    """For a request whose writes were rolled back with its claim."""
    detail = "What this request wrote was undone, since it could not be recorded. Try again to get the outcome."
    return problem(503, "idempotency-undone", "Temporarily unavailable", detail, retry_after=1)


def result_of(name: str, key: str, claim: IdempotencyClaim) -> Any:
    """What a repeat of a call returns or raises."""
    if claim.outcome == "mismatch":
        counters.count("idempotent_mismatches")
        raise IdempotencyMismatch(f"idempotency key {key!r:.200} was used before with other arguments", key=key)
    if claim.outcome == "in_progress":
        counters.count("idempotent_conflicts")
        wait = claim.retry_after or 0.0
        raise IdempotencyConflict(
            f"idempotency key {key!r:.200} is being worked on elsewhere", key=key, retry_after=wait
        )
    if not isinstance(claim.value, dict) or "result" not in claim.value:
        raise IdempotencyError(f"idempotency key {key!r:.200} is done, but its result was not kept", key=key)
    runtime.emit("idempotent_replayed", key=name)
    return claim.value["result"]
