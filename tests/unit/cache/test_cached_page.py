"""``cached_page``: Django's rules, sync and async, with stale pages and tags. Django's own run in tests/upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import RequestFactory, override_settings
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_page

from goscope_django import locks
from goscope_django.cache import computing
from goscope_django.decorators import cached_page
from goscope_django.exceptions import InvalidType, InvalidValue
from tests.support.commands import on_server
from tests.support.own_fields import ago, entries

factory = RequestFactory()
PAGE = "^cache::1:views.decorators.cache.cache_page"


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with on_server("mongomock://pages", caches={"default": {}, "other": {"KEY_PREFIX": "other"}}):
        entries().delete_many({})
        computing._elsewhere.clear()
        yield


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Site:
    """A view, its calls, and what it answers next."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.calls = 0
        self.answer: Any = lambda: HttpResponse(f"page {self.calls}")
        self.kind = kind
        options.setdefault("timeout", 60)

        def view(request: HttpRequest, pk: int = 1) -> Any:
            self.calls += 1
            return self.answer()

        async def aview(request: HttpRequest, pk: int = 1) -> Any:
            return view(request, pk)

        timeout = options.pop("timeout")
        self.view: Any = cached_page(timeout, **options)(aview if kind == "async" else view)

    def get(self, path: str = "/", method: str = "get", pk: int = 1, **headers: Any) -> Any:
        request = getattr(factory, method)(path, **headers)
        found = self.view(request, pk=pk)
        return asyncio.run(found) if self.kind == "async" else found

    def text(self, *args: Any, **kwargs: Any) -> str:
        return str(self.get(*args, **kwargs).content.decode())


def make_pages_stale() -> None:
    changed = entries().update_many({"key": {"$regex": PAGE}}, {"$set": {"freshUntil": ago(1)}})
    assert changed.modified_count


def failing() -> Any:
    raise LookupError("secret")


def test_a_page_is_kept(kind: str) -> None:
    site = Site(kind)
    first = site.get()
    assert first["Cache-Control"] == "max-age=60" and "Expires" in first and "Age" not in first
    second = site.get()
    assert second.content == b"page 1" and int(second["Age"]) >= 0 and site.calls == 1
    assert site.text("/?x=1") == "page 2"
    assert site.text(method="head") == "page 1", "the page of a GET serves a HEAD"
    assert site.text(method="post") == "page 3" and site.text() == "page 1"


def test_it_finds_what_djangos_own_has_kept_and_the_other_way_round() -> None:
    def answering(text: str) -> Any:
        def view(request: HttpRequest) -> HttpResponse:
            return HttpResponse(text)

        return view

    theirs: Any = cache_page(60, key_prefix="p")(answering("theirs"))
    ours: Any = cached_page(60, key_prefix="p")(answering("ours"))
    assert theirs(factory.get("/a")).content == b"theirs"
    assert ours(factory.get("/a")).content == b"theirs"
    assert ours(factory.get("/b")).content == b"ours"
    assert theirs(factory.get("/b")).content == b"ours"


def test_pages_that_differ_in_a_header_are_apart(kind: str) -> None:
    site = Site(kind)
    site.answer = lambda: HttpResponse(f"page {site.calls}", headers={"Vary": "X-A"})
    assert site.text(headers={"X-A": "1"}) == "page 1"
    assert site.text(headers={"X-A": "2"}) == "page 2"
    assert site.text(headers={"X-A": "1"}) == "page 1" and site.text(headers={"X-A": "2"}) == "page 2"
    assert site.text(headers={"X-A": "1"}, method="head") == "page 1"


def cookie(vary: str) -> HttpResponse:
    response = HttpResponse("x", headers={"Vary": vary})
    response.set_cookie("a", "b")
    return response


UNKEPT = (
    lambda: HttpResponse("x", status=404),
    lambda: HttpResponse("x", status=500),
    lambda: HttpResponse(status=304),
    lambda: StreamingHttpResponse(iter([b"x"])),
    lambda: cookie("Cookie"),
    *(
        lambda word=word: HttpResponse("x", headers={"Cache-Control": word})
        for word in ("private", "no-store", "no-cache")
    ),
    lambda: HttpResponse("x", headers={"Vary": "*"}),
)


@pytest.mark.parametrize("place", range(len(UNKEPT)))
def test_what_django_does_not_keep_is_not_kept(kind: str, place: int) -> None:
    site = Site(kind)
    site.answer = UNKEPT[place]
    site.get(), site.get()
    assert site.calls == 2 and entries().count_documents({"key": {"$regex": PAGE}}) == 0


def test_whoever_has_authorization_has_pages_of_their_own(kind: str) -> None:
    site = Site(kind)
    assert site.text(headers={"Authorization": "a"}) == "page 1"
    assert site.text(headers={"Authorization": "b"}) == "page 2"
    assert site.text(headers={"Authorization": "a"}) == "page 1"
    assert site.text() == "page 3"


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_timeout_keeps_nothing(kind: str, timeout: int) -> None:
    site = Site(kind, timeout=timeout)
    site.get(), site.get()
    assert site.calls == 2


