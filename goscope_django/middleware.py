"""Makes responses of errors of this package that nobody catches.

``MIDDLEWARE = ["goscope_django.middleware.StoreUnavailableMiddleware", ...]``, as the first, and
``"goscope_django.middleware.CircuitOpenMiddleware"`` anywhere in the list. They work in sync and async stacks, send
nothing to MongoDB and cost a request nothing unless something raises. Whoever holds a lock, a claim or a task while
the request runs is then described by its method and route.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.handlers.exception import convert_exception_to_response
from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

from goscope_django.core.flow import Flow, acarry_out, carry_out, invoke
from goscope_django.exceptions import CircuitOpen, StoreError
from goscope_django.http.problems import problem, retry_after_header
from goscope_django.process import holder

__all__ = ["CircuitOpenMiddleware", "StoreUnavailableMiddleware"]

TITLE: Final = "Temporarily unavailable"
RETRY_AFTER: Final = 5.0
"""Seconds after which a client may try again while the database can't be reached."""
OWN_ANSWER: Final = "when_store_fails"
"""The attribute of a view with its own answer to a ``StoreError``, which must need neither session nor user."""
_NOTE: Final = "_goscope_store_error"

logger = logging.getLogger("goscope.middleware")


def _unavailable(request: HttpRequest, kind: str, detail: str, seconds: float) -> HttpResponse:
    """503 with ``Retry-After``: problem+json for a client that accepts JSON and not HTML, else plain text."""
    detail = f"{detail} Try again in {retry_after_header(seconds)} seconds."
    accepted = request.headers.get("Accept", "")
    if "json" in accepted and "text/html" not in accepted:
        response = problem(503, kind, TITLE, detail, retry_after=seconds)
    else:
        response = HttpResponse(f"{TITLE}. {detail}\n", status=503, content_type="text/plain; charset=utf-8")
        response["Retry-After"] = retry_after_header(seconds)
    response["Cache-Control"] = "no-store"
    return response


def circuit_open_response(request: HttpRequest, error: CircuitOpen) -> HttpResponse:
    """The answer to a request whose circuit is open.

    The circuit's name is left out: it is not meant for clients.
    """
    return _unavailable(request, "circuit-open", "A service that this needs is not available.", error.retry_after)


def store_unavailable_response(request: HttpRequest, error: StoreError) -> HttpResponse:
    """The answer to a request that needed the database. What happened is logged, and left out here."""
    logger.error("%s %s: answered with 503: %s: %s", request.method, request.path, type(error).__name__, error)
    own = _own_answer(request)
    if own is not None:
        response = own(request, error)
    else:
        response = _unavailable(request, "store-unavailable", "The database can't be reached.", RETRY_AFTER)
    response._has_been_logged = True  # type: ignore[attr-defined]  # or Django would log it once more
    return response


def _own_answer(request: HttpRequest) -> Callable[[HttpRequest, StoreError], HttpResponse] | None:
    """What the view of this address answers then: its attribute ``when_store_fails``, if it has one."""
    match = request.resolver_match
    if match is None:  # a middleware failed before Django looked for the view
        try:
            match = resolve(request.path_info, getattr(request, "urlconf", None))
        except Resolver404:
            return None
    found: Callable[[HttpRequest, StoreError], HttpResponse] | None = getattr(match.func, OWN_ANSWER, None)
    return found


class CircuitOpenMiddleware:
    """Answers a ``CircuitOpen`` that a view raises with 503 and ``Retry-After``.

    Django has rolled back the transaction of ``ATOMIC_REQUESTS`` before.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """Django makes it of ``MIDDLEWARE``.

        :meta private:
        """
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
        """Called by Django with what the view raised.

        :meta private:
        """
        return circuit_open_response(request, exception) if isinstance(exception, CircuitOpen) else None


class StoreUnavailableMiddleware:
    """Answers a ``StoreError`` with 503 and ``Retry-After``, wherever it is raised: in a view, in its template, in
    another middleware, or when Django's session middleware saves a session after the view.

    It must be the first in ``MIDDLEWARE``. Django makes a 500 of what a middleware raises before the next one sees it;
    therefore this one stands behind each of the others as well, and where it can't (a middleware that is a function
    keeps its own counsel) it replaces that 500.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """Django makes it of ``MIDDLEWARE``.

        :meta private:
        """
        self.get_response = _answering(get_response)
        _stand_behind(get_response)
        got_request_exception.connect(_note, dispatch_uid="goscope_django.middleware")
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._async:
            return _later(request, self.get_response(request))
        with holder.serving(request):
            response = self.get_response(request)
        return _instead(request, response)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Called by Django with what the view raised.

        :meta private:
        """
        return store_unavailable_response(request, exception) if isinstance(exception, StoreError) else None


def _note(sender: object, request: HttpRequest | None = None, **_: object) -> None:
    """A middleware or view has raised, and Django is about to make a 500 of it."""
    error = sys.exc_info()[1]
    if request is not None and isinstance(error, StoreError):
        setattr(request, _NOTE, error)


def _instead(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    error = getattr(request, _NOTE, None)
    if error is None or response.status_code != 500:
        return response
    return store_unavailable_response(request, error)


async def _later(request: HttpRequest, response: Awaitable[HttpResponseBase]) -> HttpResponseBase:
    """Async version of ``_instead``."""
    with holder.serving(request):
        answer = await response
    return _instead(request, answer)


def _inside(handler: Any) -> Any:
    """What a handler of Django's chain calls: a middleware, or None if that can't be known."""
    for name in ("__wrapped__", "func", "awaitable"):  # the last two are asgiref's, between sync and async
        if (found := getattr(handler, name, None)) is not None:
            return found
    return None


def _answering(handler: Any) -> Any:
    """``handler``, one of Django's conversions of errors, but one that makes a 503 of a ``StoreError``."""
    inner = getattr(handler, "__wrapped__", None)
    if inner is None:
        return handler
    if iscoroutinefunction(handler):

        @functools.wraps(inner)
        async def aanswered(request: HttpRequest) -> Any:
            return await acarry_out(_answered(inner, request))

        return convert_exception_to_response(aanswered)

    @functools.wraps(inner)
    def answered(request: HttpRequest) -> Any:
        return carry_out(_answered(inner, request))

    return convert_exception_to_response(answered)


def _answered(inner: Any, request: HttpRequest) -> Flow[Any]:
    try:
        return (yield from invoke(inner, request))
    except StoreError as error:
        return store_unavailable_response(request, error)


def _stand_behind(handler: Any) -> None:
    """Let each middleware behind ``handler`` get a 503 from the next one, where that raises a ``StoreError``."""
    while (middleware := _inside(handler)) is not None:
        if "get_response" in getattr(middleware, "__dict__", {}) and callable(middleware.get_response):
            handler = middleware.get_response
            middleware.get_response = _answering(handler)
        else:
            handler = middleware
