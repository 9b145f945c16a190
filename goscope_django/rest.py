"""Makes responses of Django REST framework of errors of this package.

``REST_FRAMEWORK = {"EXCEPTION_HANDLER": "goscope_django.rest.exception_handler"}``. Without it the middleware answers
``CircuitOpen`` for DRF views as well, but not in the renderer that the client asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goscope_django.exceptions import CircuitOpen, LockNotAcquired
from goscope_django.http.problems import retry_after_header

if TYPE_CHECKING:
    from rest_framework.response import Response


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """``CircuitOpen`` is 503 and ``LockNotAcquired`` 409, both with ``Retry-After``. DRF's handler does the rest.

    ``error`` and ``context`` are what DRF gives. It marks the transaction of ``ATOMIC_REQUESTS`` for rollback, as it
    does for its own errors. Raises nothing and sends nothing.
    """
    from rest_framework.exceptions import APIException
    from rest_framework.views import exception_handler as standard

    answer: APIException | None = None
    if isinstance(error, CircuitOpen):
        answer = APIException("A service that this needs is not available. Try again later.", "circuit_open")
        answer.status_code = 503
        _wait(answer, error.retry_after)
    elif isinstance(error, LockNotAcquired):
        answer = APIException("Somebody else is working on this. Try again later.", "locked")
        answer.status_code = 409
        _wait(answer, 1)
    if answer is None:
        return standard(error, context)
    answer.__cause__ = error
    return standard(answer, context)


def _wait(answer: Any, seconds: float) -> None:
    answer.wait = int(retry_after_header(seconds))  # DRF makes Retry-After of it
