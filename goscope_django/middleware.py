"""Makes responses of errors of this package that a view does not catch.

``MIDDLEWARE = [..., "goscope_django.middleware.CircuitOpenMiddleware"]``, anywhere in the list. It works in
sync and async stacks and costs a request nothing unless its view raises. Whoever holds a lock, a claim or a task while
the request runs is then described by its method and route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from goscope_django.exceptions import CircuitOpen
from goscope_django.http.problems import problem, retry_after_header
from goscope_django.process import holder

TITLE: Final = "Temporarily unavailable"


def circuit_open_response(request: HttpRequest, error: CircuitOpen) -> HttpResponse:
    """503 with ``Retry-After``: problem+json for a client that accepts JSON and not HTML, else plain text.

    The circuit's name is left out: it is not meant for clients.
    """
    wait = retry_after_header(error.retry_after)
    detail = f"A service that this needs is not available. Try again in {wait} seconds."
    accepted = request.headers.get("Accept", "")
    if "json" in accepted and "text/html" not in accepted:
        response = problem(503, "circuit-open", TITLE, detail, retry_after=error.retry_after)
    else:
        response = HttpResponse(f"{TITLE}. {detail}\n", status=503, content_type="text/plain; charset=utf-8")
        response["Retry-After"] = wait
    response["Cache-Control"] = "no-store"
    return response


class CircuitOpenMiddleware:
    """Answers a ``CircuitOpen`` that a view raises with 503 and ``Retry-After``.

    Django has rolled back the transaction of ``ATOMIC_REQUESTS`` before.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if iscoroutinefunction(self.get_response):
            return self._acall(request)
        with holder.serving(request):
            response: HttpResponseBase = self.get_response(request)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        with holder.serving(request):
            response: HttpResponseBase = await self.get_response(request)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Called by Django with what the view raised."""
        return circuit_open_response(request, exception) if isinstance(exception, CircuitOpen) else None
