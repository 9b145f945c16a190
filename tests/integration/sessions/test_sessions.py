"""Sessions in MongoDB: an outage is an error and signs nobody out, and what is stored shows no session's key."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import clear_url_caches, path
from django.utils.decorators import async_only_middleware, sync_only_middleware

from goscope_django import runtime, sessions, signals
from goscope_django.cache import cache
from goscope_django.checks import check_sessions
from goscope_django.exceptions import StoreError, StoreUnavailable
from goscope_django.sessions import SessionStore
from tests.support.commands import Recorder, on_server

AWAY = "mongodb://user:hunter2@127.0.0.1:9/goscope"
BRIEF = {"serverSelectionTimeoutMS": 100, "connectTimeoutMS": 100}
OURS = {"SESSION_ENGINE": "goscope_django.sessions"}
FIRST = "goscope_django.middleware.StoreUnavailableMiddleware"
MIDDLEWARE = [
    FIRST,
    "django.middleware.common.CommonMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


def store(what: str, *args: Any, kind: str = "sync", session: SessionStore | None = None, **options: Any) -> Any:
    one = session or SessionStore()
    if kind == "sync":
        return getattr(one, what)(*args, **options)
    return asyncio.run(getattr(one, f"a{what}")(*args, **options))


both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def server(mongo_url: str, recorder: Recorder) -> Iterator[None]:
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}), override_settings(**OURS):
        if runtime.connection().pending:
            runtime.connection().prepare(5)
        caches["default"].clear()
        yield


@pytest.fixture
def away() -> Iterator[None]:
    """No server, and a cache that is told to do without one."""
    entry = {"OPTIONS": {"ON_ERROR": "ignore"}}
    with on_server(AWAY, client_options=BRIEF, caches={"default": entry}), override_settings(**OURS):
        yield


def saved(**data: Any) -> str:
    session = SessionStore()
    session.update(data)
    session.save()
    assert session.session_key is not None
    return session.session_key


# The API


@both
def test_each_method_is_one_round_trip(server: None, recorder: Recorder, kind: str) -> None:
    key = saved(user=1)

    def count(what: str, *args: Any, session: SessionStore, **options: Any) -> tuple[int, Any]:
        recorder.clear()
        found = store(what, *args, kind=kind, session=session, **options)
        return len([one for one in recorder.names if one != "createIndexes"]), found

    assert count("load", session=SessionStore(key)) == (1, {"user": 1})
    assert count("exists", key, session=SessionStore()) == (1, True)
    loaded = SessionStore(key)
    loaded["user"] = 2
    assert count("save", session=loaded)[0] == 1
    assert count("create", session=SessionStore())[0] == 1
    assert count("cycle_key", session=loaded)[0] == 2
    assert loaded.session_key != key and not loaded.exists(key)
    assert count("delete", session=loaded)[0] == 1
    assert count("flush", session=SessionStore(saved(user=1)))[0] == 1


@both
def test_saving_never_revives_and_creating_never_overwrites(server: None, kind: str) -> None:
    key = saved(user=1)
    stale = SessionStore(key)
    assert stale["user"] == 1
    SessionStore(key).delete()
    with pytest.raises(UpdateError):
        store("save", kind=kind, session=stale)
    assert not SessionStore().exists(key)
    other = saved(user=2)
    with pytest.raises(CreateError):
        store("save", must_create=True, kind=kind, session=SessionStore(other))
    assert SessionStore(other)["user"] == 2


@both
def test_expired_sessions_are_gone_cleared_and_not_counted(server: None, kind: str) -> None:
    keys = [saved(user=number) for number in range(3)]
    caches["default"].set("goscope.sessional", 1)  # not a session
    assert sessions.count_sessions() == asyncio.run(sessions.acount_sessions()) == 3
    collection = runtime.connection().sync().database.go_goscope_cache
    collection.update_one(
        {"key": f"cache::1:{sessions._place(keys[0])}"}, {"$set": {"expiresAt": datetime(2020, 1, 1, tzinfo=UTC)}}
    )
    assert sessions.count_sessions() == 2 and SessionStore(keys[0]).load() == {}
    if kind == "sync":
        call_command("clearsessions")
    else:
        asyncio.run(SessionStore.aclear_expired())
    assert collection.count_documents({"key": {"$regex": "goscope.session:"}}) == 2


@both
def test_what_is_stored_is_signed_for_its_session_and_shows_no_key(
    server: None, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = saved(user=1), saved(user=2)
    collection = runtime.connection().sync().database.go_goscope_cache
    assert mine not in str(list(collection.find({}))) and mine not in str(cache.keys("*"))
    places = [f"cache::1:{sessions._place(key)}" for key in (mine, other)]
    value = collection.find_one({"key": places[1]})["value"]
    told: list[str] = []

    def receive(key: str, **_: Any) -> None:
        told.append(key)

    signals.cache_entry_forged.connect(receive)
    for forged in (value, value[:-2] + "xx", {"user": 2}, {"__goscope__": 1, "t": "pickle", "v": 0}, 7, "x"):
        collection.update_one({"key": places[0]}, {"$set": {"value": forged}})
        with caplog.at_level(logging.DEBUG):
            assert store("load", kind=kind, session=SessionStore(mine)) == {}
    signals.cache_entry_forged.disconnect(receive)
    assert len(told) == 6 and mine not in str(told), "each is counted"
    assert "corrupted" in caplog.text and mine not in caplog.text
    collection.update_one({"key": places[0]}, {"$set": {"value": None}})
    assert store("load", kind=kind, session=SessionStore(mine)) == {}


@both
@pytest.mark.parametrize("options", [{"SIGN": True}, {"COMPRESS": {"MIN_BYTES": 1}}, {"SIGN": True, "COMPRESS": {}}])
def test_what_the_alias_says_of_signing_signs_nobody_out(mongo_url: str, kind: str, options: dict[str, Any]) -> None:
    """Sessions are signed by themselves, for their key: an option may come or go while people are signed in."""
    with override_settings(**OURS), on_server(mongo_url):
        before = saved(user=1)
        with on_server(mongo_url, caches={"default": {"OPTIONS": options}}):
            assert store("load", kind=kind, session=SessionStore(before)) == {"user": 1}
            assert store("exists", before, kind=kind)
            during = saved(user=2)
            session = SessionStore(before)
            session["more"] = "x" * 20_000
            store("save", kind=kind, session=session)
        for key, user in ((before, 1), (during, 2)):
            assert store("load", kind=kind, session=SessionStore(key))["user"] == user


def test_a_former_secret_still_opens_sessions(server: None) -> None:
    key = saved(user=1)
    with override_settings(SECRET_KEY="new" * 20, SECRET_KEY_FALLBACKS=["only-for-tests-" + "x" * 50]):
        assert SessionStore(key).load() == {"user": 1}
    with override_settings(SECRET_KEY="new" * 20):
        assert SessionStore(key).load() == {}


@both
def test_a_session_that_is_too_large_is_an_error_without_its_key(server: None, kind: str) -> None:
    session = SessionStore(saved())
    session["x"] = secrets.token_hex(12_000_000)
    with pytest.raises(ValueError, match="bytes") as caught:
        store("save", kind=kind, session=session)
    assert str(session.session_key) not in str(caught.value)


# An outage


@both
@pytest.mark.parametrize(
    ("what", "args", "options"),
    [
        ("load", (), {}),
        ("save", (), {}),
        ("save", (), {"must_create": True}),
        ("create", (), {}),
        ("exists", ("a" * 32,), {}),
        ("delete", (), {}),
        ("flush", (), {}),
        ("cycle_key", (), {}),
    ],
)
def test_every_method_raises_and_leaves_the_session_as_it_was(
    away: None, kind: str, what: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert caches["default"].get("x", "ignored") == "ignored"
    key = "k" * 32
    session = SessionStore(key)
    session._session_cache = {"user": 1}  # type: ignore[attr-defined]
    if what == "load":
        del session._session_cache  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable) as caught:
        store(what, *args, kind=kind, session=session, **options)
    assert key not in str(caught.value) and "hunter2" not in str(caught.value)
    assert session.session_key == key and not session.is_empty()
    if what != "load":
        assert session._session_cache == {"user": 1}  # type: ignore[attr-defined]


def test_counting_and_clearing_raise(away: None) -> None:
    for call in (sessions.count_sessions, SessionStore.clear_expired):
        with pytest.raises(StoreUnavailable):
            call()


# Requests


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("user", "nobody")))


def write(request: HttpRequest) -> HttpResponse:
    request.session["user"] = 7
    return HttpResponse("written")


def logout(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse("logged out")


def swallows(request: HttpRequest) -> HttpResponse:
    try:
        request.session.flush()
    except StoreError:
        return HttpResponse("sorry")
    return HttpResponse("logged out")


def late(request: HttpRequest) -> HttpResponse:
    """Changes the session; then the server goes away before Django's middleware saves it."""
    request.session._session_cache = {"user": 8}  # type: ignore[attr-defined]
    request.session.modified = True
    return HttpResponse("written")


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("no session")


