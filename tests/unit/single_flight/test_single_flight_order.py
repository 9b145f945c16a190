"""``manage.py check`` finds decorators on the wrong side of ``single_flight``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.gzip import gzip_page
from django.views.decorators.vary import vary_on_cookie, vary_on_headers
from rest_framework.decorators import api_view
from rest_framework.views import APIView

from goscope_django.checks import check_views
from goscope_django.single_flight import single_flight


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


async def coroutine(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


def on_class(*decorators: Any, name: str = "dispatch", base: Any = View) -> Any:
    kind = type("Page", (base,), {"get": lambda self, request: HttpResponse("x")})
    for decorator in reversed(decorators):
        kind = method_decorator(decorator, name=name)(kind)
    return kind.as_view()  # type: ignore[attr-defined]


def found(view: Any, *, inside: bool = False) -> list[str]:
    urls: Any = ModuleType("urls")
    urls.urlpatterns = [path("page/", view)]
    if inside:
        urls.urlpatterns = [path("api/", include((urls.urlpatterns, "x")))]
    with override_settings(ROOT_URLCONF=urls):
        return [one.msg for one in check_views()]


WRONG: list[tuple[str, Any]] = [
    ("vary_on_headers", vary_on_headers("X-Part")(single_flight()(plain))),
    ("vary_on_headers", vary_on_cookie(single_flight()(plain))),
    ("cache_control", cache_control(private=True)(single_flight()(plain))),
    ("never_cache", never_cache(single_flight()(plain))),
    ("user_passes_test", login_required(single_flight()(plain))),
    ("user_passes_test", permission_required("x.y")(single_flight()(plain))),
    ("vary_on_headers", gzip_page(vary_on_headers("X")(gzip_page(single_flight()(plain))))),
    ("never_cache", never_cache(single_flight()(coroutine))),
    ("never_cache", on_class(never_cache, single_flight())),
    ("never_cache", on_class([never_cache, single_flight()])),
    ("never_cache", on_class([never_cache, single_flight()], name="get")),
    ("never_cache", never_cache(on_class(single_flight()))),
    ("never_cache", never_cache(on_class(single_flight(), name="get"))),
    ("never_cache", on_class(never_cache, single_flight(), base=APIView)),
    ("never_cache", never_cache(api_view(["GET"])(single_flight()(plain)))),
]
RIGHT: list[Any] = [
    plain,
    never_cache(plain),
    single_flight()(never_cache(plain)),
    single_flight()(login_required(vary_on_cookie(plain))),
    gzip_page(single_flight()(vary_on_cookie(plain))),
    on_class([single_flight(), never_cache]),
    on_class(single_flight(), never_cache),
    single_flight()(on_class(never_cache)),
    api_view(["GET"])(single_flight()(never_cache(plain))),
]


@pytest.mark.parametrize(("name", "view"), WRONG)
def test_what_stands_outside_is_found(name: str, view: Any) -> None:
    for told in (found(view), found(view, inside=True)):
        assert len(told) == 1
        assert name in told[0]
        assert "page/" in told[0]


@pytest.mark.parametrize("view", RIGHT)
def test_what_stands_below_is_right(view: Any) -> None:
    assert found(view) == []


def test_a_project_whose_urls_can_not_be_read_is_told_by_django() -> None:
    with override_settings(ROOT_URLCONF="no.such.module"):
        assert check_views() == []