def test_without_a_timeout_the_response_says_it(kind: str) -> None:
    site = Site(kind, timeout=None)
    site.answer = lambda: HttpResponse("x", headers={"Cache-Control": "max-age=7"})
    site.get()
    found = entries().find_one({"key": {"$regex": PAGE}})
    assert round((found["expiresAt"] - found["updatedAt"]).total_seconds()) == 7
    site.answer = lambda: HttpResponse("x", headers={"Cache-Control": "max-age=0"})
    site.get("/b"), site.get("/b")
    assert site.calls == 3
    site.answer = lambda: HttpResponse("x")
    with override_settings(CACHE_MIDDLEWARE_SECONDS=50):
        assert site.get("/c")["Cache-Control"] == "max-age=50"


def test_a_timedelta_is_seconds(kind: str) -> None:
    assert Site(kind, timeout=timedelta(minutes=1)).get()["Cache-Control"] == "max-age=60"


def test_a_stale_page_serves_while_one_computes(kind: str) -> None:
    site = Site(kind, stale=30)
    assert site.text() == "page 1"
    make_pages_stale()
    name = f"get_or_set:{entries().find_one({'key': {'$regex': PAGE}})['key']}"
    lease = locks.backend().acquire(name, 30)
    assert lease is not None
    assert site.text() == "page 1" and site.calls == 1, "another process computes"
    locks.backend().force_release(name)
    computing._elsewhere.clear()
    assert site.text() == "page 2" and site.text() == "page 2"
    assert site.calls == 2 and locks.backend().list() == []


def test_a_stale_page_serves_while_the_view_fails(kind: str) -> None:
    site = Site(kind, stale=30)
    assert site.text() == "page 1"
    make_pages_stale()
    site.answer = failing
    assert site.text() == "page 1"
    for status in (500, 502, 503, 504):
        site.answer = lambda status=status: HttpResponse("broken", status=status)
        assert site.text() == "page 1"
    site.answer = lambda: HttpResponse("gone", status=404)
    assert site.get().status_code == 404, "that is an answer, no failure"
    entries().delete_many({})
    site.answer = failing
    with pytest.raises(LookupError):
        site.get()
    assert locks.backend().list() == []


def test_without_stale_the_view_waits_for_nobody(kind: str) -> None:
    site = Site(kind)
    assert site.text() == "page 1"
    entries().delete_many({"key": {"$regex": PAGE}})
    assert site.text() == "page 2"


def test_tags_are_templates_of_the_views_parameters(kind: str) -> None:
    cache: Any = caches["default"]
    site = Site(kind, tags=("product:{pk}", "all"), stale=30)
    assert site.text("/1", pk=1) == "page 1" and site.text("/2", pk=2) == "page 2"
    cache.invalidate_tags("product:1")
    assert site.text("/2", pk=2) == "page 2" and site.text("/1", pk=1) == "page 3" and site.text("/1", pk=1) == "page 3"
    cache.invalidate_tags("all")
    assert site.text("/2", pk=2) == "page 4"


def test_a_page_from_before_an_invalidation_is_not_kept(kind: str) -> None:
    site = Site(kind, tags=lambda request, pk: [f"product:{pk}"])

    def invalidated() -> HttpResponse:
        caches["default"].invalidate_tags("product:1")  # type: ignore[attr-defined]
        return HttpResponse(f"page {site.calls}")

    site.answer = invalidated
    assert site.text() == "page 1" and site.text() == "page 2"
    site.answer = lambda: HttpResponse(f"page {site.calls}")
    assert site.text() == "page 3" and site.text() == "page 3"


def test_a_response_that_is_rendered_later_is_kept_when_it_is_rendered(kind: str) -> None:
    site = Site(kind, tags=("t",))
    template = engines["django"].from_string("page {{ n }}")
    site.answer = lambda: TemplateResponse(None, template, {"n": site.calls})  # type: ignore[arg-type]
    first = site.get()
    assert not first.is_rendered
    assert site.get().render().content == b"page 2"
    assert site.text() == "page 2"


def test_methods_of_classes(kind: str) -> None:
    calls = []

    class Plain(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            calls.append(1)
            return HttpResponse(str(len(calls)))

    class Async(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            calls.append(1)
            return HttpResponse(str(len(calls)))

    chosen: Any = Plain if kind == "sync" else Async
    view = method_decorator(cached_page(60), name="dispatch")(chosen).as_view()
    for _ in range(2):
        found = view(factory.get("/"))
        found = asyncio.run(found) if kind == "async" else found
        assert found.content == b"1"


def test_another_cache(kind: str) -> None:
    site = Site(kind, cache="other", key_prefix="x")
    site.get()
    assert entries().count_documents({"key": {"$regex": "^cache:other:1:views.decorators.cache.cache_page.x."}}) == 1


def test_misuse_is_told() -> None:
    def view(request: Any) -> HttpResponse:
        return HttpResponse("x")

    with pytest.raises(InvalidType, match="parentheses"):
        cached_page(view)
    with pytest.raises(InvalidType, match="timeout"):
        cached_page("60")
    with pytest.raises(InvalidValue, match="stale"):
        cached_page(60, stale=-1)
    with pytest.raises(InvalidValue, match="names no parameter"):
        cached_page(60, tags=("{pk}",))(view)
    with pytest.raises(InvalidType, match="key_prefix"):
        cached_page(60, key_prefix=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="no request"):
        cached_page(60)(view)(5)