async def aread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.session.aget("user", "nobody")))


async def alate(request: HttpRequest) -> HttpResponse:
    return late(request)


VIEWS: dict[str, Any] = {view.__name__: view for view in (read, write, logout, swallows, late, page, aread, alate)}
urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]


@sync_only_middleware
def asking(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that is a function and reads the session itself, before the view."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path == "/page/":
            request.session.get("user")
        return get_response(request)

    return middleware


@async_only_middleware
def aasking(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    async def middleware(request: HttpRequest) -> Any:
        if request.path == "/page/":
            await request.session.aget("user")
        return await get_response(request)

    return middleware


def answer(kind: str, where: str, cookie: str | None, raises: bool = True, **headers: str) -> Any:
    """The response to a request; ``raises`` as Django's test client does by default, where an error is signalled."""
    client: Any = (
        Client(raise_request_exception=raises) if kind == "sync" else AsyncClient(raise_request_exception=raises)
    )
    if cookie:
        client.cookies["sessionid"] = cookie
    got = client.get(f"/{where}/", headers=headers)
    return got if kind == "sync" else asyncio.run(_awaited(got))


async def _awaited(got: Any) -> Any:
    return await got


@pytest.fixture
def site(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = MIDDLEWARE


@both
def test_with_a_server_all_is_as_usual(site: None, server: None, kind: str) -> None:
    key = saved(user=5)
    assert answer(kind, "read", key).content == b"5"
    assert answer(kind, "aread", key).content == b"5"
    assert answer(kind, "read", None).content == b"nobody"
    written = answer(kind, "write", None)
    assert SessionStore(written.cookies["sessionid"].value)["user"] == 7
    gone = answer(kind, "logout", key)
    assert gone.cookies["sessionid"].value == "" and not SessionStore().exists(key)


@both
@pytest.mark.parametrize("where", ["read", "write", "logout", "late", "aread", "alate"])
@pytest.mark.parametrize("debug", [False, True])
def test_an_outage_is_a_503_and_signs_nobody_out(
    site: None, away: None, kind: str, where: str, debug: bool, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DEBUG = debug
    key = "k" * 32
    found = answer(kind, where, key, accept="text/html")
    assert found.status_code == 503 and int(found["Retry-After"]) > 0
    assert found["Content-Type"].startswith("text/plain") and "no-store" in found["Cache-Control"]
    assert "sessionid" not in found.cookies
    assert key not in caplog.text and "hunter2" not in caplog.text + found.content.decode()
    as_json = answer(kind, where, key, accept="application/json")
    assert as_json.status_code == 503 and as_json["Content-Type"] == "application/problem+json"
    assert as_json.json()["status"] == 503


@both
def test_a_view_that_hides_the_error_still_signs_nobody_out(site: None, away: None, kind: str) -> None:
    found = answer(kind, "swallows", "k" * 32)
    assert found.content == b"sorry" and "sessionid" not in found.cookies


@both
def test_a_page_without_a_session_works_during_an_outage(site: None, away: None, kind: str) -> None:
    assert answer(kind, "page", "k" * 32).content == b"no session"


@both
@pytest.mark.parametrize("own", ["asking", "aasking"])
def test_another_middleware_that_fails_is_a_503_too(site: None, away: None, settings: Any, kind: str, own: str) -> None:
    settings.MIDDLEWARE = [*MIDDLEWARE, f"{__name__}.{own}"]
    assert answer(kind, "page", "k" * 32, raises=False).status_code == 503
    settings.MIDDLEWARE = [FIRST, *MIDDLEWARE[1:3], f"{__name__}.{own}", MIDDLEWARE[3]]
    assert answer(kind, "page", "k" * 32, raises=False).status_code == 503


@both
def test_behind_a_middleware_that_is_a_function_it_replaces_djangos_500(
    site: None, away: None, settings: Any, kind: str
) -> None:
    """Nobody can stand between such a middleware and the next one."""
    settings.MIDDLEWARE = [FIRST, f"{__name__}.{'plain' if kind == 'sync' else 'aplain'}", *MIDDLEWARE[1:]]
    found = answer(kind, "late", "k" * 32, raises=False)
    assert found.status_code == 503 and "sessionid" not in found.cookies


@sync_only_middleware
def plain(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    return middleware


@async_only_middleware
def aplain(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


@both
def test_other_errors_stay_what_they_are(site: None, server: None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: HttpRequest) -> HttpResponse:
        raise LookupError("a fault of the view's")

    monkeypatch.setattr(__import__(__name__, fromlist=["urlpatterns"]), "urlpatterns", [path("read/", fails)])
    clear_url_caches()
    try:
        assert answer(kind, "read", None, raises=False).status_code == 500
        with pytest.raises(LookupError):
            answer(kind, "read", None)
    finally:
        monkeypatch.undo()
        clear_url_caches()


@pytest.mark.django_db
def test_nobody_is_signed_out_by_an_outage(mongo_url: str) -> None:
    """The same browser before, during and after: with Django's own engine it loses its cookie."""
    client = Client()
    middleware = [FIRST, *MIDDLEWARE[1:], "django.contrib.messages.middleware.MessageMiddleware"]
    with override_settings(**OURS, MIDDLEWARE=middleware), on_server(mongo_url):
        client.force_login(User.objects.create_superuser("ada"))
        before = client.cookies["sessionid"].value
        assert client.get("/admin/").status_code == 200
        with on_server(AWAY, client_options=BRIEF):
            for where in ("/admin/", "/admin/auth/user/"):
                assert client.get(where).status_code == 503
            assert client.post("/admin/logout/").status_code == 503
        assert client.cookies["sessionid"].value == before
        assert client.get("/admin/").status_code == 200


# Settings


def test_the_cache_of_sessions_must_be_ours_and_must_not_forget() -> None:
    ours = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    theirs = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    full = {**ours, "OPTIONS": {"MAX_ENTRIES": "100"}}
    with override_settings(**OURS, MIDDLEWARE=MIDDLEWARE):
        for entry, said in ((theirs, "LocMemCache"), (full, "MAX_ENTRIES")):
            with override_settings(CACHES={"default": ours, "s": entry}, SESSION_CACHE_ALIAS="s"):
                with pytest.raises(ImproperlyConfigured, match=said):
                    SessionStore()
                [fault] = check_sessions()
                assert fault.id == "goscope.E005" and said in fault.msg
        with override_settings(CACHES={"default": full, "s": ours}, SESSION_CACHE_ALIAS="s"):
            assert check_sessions() == []


def test_a_middleware_that_is_missing_or_not_first_is_told() -> None:
    with override_settings(**OURS, CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}):
        for middleware in ([], MIDDLEWARE[1:], [*MIDDLEWARE[1:], FIRST]):
            with override_settings(MIDDLEWARE=middleware):
                assert [one.id for one in check_sessions()] == ["goscope.W005"]
        with override_settings(MIDDLEWARE=MIDDLEWARE):
            assert check_sessions() == []
    with override_settings(MIDDLEWARE=[]):
        assert check_sessions() == [], "another engine"
