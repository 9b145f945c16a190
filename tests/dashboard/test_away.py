"""Sessions are in MongoDB and can't be read: the dashboard has a page that needs no user and tells nothing secret."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import sync_only_middleware

from goscope_django import sessions
from goscope_django.exceptions import MissingRights, PoolExhausted
from tests.support.commands import on_server
from tests.support.dashboard import LIVE, PAGE, STATE, action_url

pytestmark = [pytest.mark.django_db]

AWAY = "mongodb://anton:hunter2@127.0.0.1:9/warehouse"
BRIEF = {"serverSelectionTimeoutMS": 100, "connectTimeoutMS": 100}
FIRST = "goscope_django.middleware.StoreUnavailableMiddleware"
OTHERS = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
SECRETS = ("hunter2", "anton", "127.0.0.1:9", "mongodb://", "warehouse", "people-alias")
both = pytest.mark.parametrize("kind", ["sync", "async"])


@sync_only_middleware
def asking(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware of the project that asks who it is before Django has looked for the view."""

    def middleware(request: HttpRequest) -> HttpResponse:
        assert request.user.is_authenticated is not None
        return get_response(request)

    return middleware


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> Iterator[None]:
    settings.SESSION_ENGINE = "goscope_django.sessions"
    settings.SESSION_CACHE_ALIAS = "people-alias"
    settings.MIDDLEWARE = [FIRST, *OTHERS]
    sessions._since = None
    yield
    sessions._since = None


@pytest.fixture
def cookie() -> str:
    return "k" * 32


@pytest.fixture
def away() -> Iterator[None]:
    with on_server(AWAY, client_options=BRIEF, caches={"people-alias": {}, "default": {}}):
        yield


def answer(kind: str, where: str, cookie: str | None, method: str = "get", **headers: str) -> Any:
    client: Any = (Client if kind == "sync" else AsyncClient)(raise_request_exception=False)
    if cookie:
        client.cookies["sessionid"] = cookie
    got = getattr(client, method)(where, headers=headers)
    return got if kind == "sync" else asyncio.run(_awaited(got))


async def _awaited(got: Any) -> Any:
    return await got


@both
@pytest.mark.parametrize("first", [True, False])
def test_whoever_asks_gets_the_page_and_stays_signed_in(
    away: None, cookie: str, kind: str, first: bool, settings: Any
) -> None:
    settings.MIDDLEWARE = [*([FIRST] if first else []), *OTHERS]
    for where in (PAGE, f"{PAGE}?q=x", LIVE, action_url("clear_cache"), f"{PAGE}lock%3Aorders/change/"):
        found = answer(kind, where, cookie, accept="text/html")
        assert found.status_code == 503 and int(found["Retry-After"]) > 0, where
        assert "no-store" in found["Cache-Control"] and "sessionid" not in found.cookies
        page = html.unescape(found.content.decode())
        assert "<h1>MongoDB can't be reached</h1>" in page and 'data-reachable="no"' in page
        assert "goscope_status" in page and "since <time" in page and "Single flight" in page
        assert not any(secret in page for secret in (*SECRETS, cookie))
        assert "style=" not in page and "<script" not in page and "<style" not in page


@both
def test_its_data_are_a_problem(away: None, cookie: str, kind: str) -> None:
    found = answer(kind, STATE, cookie)
    assert (found.status_code, found["Content-Type"]) == (503, "application/problem+json")
    assert found.json()["title"] == "MongoDB can't be reached" and "sessionid" not in found.cookies
    assert not any(secret in found.content.decode() for secret in SECRETS)


@both
def test_other_pages_get_the_plain_answer(away: None, cookie: str, kind: str) -> None:
    for where in ("/admin/", "/admin/auth/user/", "/admin/goscope/", "/admin/goscope/dashboard"):
        found = answer(kind, where, cookie, accept="text/html")
        if found.status_code != 301:  # the slash that CommonMiddleware appends
            assert found.status_code == 503 and found["Content-Type"].startswith("text/plain"), where


@both
def test_a_visitor_without_a_session_is_led_to_the_login(away: None, kind: str) -> None:
    assert answer(kind, PAGE, None).status_code == 302


@both
def test_after_an_action_it_says_that_the_outcome_is_not_known(away: None, cookie: str, kind: str) -> None:
    assert "is not known" not in answer(kind, PAGE, cookie).content.decode()
    found = answer(kind, action_url("clear_cache"), cookie, "post")
    assert found.status_code in (403, 503)  # 403: CSRF, which is looked at first
    with override_settings(MIDDLEWARE=[one for one in (FIRST, *OTHERS) if "csrf" not in one]):
        client = Client(raise_request_exception=False)
        client.cookies["sessionid"] = cookie
        page = html.unescape(client.post(action_url("clear_cache")).content.decode())
        assert "can't be reached" in page and "is not known" in page


@both
@pytest.mark.parametrize("where", [PAGE, STATE])
def test_also_where_a_middleware_needs_the_session_before_the_view(
    away: None, cookie: str, kind: str, where: str, settings: Any
) -> None:
    settings.MIDDLEWARE = [FIRST, *OTHERS, f"{__name__}.asking"]
    found = answer(kind, where, cookie)
    assert found.status_code == 503 and b"can't be reached" in found.content and b"Sessions" in found.content
    assert answer(kind, "/admin/auth/user/", cookie)["Content-Type"].startswith("text/plain")
    assert answer(kind, "/no/such/page/", cookie)["Content-Type"].startswith("text/plain")
    settings.MIDDLEWARE = [FIRST, *OTHERS]
    settings.CSRF_USE_SESSIONS = True
    assert b"can't be reached" in answer(kind, where, cookie).content


def test_it_tells_since_when_until_a_session_can_be_read_again(cookie: str) -> None:
    def since() -> str:
        (found,) = re.findall(r'<time datetime="([^"]+)"', answer("sync", PAGE, cookie).content.decode())
        return str(found)

    client = Client()
    aliases: dict[str, Any] = {"people-alias": {}, "default": {}}
    with on_server("mongomock://", caches=aliases):
        client.force_login(User.objects.create_superuser("root"))
        assert client.get(PAGE).status_code == 200 and sessions.unreadable_since() is None
        with on_server(AWAY, client_options=BRIEF, caches=aliases):
            first = since()
            assert since() == first and sessions.unreadable_since() is not None
        assert client.get(PAGE).status_code == 200 and sessions.unreadable_since() is None


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (PoolExhausted("no connection to 127.0.0.1:9 came free"), "This process has no connection to MongoDB free"),
        (MissingRights("anton may not find in warehouse"), "MongoDB answers with an error"),
    ],
)
def test_other_errors_are_told_apart_and_not_repeated(
    away: None, cookie: str, monkeypatch: pytest.MonkeyPatch, error: Exception, title: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("goscope_django.cache.MongoDBCache.get", fails)
    page = answer("sync", PAGE, cookie).content.decode()
    assert f"<h1>{title}</h1>" in page and not any(secret in page for secret in SECRETS)
