"""A request as an idempotent view gets it, for type checkers."""

from __future__ import annotations

from django.http import HttpRequest

from goscope_django.idempotency.attempt import Attempt


class IdempotentRequest(HttpRequest):
    """To annotate the request of an idempotent view: ``def pay(request: IdempotentRequest)``. It is never made.

    ``idempotency`` is the attempt that the view's work is, ``None`` if the request came without a key.
    """

    idempotency: Attempt | None
