"""What Django itself keeps in a cache: sessions and pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, override_settings
from django.urls import path
from django.views.decorators.cache import cache_page

from tests.support.commands import on_server

calls: list[str] = []


def _session(request: HttpRequest) -> HttpResponse:
    request.session["seen"] = request.session.get("seen", 0) + 1
    request.session["tuple"] = ["a", {"b": 1}]
    return HttpResponse(f"seen {request.session['seen']}")


def _page(request: HttpRequest) -> HttpResponse:
    calls.append(request.path)
    answer = HttpResponse(f"call {len(calls)}", headers={"X-Extra": "extra"}, content_type="text/x-own")
    answer["Vary"] = "X-Kind"
    return answer


def _template(request: HttpRequest) -> HttpResponse:
    calls.append(request.path)
    template = engines["django"].from_string("call {{ number }}")
    return TemplateResponse(request, template, {"number": len(calls)})


urlpatterns = [
    path("session", _session),
    path("page", cache_page(60)(_page)),
    path("template", cache_page(60)(_template)),
]


@pytest.fixture(params=["mongod", "mongomock"], autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[None]:
    url = "mongomock://pages" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(ROOT_URLCONF=__name__), on_server(url):
        cache.clear()
        calls.clear()
        yield


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
@pytest.mark.django_db
def test_sessions(engine: str) -> None:
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"):
        one, two = Client(), Client()
        assert [one.get("/session").content for _ in range(3)] == [b"seen 1", b"seen 2", b"seen 3"]
        assert two.get("/session").content == b"seen 1"
        cache.clear()
        assert one.get("/session").content == (b"seen 1" if engine == "cache" else b"seen 4")


def test_cached_pages() -> None:
    for address in ("/page", "/template"):
        calls.clear()
        answers = [Client().get(address) for _ in range(3)]
        assert len({answer.content for answer in answers}) == 1
        assert len(calls) == 1
        assert {**answers[0].headers, "Age": ""} == {**answers[2].headers, "Age": ""}
    other = Client().get("/page", headers={"X-Kind": "other"})
    assert other.content == b"call 2", "what it varies on is part of the key"


def test_no_session_is_lost_to_two_at_once() -> None:
    """Creating a session is an ``add``: two that draw the same key don't share it."""
    from django.contrib.sessions.backends.cache import SessionStore

    stores: list[Any] = [SessionStore() for _ in range(20)]
    for number, store in enumerate(stores):
        store["number"] = number
        store.save()
    assert [SessionStore(store.session_key)["number"] for store in stores] == list(range(20))
