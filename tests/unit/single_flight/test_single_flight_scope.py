"""Nobody gets what is another's: keys, callers, variants, and responses that are for one client alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.messages import get_messages
from django.contrib.messages import success as message
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.utils import translation
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.gzip import gzip_page
from django.views.decorators.vary import vary_on_headers
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import api_view, renderer_classes
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from goscope_django.core.flow import acarry_out, carry_out
from goscope_django.http import requests, responses
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import single_flight
from tests.support.flights import Gate, in_the_air, roles

rf = RequestFactory()


@pytest.fixture(autouse=True)
def _empty(goscope: object) -> Iterator[None]:
    yield
    assert not single_flight_group.group._entries, "somebody was left behind"
    assert not in_the_air(), "a flight was left in the air"


class Session(SessionStore):
    """A session without a store."""

    def save(self, must_create: bool = False) -> None:
        """Nothing to save to."""


def request(user: Any = None, cookie: str | None = None, path: str = "/a", **headers: str) -> HttpRequest:
    made = rf.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    made.user = user if user is not None else AnonymousUser()
    made.session = Session()
    if cookie is not None:
        made.COOKIES["sessionid"] = cookie
    return made


def ann() -> User:
    return User(pk=1, username="ann")


def bob() -> User:
    return User(pk=2, username="bob")


# Keys


DIFFERENT: list[tuple[str, Callable[[], HttpRequest]]] = [
    ("plain", request),
    ("head", lambda: _set(request(), method="HEAD")),
    ("path", lambda: request(path="/b")),
    ("query", lambda: request(path="/a?x=1")),
    ("order of the query", lambda: request(path="/a?x=1&y=2")),
    ("host", lambda: _meta(request(), HTTP_HOST="localhost")),
    ("scheme", lambda: _meta(request(), **{"wsgi.url_scheme": "https"})),
    ("user", lambda: request(ann())),
    ("another user", lambda: request(bob())),
    ("token", lambda: request(Authorization="Bearer a")),
    ("another token", lambda: request(Authorization="Bearer b")),
    ("user with a token", lambda: request(ann(), Authorization="Bearer a")),
    ("session", lambda: request(cookie="s1")),
    ("another session", lambda: request(cookie="s2")),
    ("accept", lambda: request(Accept="application/json")),
    ("language", lambda: request(Accept_Language="de")),
    ("etag", lambda: request(If_None_Match='"x"')),
    ("date", lambda: request(If_Modified_Since="Thu, 01 Jan 2026 00:00:00 GMT")),
    ("range", lambda: request(Range="bytes=0-1")),
]


def _set(made: HttpRequest, **attributes: Any) -> HttpRequest:
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def _meta(made: HttpRequest, **values: str) -> HttpRequest:
    made.environ.update(values)  # type: ignore[attr-defined]
    made.META.update(values)
    return made


def scope(made: HttpRequest, user: Any = None) -> str:
    return carry_out(requests.caller(made, user)).scope


def key_of(made: HttpRequest) -> str:
    return requests.key(made, scope(made))


def test_requests_that_differ_in_anything_have_keys_that_differ() -> None:
    keys = {name: key_of(make()) for name, make in DIFFERENT}
    assert len(set(keys.values())) == len(DIFFERENT)
    assert keys == {name: key_of(make()) for name, make in DIFFERENT}, "and the same one has the same key"


def test_language_and_time_zone_that_are_active_are_part_of_the_key() -> None:
    keys = {key_of(request())}
    with translation.override("de"):
        keys.add(key_of(request()))
    with override_settings(TIME_ZONE="Europe/Berlin"):
        keys.add(key_of(request()))
    assert len(keys) == 3


def test_a_session_counts_only_where_nothing_else_says_who_asks() -> None:
    assert key_of(request(ann(), cookie="s1")) == key_of(request(ann(), cookie="s2"))
    assert key_of(request(cookie="s1", Authorization="x")) == key_of(request(cookie="s2", Authorization="x"))


def test_no_credential_stands_in_a_scope() -> None:
    for made in (request(cookie="secret-cookie"), request(Authorization="Bearer secret-token")):
        assert "secret" not in scope(made)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), (1, 2), (1, "1"), (ann(), bob()), (("a", "bc"), ("ab", "c"))],
    ids=str,
)
def test_what_user_gives_tells_callers_apart_and_replaces_the_rest(one: Any, other: Any) -> None:
    assert scope(request(ann()), one) == scope(request(cookie="s"), lambda request: one)
    assert scope(request(ann()), one) != scope(request(ann()), other)


def _give(what: Any, request: HttpRequest) -> Any:
    return what


def test_a_user_function_that_gives_nothing_leaves_the_scope_as_it_is() -> None:
    for nothing in (None, AnonymousUser()):
        made = request(cookie="s")
        assert scope(made, partial(_give, nothing)) == scope(made)


def _bare(**who: Any) -> Callable[[], HttpRequest]:
    return lambda: request(**who)


async def test_sync_and_async_find_the_same_scope() -> None:
    async def tenant(request: HttpRequest) -> str:
        return "tenant"

    for make in (_bare(user=ann()), _bare(cookie="s"), _bare(Authorization="x")):
        assert (await acarry_out(requests.caller(make()))).scope == scope(make())
    assert (await acarry_out(requests.caller(request(), tenant))).scope == scope(request(), "tenant")


def _call(view: Callable[[HttpRequest], Any], **who: Any) -> Any:
    return view(request(**who))


def test_users_are_never_mixed() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(str(request.user))

    users = [ann(), bob(), ann(), bob(), None, None]
    found = gate.together([partial(_call, view, user=user) for user in users])
    nobody = "AnonymousUser"
    assert [response.content.decode() for response in found] == ["ann", "bob", "ann", "bob", nobody, nobody]
    assert gate.entered == 3


def test_one_tenant_may_share() -> None:
    gate = Gate()

    @single_flight(user=lambda request: request.headers["X-Tenant"])
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.headers["X-Tenant"])

    calls = [lambda who=who, name=name: view(request(who, X_Tenant=name)) for who in (ann(), bob()) for name in "tu"]
    assert [response.content for response in gate.together(calls)] == [b"t", b"u", b"t", b"u"]
    assert gate.entered == 2


# Variants


def test_whoever_sent_another_value_of_a_header_in_vary_gets_its_own_response() -> None:
    gate = Gate()

    @single_flight()
    @vary_on_headers("X-Part")
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(request.headers.get("X-Part", "none"))

    parts = ["a", "a", "b", "b", "b", "none"]
    calls = [lambda part=part: view(request(**({} if part == "none" else {"X_Part": part}))) for part in parts]
    found = gate.together(calls)
    assert [response.content.decode() for response in found] == parts
    assert all(response.has_header("Vary") for response in found)


def test_what_was_compressed_for_one_is_not_given_to_one_who_can_not_read_it() -> None:
    gate = Gate()

    @single_flight()
    @gzip_page
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse("x" * 1_000)

    found = gate.together([lambda: view(request(Accept_Encoding="gzip")), lambda: view(request())])
    assert found[0]["Content-Encoding"] == "gzip"
    assert found[1].content == b"x" * 1_000


def test_a_conditional_request_never_makes_others_see_not_modified() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(status=304) if "If-None-Match" in request.headers else HttpResponse("body")

    found = gate.together([lambda: view(request(If_None_Match='"x"')), lambda: view(request())])
    assert [response.status_code for response in found] == [304, 200]


# For one client alone


def cookie(made: HttpRequest) -> HttpResponse:
    response = HttpResponse("x")
    response.set_cookie("name", "value")
    return response


def raw_cookie(made: HttpRequest) -> HttpResponse:
    return HttpResponse("x", headers={"Set-Cookie": "a=b"})


def stream(made: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(iter([b"x"]))


def no_store(made: HttpRequest) -> HttpResponse:
    return HttpResponse("x", headers={"Cache-Control": "max-age=3, No-Store"})


def csrf(made: HttpRequest) -> HttpResponse:
    return HttpResponse(get_token(made))


def csrf_in_a_template(made: HttpRequest) -> HttpResponse:
    template = engines["django"].from_string("{% csrf_token %}")
    return TemplateResponse(made, template)


def nonce(made: HttpRequest) -> HttpResponse:
    made._csp_nonce = "abc"  # type: ignore[attr-defined]
    return HttpResponse("abc")


def reads_session(made: HttpRequest) -> HttpResponse:
    return HttpResponse(made.session.get("cart", "empty"))


def writes_session(made: HttpRequest) -> HttpResponse:
    made.session["cart"] = "full"
    return HttpResponse("x")


def leaves_a_message(made: HttpRequest) -> HttpResponse:
    made._messages = SimpleNamespace(used=False, added_new=False, add=_mark(made))  # type: ignore[attr-defined]
    message(made, "done")
    return HttpResponse("x")


def _mark(made: Any) -> Callable[..., None]:
    def add(*args: object) -> None:
        made._messages.added_new = True

    return add


def shows_messages(made: HttpRequest) -> HttpResponse:
    made._messages = SimpleNamespace(used=True, added_new=False)  # type: ignore[attr-defined]
    return HttpResponse(str(len([get_messages(made)])))


def everything_varies(made: HttpRequest) -> HttpResponse:
    return HttpResponse("x", headers={"Vary": "*"})


def finds_out_who_asks(made: HttpRequest) -> HttpResponse:
    made.user = User(pk=int(made.headers["X-Key"]), username="found")
    return HttpResponse(str(made.user.pk))


PRIVATE: list[Callable[[HttpRequest], HttpResponseBase]] = [
    cookie,
    raw_cookie,
    stream,
    never_cache(lambda made: HttpResponse("x")),
    no_store,
    cache_control(private=True)(lambda made: HttpResponse("x")),
    csrf,
    csrf_in_a_template,
    nonce,
    reads_session,
    writes_session,
    leaves_a_message,
    shows_messages,
    everything_varies,
]


@pytest.mark.parametrize("inner", PRIVATE, ids=lambda inner: inner.__name__)
def test_a_response_for_one_client_alone_sets_the_waiters_free(inner: Callable[[HttpRequest], Any]) -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> Any:
        gate.hold()
        return inner(request)

    found = gate.together([lambda: view(request())] * 4)
    assert gate.entered == 4
    assert roles(found) == ["bypass"] * 4


@pytest.mark.parametrize("inner", [reads_session, csrf, leaves_a_message])
def test_nor_is_what_others_make_a_response_of(inner: Callable[[HttpRequest], Any]) -> None:
    gate = Gate()

    @single_flight()
    def view(made: HttpRequest) -> dict[str, Any]:
        gate.hold()
        inner(made)
        return {"any": "data"}

    assert gate.together([lambda: view(request())] * 3) == [{"any": "data"}] * 3
    assert gate.entered == 3


def test_who_was_found_out_by_a_header_is_told_apart_by_it() -> None:
    gate = Gate()

    @single_flight()
    def view(made: HttpRequest) -> HttpResponse:
        gate.hold()
        return finds_out_who_asks(made)

    who = ["1", "2", "1", "2"]
    found = gate.together([partial(_call, view, X_Key=one) for one in who])
    assert [response.content.decode() for response in found] == who


def test_who_was_found_out_by_nothing_that_was_read_shares_with_nobody() -> None:
    gate = Gate()

    @single_flight()
    def view(made: HttpRequest) -> HttpResponse:
        gate.hold()
        made.user = ann()
        return HttpResponse("of ann")

    assert roles(gate.together([lambda: view(request())] * 3)) == ["bypass"] * 3


def test_what_others_make_a_response_of_is_shared_like_one() -> None:
    gate = Gate()

    @single_flight()
    def view(made: HttpRequest) -> dict[str, Any]:
        gate.hold()
        return {"any": "data"}

    assert gate.together([lambda: view(request())] * 3) == [{"any": "data"}] * 3
    assert gate.entered == 1


def test_an_exception_that_came_of_one_client_s_own_session_is_not_shared() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        raise Http404(request.session.get("cart", "empty"))

    found = gate.together([lambda: view(request())] * 3)
    assert [type(one) for one in found] == [Http404] * 3
    assert gate.entered == 3


@pytest.mark.parametrize("inner", [cookie, stream, reads_session], ids=lambda inner: inner.__name__)
async def test_waiting_tasks_are_set_free_too(inner: Callable[[HttpRequest], Any]) -> None:
    gate = Gate()

    @single_flight()
    async def view(request: HttpRequest) -> Any:
        await gate.ahold()
        return inner(request)

    found = await gate.atogether([lambda: view(request())] * 4)
    assert gate.entered == 4
    assert roles(found) == ["bypass"] * 4


@pytest.mark.parametrize("who", [{"user": ann()}, {"Authorization": "Bearer a"}], ids=["user", "token"])
def test_private_responses_are_shared_by_one_known_caller(who: dict[str, Any]) -> None:
    gate = Gate()

    @single_flight()
    @cache_control(private=True)
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse("x")

    found = gate.together([lambda: view(request(**who))] * 3)
    assert roles(found) == ["follower", "follower", "leader"]


def test_what_nobody_may_store_is_not_shared_by_known_callers_either() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return no_store(request)

    assert roles(gate.together([lambda: view(request(ann()))] * 3)) == ["bypass"] * 3


def test_a_known_user_s_session_may_be_read_but_not_written() -> None:
    for inner, shared in ((reads_session, True), (writes_session, False)):
        gate = Gate()

        @single_flight()
        def view(request: HttpRequest, gate: Gate = gate, inner: Any = inner) -> HttpResponse:
            gate.hold()
            response: HttpResponse = inner(request)
            return response

        gate.together([partial(_call, view, user=ann())] * 3)
        assert gate.entered == (1 if shared else 3)


def test_a_body_over_what_a_document_holds_is_not_shared() -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse(b"x" * 17 * 1024 * 1024)

    found = gate.together([lambda: view(request())] * 2)
    assert [len(response.content) for response in found] == [17 * 1024 * 1024] * 2
    assert roles(found) == ["bypass", "bypass"]


# Looking at the user leaves no trace


@single_flight()
def ignores_everybody(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


@single_flight()
def greets(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user))


@single_flight()
async def agreets(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.auser()))


@single_flight()
async def aignores_everybody(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


gate = Gate()


@single_flight()
def greets_many(request: HttpRequest) -> HttpResponse:
    gate.hold()
    return HttpResponse(str(request.user))


signed = override_settings(ROOT_URLCONF=__name__, SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies")


@signed
def test_a_view_that_asks_for_nobody_does_not_vary_on_cookies() -> None:
    answer = Client().get("/ignores/")
    assert answer["X-Single-Flight"] == "leader"
    assert "Cookie" not in answer.get("Vary", "")
    assert "Cookie" in Client().get("/greets/")["Vary"]


@single_flight()
@single_flight(user="everybody")
def twice(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


@single_flight()
@single_flight(user="everybody")
def greets_twice(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user))


@single_flight()
@single_flight()
async def agreets_twice(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.auser()))


@signed
def test_decorators_may_stand_on_one_another() -> None:
    answer = Client().get("/twice/")
    assert (answer.status_code, answer["X-Single-Flight"]) == (200, "leader")
    assert "Cookie" not in answer.get("Vary", "")
    answer = Client().get("/greets-twice/")
    assert (answer.content, answer["X-Single-Flight"]) == (b"AnonymousUser", "leader")
    assert "Cookie" in answer["Vary"]


@signed
async def test_asynchronous_ones_too() -> None:
    answer = await AsyncClient().get("/agreets-twice/")
    assert answer.content == b"AnonymousUser"
    assert "Cookie" in answer["Vary"]


@signed
async def test_an_asynchronous_view_that_asks_for_nobody_does_not_vary_on_cookies() -> None:
    answer = await AsyncClient().get("/aignores/")
    assert answer["X-Single-Flight"] == "leader"
    assert "Cookie" not in answer.get("Vary", "")
    assert "Cookie" in (await AsyncClient().get("/agreets/"))["Vary"]


@signed
def test_anonymous_callers_who_only_are_asked_for_their_name_share_and_all_vary_on_cookies() -> None:
    global gate
    gate = Gate()
    found = gate.together([lambda: Client().get("/many/")] * 3)
    assert roles(found) == ["follower", "follower", "leader"]
    assert ["Cookie" in response["Vary"] for response in found] == [True] * 3


def test_the_user_that_was_looked_at_is_still_there() -> None:
    made = request()
    loaded = []

    def load() -> User:
        loaded.append(1)
        return ann()

    made.user = SimpleLazyObject(load)  # type: ignore[assignment]
    scope(made)
    assert not made.session.accessed
    assert made.user == ann()
    assert made.session.accessed
    assert loaded == [1]


urlpatterns = [
    path("ignores/", ignores_everybody),
    path("greets/", greets),
    path("many/", greets_many),
    path("agreets/", agreets),
    path("twice/", twice),
    path("greets-twice/", greets_twice),
    path("agreets-twice/", agreets_twice),
    path("aignores/", aignores_everybody),
]


# REST framework


class ByKey(BaseAuthentication):
    """Authenticates by a header that no scope knows of."""

    def authenticate(self, request: Request) -> tuple[User, None] | None:
        found = request.headers.get("X-Key")
        return (User(pk=int(found), username=f"u{found}"), None) if found else None


class Base(APIView):
    gate = Gate()
    authentication_classes = [ByKey]

    def get(self, request: Request) -> Response:
        self.gate.hold()
        return Response({"user": request.user.username, "format": request.accepted_media_type}, headers={"X-Own": "1"})


@method_decorator(single_flight(), name="dispatch")
class OnDispatch(Base):
    pass


@method_decorator(single_flight(), name="get")
class OnGet(Base):
    pass


api = APIRequestFactory()


@pytest.mark.parametrize("kind", [OnDispatch, OnGet])
@override_settings(ROOT_URLCONF=__name__)
def test_rest_views_are_shared_as_they_are_rendered(kind: Any) -> None:
    kind.gate = Base.gate = Gate()
    view = kind.as_view(authentication_classes=[], renderer_classes=[JSONRenderer])
    found = Base.gate.together([lambda: view(api.get("/a"))] * 4)
    for response in found:
        response.render() if hasattr(response, "render") else None
        assert response.content == b'{"user":"","format":"application/json"}'
        assert response["Content-Type"] == "application/json"
        assert (response["X-Own"], response["Allow"]) == ("1", "GET, HEAD, OPTIONS")
    assert roles(found) == ["follower"] * 3 + ["leader"]
    assert Base.gate.entered == 1


def _by_key(view: Any, key: str) -> Any:
    return view(api.get("/a", headers={"X-Key": key}))


@pytest.mark.parametrize("kind", [OnDispatch, OnGet])
def test_callers_whom_the_view_itself_authenticates_are_never_mixed(kind: Any) -> None:
    kind.gate = Base.gate = Gate()
    view = kind.as_view(renderer_classes=[JSONRenderer])
    found = Base.gate.together([partial(_by_key, view, who) for who in "1212"])
    for who, response in zip("1212", found, strict=True):
        response.render() if hasattr(response, "render") else None
        assert f'"u{who}"' in response.content.decode()


GATE_PASS = {"Authorization": "Basic c3RhZ2luZzpwYXNz"}  # of the site, the same for everybody


class ByCookie(BaseAuthentication):
    """Authenticates by a cookie of its own, as many do who keep a JWT in one."""

    def authenticate(self, request: Request) -> tuple[User, None] | None:
        found = request.COOKIES.get("jwt")
        return (User(pk=int(found), username=f"u{found}"), None) if found else None


def _in_staging(view: Any, headers: dict[str, str]) -> Any:
    return view(api.get("/a", headers=headers | GATE_PASS))


class Fails(Base):
    def get(self, request: Request) -> Response:
        self.gate.hold()
        raise LookupError(request.user.username)


@pytest.mark.parametrize("way", ["header", "cookie"])
def test_an_authorization_header_that_all_send_does_not_mix_whom_the_view_authenticates(way: str) -> None:
    OnDispatch.gate = Base.gate = Gate()
    view = OnDispatch.as_view(
        authentication_classes=[ByKey if way == "header" else ByCookie], renderer_classes=[JSONRenderer]
    )
    made = {who: {"X-Key": who} if way == "header" else {"Cookie": f"jwt={who}"} for who in "12"}
    found = Base.gate.together([partial(_in_staging, view, made[who]) for who in "121122"])
    for who, response in zip("121122", found, strict=True):
        assert f'"u{who}"' in response.content.decode()
    assert roles([one for who, one in zip("121122", found, strict=True) if who == "1"]) == ["follower"] * 2 + ["leader"]


def test_nor_does_what_the_view_raises() -> None:
    Fails.gate = Gate()
    view = single_flight()(Fails.as_view(authentication_classes=[ByCookie]))
    calls = [partial(_in_staging, view, {"Cookie": f"jwt={who}"}) for who in "121"]
    assert [str(error) for error in Fails.gate.together(calls)] == ["u1", "u2", "u1"]


class ByToken(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, None] | None:
        return User(pk=1, username=request.headers["Authorization"]), None


def test_callers_whom_the_view_authenticates_by_authorization_share() -> None:
    OnDispatch.gate = Base.gate = Gate()
    view: Any = OnDispatch.as_view(authentication_classes=[ByToken], renderer_classes=[JSONRenderer])
    headers = [{"Authorization": "Bearer x", "X-Request-Id": str(number)} for number in range(3)]
    found = Base.gate.together([partial(view, api.get("/a", headers=one)) for one in headers])
    assert roles(found) == ["follower"] * 2 + ["leader"]


@pytest.mark.parametrize("outer", [True, False], ids=["outside", "inside"])
def test_rest_function_views(outer: bool) -> None:
    gate = Gate()

    def function(request: Request) -> Response:
        gate.hold()
        return Response([1, 2])

    if outer:
        view: Any = single_flight()(api_view(["GET"])(renderer_classes([JSONRenderer])(function)))
    else:
        view = api_view(["GET"])(renderer_classes([JSONRenderer])(single_flight()(function)))
    found = gate.together([lambda: view(api.get("/a"))] * 3)
    assert gate.entered == 1
    assert [(r.render() if hasattr(r, "render") else r).content for r in found] == [b"[1,2]"] * 3


def test_rest_errors_are_shared_with_their_details() -> None:
    gate = Gate()

    @single_flight(key="rest", name="rest_errors_are_shared.fails")
    def fails() -> None:
        gate.hold()
        raise ValidationError({"name": ["short"], "inner": {"x": ["bad"]}}, code="odd")

    for error in gate.together([fails] * 3):
        assert type(error) is ValidationError
        assert error.status_code == 400
        assert error.detail == {"name": ["short"], "inner": {"x": ["bad"]}}
        detail: Any = error.detail
        assert isinstance(detail["name"][0], ErrorDetail)
        assert error.get_codes() == {"name": ["odd"], "inner": {"x": ["odd"]}}


# Responses as data


def test_a_packed_response_comes_back_whole_but_for_its_cookies() -> None:
    text = "é".encode("latin-1")
    response = HttpResponse(text, status=418, reason="Teapot", content_type="text/plain; charset=latin-1")
    response["X-Odd"] = "a, b"
    response.set_cookie("a", "b")
    back = responses.unpack(responses.pack(response))
    assert (back.status_code, back.reason_phrase, back.content) == (418, "Teapot", text)
    assert back.charset == "latin-1"
    assert dict(back.items()) == {"Content-Type": "text/plain; charset=latin-1", "X-Odd": "a, b"}
    assert not back.cookies


def test_a_stored_response_can_replace_no_part_of_the_class() -> None:
    packed = responses.pack(HttpResponse("x"))
    packed["extra"] = {"close": "x", "_container": ["y"], "fine": 1}
    back = responses.unpack(packed)
    assert callable(back.close)
    assert back.content == b"x"
    assert vars(back)["fine"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "OK\r\nSet-Cookie: a=b"},
        {"reason": "OK\nX: y"},
        {"headers": [["Set-Cookie", "a=b"]]},
        {"headers": [["set-cookie ", "a=b"]]},
        {"headers": [[1, "a"]]},
        {"headers": [["a", 1]]},
        {"headers": [["a"]]},
        {"headers": 5},
        {"status": 99},
        {"status": "200"},
        {"body": "text"},
        {"extra": [1]},
    ],
    ids=repr,
)
def test_a_planted_response_is_none(change: dict[str, Any]) -> None:
    packed = {**responses.pack(HttpResponse("x")), **change}
    with pytest.raises((KeyError, TypeError, ValueError)):
        responses.unpack(packed)


def test_a_stored_header_with_a_line_break_is_refused() -> None:
    packed = responses.pack(HttpResponse("x"))
    packed["headers"].append(["X-Evil", "a\r\nSet-Cookie: b=c"])
    with pytest.raises(ValueError, match="newlines"):
        responses.unpack(packed)
