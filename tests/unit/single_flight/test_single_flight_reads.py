"""Attacks on recorded reads: a victim leads, an attacker differs in one thing that the view looks at, and follows.

Each way in which a view can look at a request is tried: the attacker gets its own response, and whoever is like the
victim still shares.
"""

from __future__ import annotations

import asyncio
import copy
import enum
import json
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from datetime import timezone as fixed_zone
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.middleware.csrf import get_token
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory, override_settings
from django.urls import ResolverMatch, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject, cached_property
from django.utils.translation import gettext_lazy
from django.views.decorators.csrf import csrf_protect, ensure_csrf_cookie
from django.views.generic import View
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import NotAuthenticated, Throttled
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.throttling import AnonRateThrottle
from rest_framework.views import APIView

from goscope_django.core.flow import carry_out
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.http import requests
from goscope_django.process import counters
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import single_flight
from goscope_django.single_flight.memory import MOST_NAMES, Memory, memory
from goscope_django.single_flight.plan import flights
from tests.support.flights import Gate, in_the_air, roles

rf, arf = RequestFactory(), AsyncRequestFactory()
get: Any = APIRequestFactory().get


@pytest.fixture(autouse=True)
def _empty(goscope: object) -> Iterator[None]:
    memory.clear()
    yield
    memory.clear()
    assert not single_flight_group.group._entries, "somebody was left behind"
    assert not in_the_air(), "a flight was left in the air"


class Session(SessionStore):
    """A session without a store; its key is what a test says."""

    def save(self, must_create: bool = False) -> None:
        """Nothing to save to."""

    def load(self) -> dict[str, Any]:
        return {"cart": f"cart of {self.session_key}"}


def made(user: Any = None, session: str | None = None, **extra: Any) -> HttpRequest:
    """A request: upper case is ``META``, ``cookie_x`` a cookie, the rest attributes that middleware puts there."""
    meta = {name: value for name, value in extra.items() if name.isupper()}
    found = rf.get("/a", **meta)
    found.user = AnonymousUser() if user is None else user
    found.session = Session(session)
    for name, value in extra.items():
        if name.startswith("cookie_"):
            found.COOKIES[name.removeprefix("cookie_")] = value
        elif not name.isupper():
            setattr(found, name, value)
    return found


def ann() -> User:
    return User(pk=1, username="ann")


class Guest:
    """Somebody's own kind of anonymous user."""

    is_authenticated = False

    def __init__(self, name: str) -> None:
        self.name = name


def _as_it_is(view: Any) -> Any:
    return view


# Ways to look


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def template(text: str) -> Callable[[HttpRequest], Any]:
    return lambda request: TemplateResponse(request, engines["django"].from_string(text))


def all_of_meta(request: HttpRequest) -> str:
    return repr(sorted((name, value) for name, value in request.META.items() if name.isupper()))


SIGNED = signing.get_cookie_signer(salt="x").sign("1")

