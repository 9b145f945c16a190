"""Adds a strict Content-Security-Policy to every response. The shop, the admin and the dashboard keep to it."""

from __future__ import annotations

from collections.abc import Callable

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"


def _with_policy(response: HttpResponseBase) -> HttpResponseBase:
    # Django's own error pages for developers have their style inline.
    if not (settings.DEBUG and response.status_code in (404, 500)):
        response.headers.setdefault("Content-Security-Policy", POLICY)
    return response


@sync_and_async_middleware
def content_security_policy(get_response: Callable[[HttpRequest], object]) -> Callable[[HttpRequest], object]:
    """Allow nothing inline and nothing from elsewhere: the shop's pages, the admin and the dashboard need neither."""
    if iscoroutinefunction(get_response):

        async def amiddleware(request: HttpRequest) -> HttpResponseBase:
            return _with_policy(await get_response(request))

        return amiddleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        assert isinstance(response, HttpResponseBase)
        return _with_policy(response)

    return middleware