WAYS: list[tuple[str, Callable[[Any], Any], dict[str, Any], dict[str, Any]]] = [
    ("headers[]", lambda r: r.headers["X-Part"], {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("headers.get", lambda r: r.headers.get("x_part", "none"), {"HTTP_X_PART": "a"}, {}),
    ("in headers", lambda r: "X-Part" in r.headers, {"HTTP_X_PART": "a"}, {}),
    ("absent for the victim", lambda r: r.headers.get("X-Part"), {}, {"HTTP_X_PART": "a"}),
    ("dict(headers)", lambda r: dict(r.headers).get("X-Part"), {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("headers.items", lambda r: sorted(r.headers.items()), {"HTTP_X_PART": "a"}, {}),
    ("len(headers)", lambda r: len(r.headers), {"HTTP_X_PART": "a"}, {}),
    ("repr(headers)", lambda r: repr(r.headers), {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("headers.copy", lambda r: r.headers.copy()["X-Part"], {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("META[]", lambda r: r.META["HTTP_X_PART"], {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("META.get", lambda r: r.META.get("HTTP_X_PART"), {}, {"HTTP_X_PART": "b"}),
    ("META.pop", lambda r: r.META.pop("HTTP_X_PART", None), {"HTTP_X_PART": "a"}, {}),
    ("META.setdefault", lambda r: r.META.setdefault("HTTP_X_PART", "z"), {}, {"HTTP_X_PART": "b"}),
    ("META.items", all_of_meta, {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}),
    ("**META", lambda r: {**r.META}["REMOTE_ADDR"], {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}),
    ("dict(META)", lambda r: dict(r.META)["REMOTE_ADDR"], {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}),
    ("META.copy", lambda r: r.META.copy()["REMOTE_ADDR"], {"REMOTE_ADDR": "1.1.1.1"}, {"REMOTE_ADDR": "1.1.1.2"}),
    ("copy(META)", lambda r: copy.copy(r.META)["REMOTE_ADDR"], {"REMOTE_ADDR": "1.1.1.1"}, {"REMOTE_ADDR": "1.1.1.2"}),
    ("META | {}", lambda r: (r.META | {})["REMOTE_ADDR"], {"REMOTE_ADDR": "1.1.1.1"}, {"REMOTE_ADDR": "1.1.1.2"}),
    ("{} | META", lambda r: ({} | r.META)["REMOTE_ADDR"], {"REMOTE_ADDR": "1.1.1.1"}, {"REMOTE_ADDR": "1.1.1.2"}),
    ("list(META)", lambda r: "HTTP_X" in list(r.META), {"HTTP_X": "1"}, {}),
    ("len(META)", lambda r: len(r.META), {"HTTP_X": "1"}, {}),
    ("format", lambda r: "{REMOTE_ADDR}".format_map(r.META), {"REMOTE_ADDR": "1.1.1.1"}, {"REMOTE_ADDR": "1.1.1.2"}),
    (
        "%",
        lambda r: "%(REMOTE_ADDR)s" % r.META,  # noqa: UP031
        {"REMOTE_ADDR": "1.1.1.1"},
        {"REMOTE_ADDR": "1.1.1.2"},
    ),
    ("environ", lambda r: r.environ["HTTP_X_PART"], {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("match", lambda r: _matched(r.META), {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("address", lambda r: r.META["REMOTE_ADDR"], {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}),
    ("content_type", lambda r: r.content_type, {"CONTENT_TYPE": "a/b"}, {"CONTENT_TYPE": "a/c"}),
    ("port", lambda r: r.get_port(), {"SERVER_PORT": "80"}, {"SERVER_PORT": "8080"}),
    ("cookie header", lambda r: r.headers["Cookie"], {"HTTP_COOKIE": "a=1"}, {"HTTP_COOKIE": "a=2"}),
    ("COOKIES[]", lambda r: r.COOKIES["cart"], {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("COOKIES.get", lambda r: r.COOKIES.get("cart"), {"cookie_cart": "1"}, {}),
    ("in COOKIES", lambda r: "cart" in r.COOKIES, {}, {"cookie_cart": "1"}),
    ("COOKIES.items", lambda r: sorted(r.COOKIES.items()), {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("json(COOKIES)", lambda r: json.dumps(r.COOKIES), {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("bool(COOKIES)", lambda r: bool(r.COOKIES), {"cookie_cart": "1"}, {}),
    ("COOKIES ==", lambda r: r.COOKIES == {"cart": "1"}, {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("repr(COOKIES)", lambda r: repr(r.COOKIES), {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("pickle", lambda r: pickle.loads(pickle.dumps(r.COOKIES)), {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("signed", lambda r: r.get_signed_cookie("x", default="no"), {"cookie_x": SIGNED}, {}),
    ("attribute", lambda r: r.tenant, {"tenant": "a"}, {"tenant": "b"}),
    ("getattr", lambda r: getattr(r, "tenant", None), {}, {"tenant": "b"}),
    ("hasattr", lambda r: hasattr(r, "tenant"), {"tenant": "b"}, {}),
    ("number", lambda r: r.level, {"level": 1}, {"level": 2}),
    ("type", lambda r: type(r.level).__name__, {"level": 1}, {"level": True}),
    ("bytes", lambda r: r.level, {"level": b"1"}, {"level": b"2"}),
    ("uuid", lambda r: r.level, {"level": uuid.UUID(int=1)}, {"level": uuid.UUID(int=2)}),
    ("date", lambda r: r.at, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"at": datetime(2026, 1, 2, tzinfo=UTC)}),
    ("enum", lambda r: r.colour, {"colour": Colour.RED}, {"colour": Colour.BLUE}),
    ("tuple", lambda r: r.groups, {"groups": ("a", ("b",))}, {"groups": ("a", ("c",))}),
    ("model", lambda r: r.org.pk, {"org": User(pk=7)}, {"org": User(pk=8)}),
    ("text", lambda r: str(r.word), {"word": gettext_lazy("a")}, {"word": gettext_lazy("b")}),
    ("template", template("{{ request.META.HTTP_X_PART }}"), {"HTTP_X_PART": "a"}, {"HTTP_X_PART": "b"}),
    ("template cookie", template("{{ request.COOKIES.cart }}"), {"cookie_cart": "1"}, {"cookie_cart": "2"}),
    ("template attribute", template("{{ request.tenant }}"), {"tenant": "a"}, {}),
]


def _matched(meta: Any) -> str:
    match meta:
        case {"HTTP_X_PART": "a"}:
            return "a"
    return "another"


def shown(look: Callable[[Any], Any], request: HttpRequest) -> HttpResponse:
    found = look(request)
    return found if isinstance(found, HttpResponse) else HttpResponse(repr(found))


def attacked(look: Callable[[Any], Any], requests_of: Sequence[Callable[[], HttpRequest]], **options: Any) -> list[Any]:
    """What a view that looks in one way gives to requests that overlap."""
    memory.clear()
    gate = Gate()

    @single_flight(name="attacked", **options)
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return shown(look, request)

    return gate.together([lambda make=make: view(make()) for make in requests_of])  # type: ignore[misc]


def content(response: Any) -> bytes:
    body: bytes = response.render().content if hasattr(response, "render") else response.content
    return body


@pytest.mark.parametrize(("name", "look", "victim", "attacker"), WAYS, ids=[one[0] for one in WAYS])
def test_who_differs_in_what_the_view_reads_gets_its_own(
    name: str, look: Callable[[Any], Any], victim: dict[str, Any], attacker: dict[str, Any]
) -> None:
    makes: list[Callable[[], HttpRequest]] = [partial(made, **one) for one in (victim, attacker, victim)]
    found = attacked(look, makes)
    assert [content(one) for one in found] == [content(shown(look, make())) for make in makes]
    assert content(found[0]) != content(found[1]), "the example shows nothing"
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


def test_a_header_in_both_forms_is_one_read() -> None:
    both = {"HTTP_X_PART": "a"}
    found = attacked(
        lambda r: (r.headers["X-Part"], r.META["HTTP_X_PART"]), [partial(made, **both), partial(made, **both)]
    )
    assert roles(found) == ["follower", "leader"]
    assert [set(names) for names in memory._names.values()] == [{"m:HTTP_X_PART"}]


@pytest.mark.parametrize("key", [None, lambda request: "k"], ids=["plain", "key="])
@pytest.mark.parametrize("user", [None, "everybody"], ids=["scope", "user="])
def test_key_and_user_turn_nothing_off(key: Any, user: Any) -> None:
    makes = [partial(made, cookie_cart="1"), partial(made, cookie_cart="2")]
    found = attacked(lambda r: r.COOKIES["cart"], makes, key=key, user=user)
    assert [one.content for one in found] == [b"'1'", b"'2'"]


def test_a_user_whom_user_leaves_out_still_counts_when_used() -> None:
    makes = [partial(made, user=ann()), partial(made, user=User(pk=2, username="bob")), partial(made, user=ann())]
    found = attacked(lambda r: r.user.username, makes, user="everybody")
    assert [one.content for one in found] == [b"'ann'", b"'bob'", b"'ann'"]
    assert found[2]["X-Single-Flight"] == "follower"
    assert roles(attacked(lambda r: 1, makes, user="everybody")) == ["follower", "follower", "leader"]


def test_a_lazy_user_whom_user_leaves_out_counts_when_it_was_loaded() -> None:
    def lazy(name: str, pk: int) -> HttpRequest:
        return made(user=SimpleLazyObject(lambda: User(pk=pk, username=name)))

    makes = [partial(lazy, "ann", 1), partial(lazy, "bob", 2), partial(lazy, "ann", 1)]
    found = attacked(lambda r: r.user.username, makes, user="everybody")
    assert [one.content for one in found] == [b"'ann'", b"'bob'", b"'ann'"]
    passed_on = attacked(template("{% load i18n %}nobody"), makes, user="everybody")
    assert roles(passed_on) == ["follower", "follower", "leader"]


@pytest.mark.parametrize(
    "look",
    [lambda r: r.session["cart"], lambda r: r.session.get("cart"), lambda r: r.session.session_key,
     lambda r: sorted(r.session.items()), template("{{ request.session.cart }}"),
     template("{{ request.session.session_key }}")],
)  # fmt: skip
def test_two_sessions_of_one_user_share_only_if_neither_was_read(look: Callable[[Any], Any]) -> None:
    makes = [partial(made, user=ann(), session=key) for key in ("s" * 8, "t" * 8, "s" * 8)]
    found = attacked(look, makes)
    assert [content(one) for one in found] == [content(shown(look, make())) for make in makes]
    assert found[2]["X-Single-Flight"] == "follower"
    assert roles(attacked(lambda r: r.user.username, makes)) == ["follower", "follower", "leader"]


@pytest.mark.parametrize("look", [vars, lambda r: r.service, copy.copy], ids=["vars", "object", "copy"])
def test_what_can_not_be_compared_is_not_shared_and_said_once(
    look: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    before = counters._events["flights_unshared"]
    makes = [partial(made, service=object())] * 3
    with caplog.at_level(logging.INFO, "goscope.single_flight"):
        found = attacked(lambda r: look(r) and "x", makes)
    assert roles(found) == ["bypass"] * 3
    told = [one.getMessage() for one in caplog.records if "is not shared" in one.getMessage()]
    assert len(told) == 1
    assert "object at" not in told[0]
    assert counters._events["flights_unshared"] > before


def test_attributes_that_nobody_reads_and_cookies_of_others_do_not_part_anybody() -> None:
    makes = [partial(made, cookie__ga=str(n), service=object(), HTTP_USER_AGENT=str(n)) for n in range(4)]
    assert roles(attacked(lambda r: r.method, makes)) == ["follower"] * 3 + ["leader"]


def test_what_the_view_itself_writes_does_not_part_anybody_and_stays_there() -> None:
    seen: list[HttpRequest] = []

    def look(request: Any) -> str:
        seen.append(request)
        request.started = object()
        request.META["HTTP_X_OWN"] = str(len(seen))
        request.COOKIES["own"] = "1"
        return f"{request.started is not None}{request.META['HTTP_X_OWN']}{request.COOKIES['own']}"

    assert roles(attacked(look, [made] * 3)) == ["follower"] * 2 + ["leader"]
    assert (seen[0].META["HTTP_X_OWN"], seen[0].COOKIES["own"]) == ("1", "1")
    assert type(seen[0]) is type(made())
    assert type(seen[0].META) is dict
    assert type(seen[0].session) is Session


def test_the_request_is_its_own_class_to_whoever_asks() -> None:
    kind = type(made())

    def look(r: Any) -> Any:
        return isinstance(r, kind), r.__class__ is kind, isinstance(r, HttpRequest), repr(r)

    assert attacked(look, [made])[0].content.decode() == repr(look(made()))


def test_a_page_of_the_project_is_shared_with_sessions_messages_and_a_filter_that_reads_meta() -> None:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            request = record.request  # type: ignore[attr-defined]
            record.ip, record.ua = request.META["REMOTE_ADDR"], dict(request.headers)
            record.who, record.cart = str(request.user), request.COOKIES.get("cart")
            record.session_data = request.session.get("cart")
            return True

    logger = logging.getLogger("tests.reads")
    logger.addFilter(Filter())
    page = template("{% if messages %}{% for one in messages %}{{ one }}{% endfor %}{% endif %}<p>shop</p>")

    def visit(number: int) -> HttpRequest:
        found = made(cookie__ga=str(number), REMOTE_ADDR=f"10.0.0.{number}")
        storage: Any = FallbackStorage
        found._messages = storage(found)  # type: ignore[attr-defined]
        return found

    def look(request: HttpRequest) -> Any:
        logger.warning("shown", extra={"request": request})
        return page(request)

    try:
        found = attacked(look, [partial(visit, number) for number in range(4)])
    finally:
        logger.filters.clear()
    assert roles(found) == ["follower"] * 3 + ["leader"]


def test_a_template_that_greets_the_user_is_shared_by_that_user_alone() -> None:
    page = template("{{ user.username }}")
    makes = [partial(made, user=one) for one in (ann(), User(pk=2, username="bob"), ann())]
    found = attacked(page, makes)
    assert [one.content[:3] for one in found] == [b"ann", b"bob", b"ann"]
    assert found[2]["X-Single-Flight"] == "follower"


@pytest.mark.parametrize(("outer", "inner"), [(ensure_csrf_cookie, _as_it_is), (csrf_protect, csrf_protect)])
def test_csrf_decorators_around_a_view_that_uses_no_token_do_not_end_sharing(outer: Any, inner: Any) -> None:
    gate = Gate()

    @single_flight()
    @inner  # type: ignore[untyped-decorator]
    def inside(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse("x")

    view = outer(inside)
    found = gate.together([lambda n=n: view(made(cookie_csrftoken=str(n) * 32)) for n in range(3)])  # type: ignore[misc]
    assert roles(found) == ["follower"] * 2 + ["leader"]


def test_a_token_that_was_used_is_nobody_else_s() -> None:
    assert roles(attacked(lambda r: get_token(r) and "x", [made] * 3)) == ["bypass"] * 3


def refuse(status: int) -> Callable[[HttpRequest], HttpResponse]:
    return lambda request: HttpResponse("no", status=status)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_refusals_are_shared_by_known_callers_alone(status: int) -> None:
    assert roles(attacked(refuse(status), [made] * 3)) == ["bypass"] * 3
    assert roles(attacked(refuse(status), [partial(made, user=ann())] * 3)) == ["follower"] * 2 + ["leader"]


@pytest.mark.parametrize(
    ("error", "shared"),
    [(PermissionDenied, False), (NotAuthenticated, False), (Throttled, False), (Http404, True)],
)
def test_nor_are_the_exceptions_that_become_refusals(error: type[Exception], shared: bool) -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        raise error("no") if error is not Throttled else Throttled(5)

    found = gate.together([lambda: view(made())] * 3)
    assert [type(one) for one in found] == [error] * 3
    assert gate.entered == (1 if shared else 3)


def test_what_a_view_raises_varies_like_what_it_returns() -> None:
    def look(request: HttpRequest) -> HttpResponse:
        raise Http404(request.COOKIES["cart"])

    found = attacked(look, [partial(made, cookie_cart=one) for one in "1211"])
    assert [str(one) for one in found] == list("1211")


def test_two_hundred_callers_from_two_hundred_addresses_wait_for_one_another_once_at_most() -> None:
    waits: list[str] = []
    answer = single_flight_group.group.answer

    def counted(entry: Any, waiter: Any, deadline: float) -> Any:
        waits.append(entry.key[1])
        return (yield from answer(entry, waiter, deadline))

    single_flight_group.group.answer = counted  # type: ignore[method-assign]
    gate = Gate()

    @single_flight(blocking_timeout=60)
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.META["REMOTE_ADDR"])

    def ask(number: int) -> Any:
        return view(made(REMOTE_ADDR=f"10.0.{number // 100}.{number % 100}"))

    try:
        found = gate.together([partial(ask, number) for number in range(40)])
        assert len(waits) == 39
        waits.clear()
        found += gate.together([partial(ask, number) for number in range(40, 80)])
        assert waits == [], "what the view reads is remembered"
    finally:
        del single_flight_group.group.answer
    assert len({one.content for one in found}) == 80


def test_ignore_reads_leaves_names_out() -> None:
    def look(request: Any) -> str:
        return f"{request.headers['X-Request-Id']}{request.COOKIES['lang']}{request.trace_id}{request.META['HTTP_B']}"

    def ask(number: int, b: str = "b") -> HttpRequest:
        return made(HTTP_X_REQUEST_ID=str(number), cookie_lang=str(number), trace_id=object(), HTTP_B=b)

    makes = [partial(ask, 1), partial(ask, 2), partial(ask, 3, "c")]
    ignored = ("x-request-id", "lang", "trace_id")
    found = attacked(look, makes, ignore_reads=ignored)
    assert [one["X-Single-Flight"] for one in found] == ["leader", "follower", "leader"]
    assert roles(attacked(lambda r: r.META["HTTP_B"], makes[:2], ignore_reads=["HTTP_B"])) == ["follower", "leader"]
    every = lambda r: sorted(r.headers)  # noqa: E731
    assert roles(attacked(every, makes[:2], ignore_reads=["X-Request-Id"])) == ["follower", "leader"]


@pytest.mark.parametrize(
    ("names", "error"), [("name", InvalidType), (5, InvalidType), ([5], InvalidType), ([" "], InvalidValue)]
)
def test_ignore_reads_takes_names(names: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="ignore_reads"):
        single_flight(ignore_reads=names)


def test_the_memory_is_bounded_by_names_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("goscope_django.single_flight.memory.time.monotonic", lambda: now[0])
    kept = Memory()
    kept.learn("view", [f"c:{number}" for number in range(100)])
    assert len(kept.names("view")) == MOST_NAMES
    now[0] += 599
    kept.learn("view", ["c:0"])
    now[0] += 2
    assert kept.names("view") == ("c:0",)
    assert kept.names("other") == ()


# The scope: credentials


CREDENTIALS = [
    *("HTTP_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_X_AUTH_TOKEN", "HTTP_X_FORWARDED_USER", "HTTP_REMOTE_USER"),
    *("REMOTE_USER", "SSL_CLIENT_S_DN", "SSL_CLIENT_CERT", "HTTP_SSL_CLIENT_CERT", "HTTP_X_SSL_CLIENT_S_DN"),
    *("HTTP_CLIENT_CERT", "HTTP_X_FORWARDED_CLIENT_CERT", "HTTP_CF_ACCESS_JWT_ASSERTION"),
]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_are_in_every_scope(name: str) -> None:
    scopes = {carry_out(requests.caller(made(**more))).scope for more in ({}, {name: "a"}, {name: "b"})}
    assert len(scopes) == 3
    scopes = {carry_out(requests.caller(made(user=ann(), **more))).scope for more in ({}, {name: "a"}, {name: "b"})}
    assert len(scopes) == 3
    alone = {carry_out(requests.caller(made(user=ann(), **{name: one}), alone=True)).scope for one in "ab"}
    assert len(alone) == 1


def test_headers_of_ones_own_are_credentials_by_a_setting() -> None:

    def ask(value: str) -> str:
        return carry_out(requests.caller(made(HTTP_X_SHOP_KEY=value))).scope

    assert ask("a") == ask("b")
    with override_settings(GOSCOPE={"CREDENTIAL_HEADERS": ["X-Shop-Key"]}):
        assert ask("a") != ask("b")


@pytest.mark.parametrize("name", ["HTTP_X_SIGNATURE", "HTTP_X_TIMESTAMP", "HTTP_X_NONCE", "HTTP_X_CSRFTOKEN"])
def test_what_changes_with_each_request_is_no_credential(name: str) -> None:
    assert len({carry_out(requests.caller(made(**{name: one}), alone=True)).scope for one in "ab"}) == 1


def test_the_raw_query_is_part_of_the_key() -> None:
    keys = {requests.key(rf.get("/a", QUERY_STRING=query), "s") for query in ("a=%2B", "a=+", "a=%2b", "a= ")}
    assert len(keys) == 4


# REST framework and async


class Rest(APIView):
    authentication_classes: Any = []
    renderer_classes: Any = [JSONRenderer]
    gate = Gate()

    def get(self, request: Request) -> Response:
        self.gate.hold()
        return Response([request.headers.get("X-Part"), request.COOKIES.get("cart"), request.META["REMOTE_ADDR"]])


def _rest(inside: bool) -> Any:
    kind: Any = type("Inside", (Rest,), {"gate": Gate()})
    if inside:
        kind.get = single_flight()(Rest.get)
        return kind, kind.as_view()
    return kind, single_flight()(kind.as_view())


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_rest_framework_s_requests_are_seen_through(inside: bool) -> None:
    kind, view = _rest(inside)
    sent = [{"HTTP_X_PART": one, "HTTP_COOKIE": f"cart={one}; _ga={number}"} for number, one in enumerate("abab")]
    found = kind.gate.together([lambda one=one: view(get("/a", **one)) for one in sent])
    bodies = [json.loads(content(one)) for one in found]
    assert bodies == [[one, one, "127.0.0.1"] for one in "abab"]
    assert kind.gate.entered <= 3


def test_a_throttle_that_counts_addresses_parts_them() -> None:
    class Once(AnonRateThrottle):
        rate = "100/day"
        cache: Any = None

        def allow_request(self, request: Any, view: Any) -> bool:
            return self.get_ident(request) != "10.0.0.1"

        def wait(self) -> None:
            """Nobody knows."""

    kind: Any = type("Throttled", (Rest,), {"gate": Gate(), "throttle_classes": [Once]})
    view = single_flight()(kind.as_view())
    found = kind.gate.together(
        [lambda one=one: view(get("/a", REMOTE_ADDR=one)) for one in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]
    )
    assert [one.status_code for one in found] == [200, 429, 200]


AWAYS: list[tuple[str, Callable[[Any], Any], dict[str, Any], dict[str, Any]]] = [
    ("headers", lambda r: r.headers["X-Part"], {"headers": {"X-Part": "a"}}, {"headers": {"X-Part": "b"}}),
    (
        "scope",
        lambda r: dict(r.scope["headers"])[b"x-part"],
        {"headers": {"x-part": "a"}},
        {"headers": {"x-part": "b"}},
    ),
    ("client", lambda r: r.scope["client"][0], {"client": ["1.1.1.1", 1]}, {"client": ["1.1.1.2", 1]}),
    ("address", lambda r: r.META["REMOTE_ADDR"], {"client": ["1.1.1.1", 1]}, {"client": ["1.1.1.2", 1]}),
    ("own", lambda r: r.scope["tenant"], {"tenant": "a"}, {"tenant": "b"}),
    ("absent", lambda r: r.scope.get("tenant"), {}, {"tenant": "b"}),
    ("copy", lambda r: dict(r.scope).get("tenant"), {"tenant": "a"}, {"tenant": "b"}),
]


@pytest.mark.parametrize(("name", "look", "victim", "attacker"), AWAYS, ids=[one[0] for one in AWAYS])
async def test_async_views_and_their_scope(
    name: str, look: Any, victim: dict[str, Any], attacker: dict[str, Any]
) -> None:
    gate = Gate()

    @single_flight()
    async def view(request: ASGIRequest) -> HttpResponse:
        await gate.ahold()
        return HttpResponse(repr(look(request)))

    calls = [partial(_avisit, view, one) for one in (victim, attacker, victim)]
    found = await gate.atogether(calls)
    assert found[0].content == found[2].content != found[1].content
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


async def _avisit(view: Any, sent: dict[str, Any]) -> Any:
    headers = [(name.lower().encode(), value.encode()) for name, value in sent.get("headers", {}).items()]
    factory: Any = arf
    scope = factory._base_scope(path="/a") | sent | {"headers": headers}
    request = ASGIRequest(scope, BytesIO())
    request.user = AnonymousUser()
    return await view(request)


def test_a_body_that_a_get_view_reads_counts() -> None:
    def ask(body: bytes) -> HttpRequest:
        return rf.generic("GET", "/a", body, content_type="application/json")

    found = attacked(lambda r: r.body, [partial(ask, body) for body in (b"[1]", b"[2]", b"[1]")])
    assert [one.content for one in found] == [b"b'[1]'", b"b'[2]'", b"b'[1]'"]
    assert found[2]["X-Single-Flight"] == "follower"


def test_a_query_that_middleware_changed_counts() -> None:
    def ask(query: str) -> HttpRequest:
        found = made()
        found.GET = QueryDict(query)
        return found

    makes = [partial(ask, one) for one in ("a=1", "a=2", "a=1")]
    found = attacked(lambda r: r.GET["a"], makes)
    assert [one.content for one in found] == [b"'1'", b"'2'", b"'1'"]


@pytest.mark.parametrize(
    ("look", "one", "other"),
    [
        (lambda r: r.path_info, {"path_info": "/x"}, {"path_info": "/y"}),
        (lambda r: r._messages, {"_messages": "a"}, {"_messages": "b"}),
        (lambda r: r.user.name, {"user": Guest("a")}, {"user": Guest("b")}),
        (lambda r: "x", {"urlconf": "shop.de"}, {"urlconf": "shop.fr"}),
        (lambda r: r.get_host(), {"get_host": lambda: "a"}, {"get_host": lambda: "b"}),
    ],
    ids=["path_info", "messages", "guest", "urlconf", "method"],
)
def test_what_middleware_replaced_parts_them(look: Any, one: dict[str, Any], other: dict[str, Any]) -> None:
    found = attacked(look, [partial(made, **one), partial(made, **other)])
    assert "follower" not in roles(found)


def test_arguments_that_a_decorator_gave_part_them_and_what_the_url_gave_does_not() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest, tenant: Any) -> HttpResponse:
        gate.hold()
        return HttpResponse(f"{tenant}")

    def ask(tenant: Any, *, by_url: bool = False) -> Any:
        request = made()
        if by_url:
            request.resolver_match = ResolverMatch(view, (), {"tenant": tenant})
        return view(request, tenant=tenant)

    found = gate.together([partial(ask, one) for one in "aba"])
    assert [one.content for one in found] == [b"a", b"b", b"a"]
    assert found[2]["X-Single-Flight"] == "follower"
    assert roles(gate.together([partial(ask, ["of the path"], by_url=True)] * 2)) == ["follower", "leader"]
    assert roles(gate.together([partial(ask, ["of a decorator"])] * 2)) == ["bypass"] * 2


def test_decorators_on_one_another_vary_by_what_the_inner_view_reads() -> None:
    gate = Gate()

    @single_flight(user="everybody")
    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.COOKIES["cart"])

    found = gate.together([lambda one=one: view(made(cookie_cart=one)) for one in "1212"])  # type: ignore[misc]
    assert [one.content.decode() for one in found] == list("1212")


def test_what_is_published_holds_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Any] = []
    provider = flights()
    publish = provider.publish

    def noted(*args: Any) -> Any:
        published.append(args)
        return publish(*args)

    monkeypatch.setattr(provider, "publish", noted)

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(len(request.COOKIES["cart"])))

    view(made(cookie_cart="canary-of-a-cookie"))
    assert len(published) == 1
    assert "c:cart" in repr(published)
    assert "canary" not in repr(published)


# Through Django's own middleware


@single_flight()
def page(request: HttpRequest) -> Any:
    stack.hold()
    text = "{% for one in messages %}{{ one }}{% endfor %}{{ user.is_authenticated }}{{ request.COOKIES.theme }}"
    return TemplateResponse(request, engines["django"].from_string("{% if messages %}" + "!" + "{% endif %}" + text))


@single_flight()
async def apage(request: HttpRequest) -> HttpResponse:
    await stack.ahold()
    return HttpResponse(f"{(await request.auser()).is_authenticated}{request.COOKIES.get('theme')}")


stack = Gate()
urlpatterns = [path("page/", page), path("apage/", apage)]
whole = override_settings(ROOT_URLCONF=__name__, SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies")


def _visit(theme: str, number: int) -> Any:
    return Client(HTTP_COOKIE=f"theme={theme}; _ga={number}").get("/page/", REMOTE_ADDR=f"10.0.0.{number}")


@whole
def test_a_page_behind_all_middleware_is_shared_by_those_alike() -> None:
    found = stack.together(
        [partial(_visit, theme, number) for number, theme in enumerate(["dark", "light", "dark", "dark"])]
    )
    assert [one.content for one in found] == [b"Falsedark", b"Falselight", b"Falsedark", b"Falsedark"]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower", "follower"]
    assert ["Cookie" in one["Vary"] for one in found] == [True] * 4


@whole
async def test_and_an_async_one() -> None:
    async def visit(theme: str) -> Any:
        client = AsyncClient()
        client.cookies["theme"] = theme
        return await client.get("/apage/")

    found = await stack.atogether([partial(visit, theme) for theme in ("dark", "light", "dark")])
    assert [one.content for one in found] == [b"Falsedark", b"Falselight", b"Falsedark"]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


# What the view looks at was made of the request before


class Tenant(View):
    """A view that keeps what it needs of a request on itself, before the method that is shared."""

    gate: Gate
    tenant: Any = None

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.tenant = request.headers.get("X-Part")
        self.service = object()

    def get(self, request: HttpRequest) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(repr(self.tenant))


class OnItself(Tenant):
    get = single_flight()(Tenant.get)


class ByDecorator(Tenant):
    get = method_decorator(single_flight())(Tenant.get)


@method_decorator(single_flight(), name="dispatch")
class OnDispatch(Tenant):
    pass


class InDispatch(View):
    gate: Gate

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        self.tenant = request.headers.get("X-Part")
        return super().dispatch(request, *args, **kwargs)

    @single_flight()
    def get(self, request: HttpRequest) -> HttpResponse:
        self.gate.hold()
        return HttpResponse(repr(vars(self)["tenant"]))


class InInitial(APIView):
    gate: Gate
    authentication_classes: Any = []
    renderer_classes: Any = [JSONRenderer]

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.tenant = request.headers.get("X-Part")

    @single_flight()
    def get(self, request: Any) -> Response:
        self.gate.hold()
        return Response(repr(self.tenant))


@pytest.mark.parametrize("kind", [OnItself, ByDecorator, OnDispatch, InDispatch, InInitial])
def test_what_a_class_based_view_was_given_before_counts(kind: Any) -> None:
    kind.gate = Gate()
    view = kind.as_view()
    found = kind.gate.together([lambda one=one: view(made(HTTP_X_PART=one)) for one in "aba"])
    assert ["a" in content(one).decode() for one in found] == [True, False, True]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


async def test_and_what_an_async_one_was_given() -> None:
    class AInDispatch(View):
        async def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            self.tenant = request.headers.get("X-Part")
            return await super().dispatch(request, *args, **kwargs)  # type: ignore[misc]

        @single_flight()
        async def get(self, request: HttpRequest) -> HttpResponse:
            await gate.ahold()
            return HttpResponse(repr(self.tenant))

    gate = Gate()
    view: Any = AInDispatch.as_view()
    found = await gate.atogether([partial(view, made(HTTP_X_PART=one)) for one in "aba"])
    assert [one.content for one in found] == [b"'a'", b"'b'", b"'a'"]
    assert found[2]["X-Single-Flight"] == "follower"


@pytest.mark.parametrize("kind", [OnItself, InInitial])
def test_what_nobody_reads_of_a_class_based_view_parts_nobody(kind: Any) -> None:
    class Same(kind):  # type: ignore[misc]
        gate = Gate()

        @single_flight()
        def get(self, request: Any) -> HttpResponse:
            self.gate.hold()
            return HttpResponse(f"{self.request.path} {self.args} {self.kwargs} {isinstance(self, Same)}")

    view: Any = Same.as_view()
    found = Same.gate.together([partial(view, made(HTTP_X_PART=one)) for one in "abc"])
    assert roles(found) == ["follower", "follower", "leader"]


def test_the_view_is_its_own_class_to_whoever_asks() -> None:
    seen: list[Any] = []

    class Asking(Tenant):
        @single_flight()
        def get(self, request: HttpRequest) -> HttpResponse:
            seen.extend([self, self.__class__, isinstance(self, Asking), copy.copy(self).__class__])
            return HttpResponse(str(super().tenant))

    Asking.as_view()(made())
    assert seen[1:] == [Asking, True, Asking]
    assert type(seen[0]) is Asking


def test_a_copy_of_a_view_has_read_what_the_view_was_given() -> None:
    class Copied(InDispatch):
        gate = Gate()

        @single_flight()
        def get(self, request: HttpRequest) -> HttpResponse:
            self.gate.hold()
            return HttpResponse(copy.copy(self).tenant)

    view: Any = Copied.as_view()
    found = Copied.gate.together([lambda one=one: view(made(HTTP_X_PART=one)) for one in "aba"])  # type: ignore[misc]
    assert [one.content for one in found] == [b"a", b"b", b"a"]
    assert found[2]["X-Single-Flight"] == "follower"


def test_a_body_that_rest_framework_parsed_before_counts() -> None:
    class Parsed(InInitial):
        gate = Gate()

        def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
            super().initial(request, *args, **kwargs)
            assert request.data

        @single_flight()
        def get(self, request: Any) -> Response:
            self.gate.hold()
            return Response(request.data)

    view: Any = Parsed.as_view()
    ask: Any = partial(APIRequestFactory().generic, "GET", "/a", content_type="application/json")
    bodies = [b'{"q":"a"}', b'{"q":"b"}']
    found = Parsed.gate.together([partial(view, ask(data=one)) for one in bodies])
    assert [content(one) for one in found] == bodies


# Who is at work meanwhile


async def test_what_a_view_reads_while_it_loads_its_user_counts() -> None:
    gate = Gate()

    async def load() -> User:
        await asyncio.sleep(0.01)
        return ann()

    @single_flight(user="everybody")
    async def view(request: Any) -> HttpResponse:
        async def tenant() -> Any:
            await asyncio.sleep(0)
            return request.headers.get("X-Part")

        await gate.ahold()
        user, part = await asyncio.gather(request.auser(), tenant())
        return HttpResponse(f"{user.username} {part}")

    found = await gate.atogether([partial(view, made(HTTP_X_PART=one, auser=load)) for one in "aba"])
    assert [one.content for one in found] == [b"ann a", b"ann b", b"ann a"]
    assert found[2]["X-Single-Flight"] == "follower"


def test_a_reporter_around_a_view_whose_module_sounds_like_plumbing_hides_nothing() -> None:
    gate = Gate()
    code = (
        "def around(view, request):\n    return view(request)\n"
        "def look(request):\n    hold()\n    return HttpResponse(request.headers.get('X-Part'))\n"
    )
    reporter: dict[str, Any] = {"__name__": "sentry_sdk.integrations.django"}
    view: dict[str, Any] = {"__name__": "copyshop.views", "hold": gate.hold, "HttpResponse": HttpResponse}
    exec(code, reporter)
    exec(code, view)
    shared = single_flight()(view["look"])

    def ask(part: str) -> Any:
        return reporter["around"](shared, made(HTTP_X_PART=part))

    found = gate.together([partial(ask, one) for one in "aba"])
    assert [one.content for one in found] == [b"a", b"b", b"a"]


@pytest.mark.parametrize("loaded", [False, True], ids=["lazy", "loaded"])
def test_a_guest_that_a_context_processor_hands_on_counts(loaded: bool) -> None:
    def lazy(name: str) -> HttpRequest:
        user = SimpleLazyObject(lambda: Guest(name))
        assert not loaded or user.name == name
        return made(user=user)

    for ask in (lazy, lambda name: made(user=Guest(name))):
        found = attacked(template("{{ user.name }}"), [partial(ask, one) for one in ("ann", "bob")])
        assert [content(one) for one in found] == [b"ann", b"bob"]
    assert roles(attacked(template("hello"), [partial(lazy, "ann"), partial(lazy, "bob")])) == ["follower", "leader"]


@pytest.mark.parametrize("look", [lambda r: r.user.username, template("{{ user.username }}")])
def test_a_user_whom_middleware_has_loaded_counts_when_used(look: Callable[[Any], Any]) -> None:
    def loaded(name: str, pk: int) -> HttpRequest:
        user = SimpleLazyObject(lambda: User(pk=pk, username=name))
        assert user.is_authenticated
        return made(user=user)

    makes = [partial(loaded, "ann", 1), partial(loaded, "bob", 2), partial(loaded, "ann", 1)]
    found = attacked(look, makes, user="everybody")
    assert [content(one).strip(b"'") for one in found] == [b"ann", b"bob", b"ann"]
    assert found[2]["X-Single-Flight"] == "follower"
    assert roles(attacked(template("nobody"), makes, user="everybody")) == ["follower", "follower", "leader"]


def test_a_user_that_was_used_outside_counts_inside_too() -> None:
    gate = Gate()

    @single_flight(user="everybody")
    def inside(request: Any) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.user.username)

    def view(request: Any) -> Any:
        carry_out(requests.caller(request))
        assert request.user.is_authenticated
        return inside(request)

    def lazy(name: str, pk: int) -> HttpRequest:
        return made(user=SimpleLazyObject(lambda: User(pk=pk, username=name)))

    found = gate.together([lambda: view(lazy("ann", 1)), lambda: view(lazy("bob", 2))])
    assert [one.content for one in found] == [b"ann", b"bob"]


def test_the_user_on_entry_is_compared_and_not_one_that_was_there_before() -> None:
    gate = Gate()

    @single_flight()
    def inside(request: Any) -> HttpResponse:
        gate.hold()
        return HttpResponse(getattr(request.user, "name", "nobody"))

    def ask(guest: Guest | None) -> Any:
        request: Any = made(user=SimpleLazyObject(AnonymousUser))
        carry_out(requests.caller(request))
        if guest is not None:
            request.user = guest
        return inside(request)

    found = gate.together([lambda: ask(Guest("ann")), lambda: ask(None)])
    assert [one.content for one in found] == [b"ann", b"nobody"]


@pytest.mark.parametrize(
    "look", [lambda r: r.session.load(), lambda r: r.session.get("cart") and dict(r.session._session_cache)]
)
def test_a_session_that_is_looked_into_past_its_methods_counts(look: Callable[[Any], Any]) -> None:
    makes = [partial(made, user=ann(), session=key) for key in ("s" * 8, "t" * 8, "s" * 8)]
    found = attacked(look, makes)
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


def test_a_loaded_session_counts_when_its_data_is_taken() -> None:
    def loaded(key: str) -> HttpRequest:
        found = made(user=ann(), session=key)
        assert found.session["cart"]
        return found

    makes = [partial(loaded, key) for key in ("s" * 8, "t" * 8, "s" * 8)]
    found = attacked(lambda r: r.session._session_cache["cart"], makes)
    assert [content(one) for one in found] == [content(shown(lambda r: r.session["cart"], make())) for make in makes]


def test_the_encoding_of_the_query_parts_them() -> None:
    def ask(kind: str, encoding: str | None = None) -> HttpRequest:
        found = rf.get("/a", QUERY_STRING="q=%C3%A9", CONTENT_TYPE=kind)
        if encoding is not None:
            found.encoding = encoding
        return found

    kinds = ["", "text/plain; charset=latin-1", "text/plain; charset=UTF8"]
    found = attacked(lambda r: r.GET["q"], [partial(ask, kind) for kind in kinds])
    assert [one.content.decode() for one in found] == ["'é'", "'Ã©'", "'é'"]
    assert found[2]["X-Single-Flight"] == "follower"
    found = attacked(lambda r: r.GET["q"], [partial(ask, "", "latin-1"), partial(ask, "", "no-such"), partial(ask, "")])
    assert found[2].content.decode() == "'é'"


def test_time_zones_of_one_name_part_them() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(str(timezone.localtime(datetime(2026, 1, 1, tzinfo=UTC))))

    def ask(hours: int) -> Any:
        with timezone.override(fixed_zone(timedelta(hours=hours), "home")):
            return view(made())

    found = gate.together([lambda: ask(2), lambda: ask(-5), lambda: ask(2)])
    assert [one.content[-6:] for one in found] == [b"+02:00", b"-05:00", b"+02:00"]
    assert found[2]["X-Single-Flight"] == "follower"


async def test_a_state_that_a_server_s_middleware_fills_counts() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: ASGIRequest) -> HttpResponse:
        await gate.ahold()
        return HttpResponse(repr(dict(request.scope).get("state")))

    found = await gate.atogether([partial(_avisit, view, {"state": {"tenant": one}}) for one in "ab"])
    assert "follower" not in roles(found)
    found = await gate.atogether([partial(_avisit, view, {"state": {}}) for _ in "ab"])
    assert roles(found) == ["follower", "leader"]


# What somebody's own loading of the user reads: a second factor that stands in the session


def stepped_up(key: str, *, loaded: bool = False, asynchronous: bool = False) -> Any:
    """A request of ann's, to whose user middleware adds whether this session has given a second factor."""
    request: Any = made(session=key)

    def verify() -> User:
        user = ann()
        vars(user)["verified"] = request.session.session_key == "s" * 8
        return user

    async def averify() -> User:
        await asyncio.sleep(0)
        return verify()

    request.user = SimpleLazyObject(verify)
    if asynchronous:
        request.auser = averify
    if loaded:
        assert request.user.is_authenticated
    return request


@pytest.mark.parametrize("loaded", [False, True], ids=["lazy", "loaded"])
@pytest.mark.parametrize("look", [lambda r: r.user.verified, template("{{ user.verified }}")])
def test_a_second_factor_on_the_user_is_that_of_a_session(look: Callable[[Any], Any], loaded: bool) -> None:
    makes = [partial(stepped_up, key, loaded=loaded) for key in ("s" * 8, "t" * 8, "s" * 8)]
    found = attacked(look, makes)
    assert [b"True" in content(one) for one in found] == [True, False, True]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]
    assert roles(attacked(template("for all of them"), makes)) == ["follower", "follower", "leader"]


def test_also_where_rest_framework_has_taken_the_user_over() -> None:
    class Verified(InInitial):
        gate = Gate()
        authentication_classes: Any = [SessionAuthentication]

        @single_flight()
        def get(self, request: Any) -> Response:
            self.gate.hold()
            return Response(request.user.verified)

    view: Any = Verified.as_view()
    found = Verified.gate.together([lambda key=key: view(stepped_up(key)) for key in ("s" * 8, "t" * 8, "s" * 8)])  # type: ignore[misc]
    assert [content(one) for one in found] == [b"true", b"false", b"true"]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


async def test_also_where_the_user_is_loaded_in_a_task() -> None:
    gate = Gate()

    @single_flight()
    async def view(request: Any) -> HttpResponse:
        await gate.ahold()
        return HttpResponse(str((await request.auser()).verified))

    makes = [stepped_up(key, asynchronous=True) for key in ("s" * 8, "t" * 8, "s" * 8)]
    found = await gate.atogether([partial(view, one) for one in makes])
    assert [one.content for one in found] == [b"True", b"False", b"True"]
    assert [one["X-Single-Flight"] for one in found] == ["leader", "leader", "follower"]


async def test_a_session_that_is_used_while_the_user_is_loaded_stays_used() -> None:
    async def load() -> User:
        await asyncio.sleep(0.01)
        return ann()

    load.__module__ = "django.contrib.auth.middleware"
    request: Any = made(auser=load, session="s" * 8)

    @single_flight(user="everybody")
    async def view(request: Any) -> HttpResponse:
        async def cart() -> Any:
            return request.session["cart"]

        loading = asyncio.ensure_future(asyncio.gather(requests._alook(request), cart()))
        return HttpResponse(str(await loading))

    await view(request)
    assert request.session.accessed


class Own(WSGIRequest):
    """A project's own request, with what it found out kept on itself."""

    region: Any = None

    @cached_property
    def tenant(self) -> Any:
        return self.headers.get("X-Part")


@pytest.mark.parametrize("known", [True, False], ids=["known before", "found out by the view"])
@pytest.mark.parametrize(
    "look", [lambda r: r.tenant, lambda r: r.region, lambda r: r.is_secure()], ids=["property", "default", "method"]
)
def test_what_a_request_of_ones_own_class_has_found_out_counts(look: Callable[[Any], Any], known: bool) -> None:
    def ask(part: str) -> Any:
        found: Any = Own(rf.get("/a", HTTP_X_PART=part).environ)
        found.user, found.session = AnonymousUser(), Session()
        found.region = part
        if known:
            assert found.tenant == part
        found.__dict__["is_secure"] = lambda: part
        return found

    found = attacked(look, [partial(ask, one) for one in "aba"])
    assert [one.content for one in found] == [b"'a'", b"'b'", b"'a'"]
    assert roles(attacked(lambda r: r.method, [partial(ask, one) for one in "ab"])) == ["follower", "leader"]


def test_a_session_that_middleware_has_changed_before_does_not_end_sharing() -> None:
    def seen() -> HttpRequest:
        found = made(user=ann(), session="s" * 8)
        found.session["last_seen"] = 1
        return found

    makes = [seen] * 3
    assert roles(attacked(lambda r: r.method, makes)) == ["follower", "follower", "leader"]
    assert roles(attacked(lambda r: r.session.update({"a": 1}), makes)) == ["bypass"] * 3
    assert roles(attacked(lambda r: setattr(r.session, "modified", True), makes)) == ["bypass"] * 3
    assert roles(attacked(lambda r: setattr(r, "session", seen().session), makes)) == ["bypass"] * 3

    asked = []

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        asked.append(request)
        return HttpResponse()

    view(seen())
    assert asked[0].session.modified, "it is still to be saved"


def test_a_message_of_middleware_does_not_end_sharing_and_is_not_lost() -> None:
    asked: list[Any] = []

    def told() -> Any:
        found: Any = made(user=ann(), session="s" * 8)
        found._messages = FallbackStorage(found)
        found._messages.add(20, "your trial ends")
        asked.append(found)
        return found

    makes = [told] * 3
    assert roles(attacked(lambda r: r.method, makes)) == ["follower", "follower", "leader"]
    assert all(one._messages.added_new and not one._messages.used for one in asked)
    assert roles(attacked(lambda r: [str(one) for one in r._messages], makes)) == ["bypass"] * 3
    assert roles(attacked(lambda r: r._messages.add(20, "mine"), makes)) == ["bypass"] * 3
    assert all(one._messages.added_new for one in asked)
