"""Django's own types come back as they were."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from http.cookies import Morsel
from pathlib import Path
from typing import Any

import pytest
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseForbidden,
    HttpResponseGone,
    HttpResponseNotAllowed,
    HttpResponseNotFound,
    HttpResponseNotModified,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    HttpResponseServerError,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import ContentNotRenderedError, SimpleTemplateResponse, TemplateResponse
from django.test import RequestFactory
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy, override
from django.views.decorators.clickjacking import xframe_options_exempt
from hypothesis import HealthCheck, given, settings
from rest_framework.response import Response

from goscope_django.codec import RESPONSES, make_codec
from goscope_django.exceptions import InvalidType, Undecodable
from goscope_django.mongodb.codec import Codec
from tests.support.codec import KEY, envelope, reason, wire
from tests.support.long import examples
from tests.support.values import Point, same, values, values_and_pickled

codec = make_codec()
without_pickle = make_codec(pickle=False)


def round_trip(value: object, by: Codec = without_pickle) -> Any:
    return by.decode(KEY, wire(by.encode(KEY, value)))


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_no_value_of_the_contract_needs_a_pickle(value: Any) -> None:
    assert same(round_trip(value), value)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled)
def test_the_rest_is_pickled_and_signed_by_django(value: Any) -> None:
    assert same(round_trip(value, codec), value)


# Text


def test_safe_strings_stay_safe_and_others_do_not_become_so() -> None:
    value = {"safe": mark_safe("<b>"), "unsafe": "<b>", mark_safe("key"): [mark_safe("é")]}
    back = round_trip(value)
    assert same(back, value)
    assert type(back["safe"]) is SafeString
    assert type(back["unsafe"]) is str
    assert [type(key) for key in back] == [str, str, SafeString]


def test_a_lazy_translation_stays_lazy() -> None:
    back = round_trip([gettext_lazy("Monday")], codec)
    with override("de"):
        assert str(back[0]) == "Montag"
    with override("fr"):
        assert str(back[0]) == "lundi"
    with pytest.raises(InvalidType):
        without_pickle.encode(KEY, gettext_lazy("Monday"))


# Responses


def template_response() -> TemplateResponse:
    template = engines.all()[0].from_string("<p>{{ x }}</p>") if engines.all() else None
    response = TemplateResponse(RequestFactory().get("/"), template, {"x": 1})  # type: ignore[arg-type]
    if template is None:
        response.content = b"<p>1</p>"
    return response.render()  # type: ignore[return-value]


def simple_template_response() -> SimpleTemplateResponse:
    response = SimpleTemplateResponse("page.html", {"x": object()}, status=201)
    response.content = b"done"
    return response


def full() -> HttpResponse:
    response = HttpResponse("grüße", content_type="text/plain; charset=latin-1", status=203, reason="Because")
    response["X-Zeta"] = "1"
    response["x-alpha"] = "naïve"
    response["X-Unicode"] = "日本"
    response.headers["X-Number"] = 5
    response.set_cookie("plain", "v")
    response.set_cookie(
        "all",
        'quoted "; value',
        max_age=3600,
        path="/p",
        domain="example.org",
        secure=True,
        httponly=True,
        samesite="Lax",
    )
    response.set_cookie("dated", "x", expires=datetime(2030, 1, 1, tzinfo=UTC))
    response.delete_cookie("old")
    response.write(" und mehr")
    return response


RESPONSE_MAKERS: dict[str, Any] = {
    "full": full,
    "empty": HttpResponse,
    "bytes": lambda: HttpResponse(bytes(range(256)), content_type="application/octet-stream"),
    "charset": lambda: HttpResponse("x", charset="utf-16"),
    "json": lambda: JsonResponse({"a": [1, None]}),
    "redirect": lambda: HttpResponseRedirect("/é?x=1"),
    "preserved": lambda: HttpResponsePermanentRedirect("https://example.org/", preserve_request=True),
    "bad": lambda: HttpResponseBadRequest("no"),
    "not found": lambda: HttpResponseNotFound("no"),
    "forbidden": lambda: HttpResponseForbidden("no"),
    "gone": lambda: HttpResponseGone("no"),
    "error": lambda: HttpResponseServerError("no"),
    "not modified": HttpResponseNotModified,
    "not allowed": lambda: HttpResponseNotAllowed(["GET", "HEAD"]),
    "template": template_response,
    "simple template": simple_template_response,
}


@pytest.mark.parametrize("make", RESPONSE_MAKERS.values(), ids=RESPONSE_MAKERS)
def test_responses(make: Any) -> None:
    response = make()
    back = round_trip(response)
    assert same(back, response)
    assert back.status_code == response.status_code
    assert back.reason_phrase == response.reason_phrase
    assert back.charset == response.charset
    assert back.serialize() == response.serialize()
    assert back.cookies.output() == response.cookies.output()
    assert repr(back) == repr(response)
    assert bool(list(back)) == bool(list(response))
    pickled = pickle.loads(pickle.dumps(response))
    assert same(back, pickled), "what pickling keeps is kept"
    assert back.__dict__.keys() == pickled.__dict__.keys() | {"status_code"} & back.__dict__.keys()


def test_every_response_class_is_tested() -> None:
    assert {type(make()).__name__ for make in RESPONSE_MAKERS.values()} == set(RESPONSES)


@pytest.mark.django_db  # closing a response ends a request, at which Django looks at its connections
def test_a_response_from_the_cache_can_be_used_like_any_other() -> None:
    back = round_trip(full())
    back["X-New"] = "1"
    back.set_cookie("new", "2")
    back.write("!")
    assert back.content.endswith(b"mehr!")
    assert back.text.endswith("mehr!")
    assert list(back) == [back.content[:-1], b"!"]
    back.close()
    assert "new" not in round_trip(full()).cookies


def test_what_decorators_put_on_a_response_is_kept() -> None:
    @xframe_options_exempt
    def view(request: Any) -> HttpResponse:
        return HttpResponse("x")

    response = view(RequestFactory().get("/"))
    response.price = {("a", 1)}  # type: ignore[attr-defined]
    back = round_trip(response)
    assert back.xframe_options_exempt is True
    assert back.price == {("a", 1)}


def test_what_belongs_to_the_request_is_not_kept() -> None:
    response = HttpResponse("x")
    vars(response)["_resource_closers"].append(lambda: None)
    vars(response)["_handler_class"] = object
    assert response.text == "x"
    back = round_trip(response)
    assert vars(back)["_resource_closers"] == []
    assert vars(back)["_handler_class"] is None
    assert "text" not in back.__dict__


def test_an_attribute_that_only_a_pickle_can_hold() -> None:
    response = HttpResponse("x")
    response.point = Point(1, 2)  # type: ignore[attr-defined]
    back = round_trip(response, codec)
    assert back.point == Point(1, 2)
    assert back.content == b"x"
    with pytest.raises(InvalidType, match="Point"):
        without_pickle.encode(KEY, response)


@pytest.mark.parametrize("by", [codec, without_pickle], ids=["pickle", "bson"])
def test_an_unrendered_response_is_refused_as_by_pickle(by: Codec) -> None:
    for response in (SimpleTemplateResponse("x.html"), TemplateResponse(RequestFactory().get("/"), "x.html")):
        with pytest.raises(ContentNotRenderedError):
            by.encode(KEY, response)
        with pytest.raises(ContentNotRenderedError):
            by.encode(KEY, {"deep": [response]})


@pytest.mark.django_db
@pytest.mark.parametrize("by", [codec, without_pickle], ids=["pickle", "bson"])
def test_streams_are_refused(by: Codec, tmp_path: Path) -> None:
    class Mine(StreamingHttpResponse):
        pass

    path = tmp_path / "file"
    path.write_bytes(b"x")
    responses = [StreamingHttpResponse([b"x"]), Mine(iter(())), FileResponse(path.open("rb"))]
    for response in responses:
        with pytest.raises(TypeError, match=type(response).__name__):
            by.encode(KEY, response)
        response.close()
    assert reason(envelope("streaming", []), codec) == "damaged"


class OwnResponse(HttpResponse):
    """A class that is not Django's."""


def test_subclasses_are_pickled() -> None:
    own = OwnResponse("x", status=202)
    own.set_cookie("a", "b")
    back = round_trip(own, codec)
    assert type(back) is OwnResponse
    assert back.serialize() == own.serialize()
    with pytest.raises(InvalidType, match="OwnResponse"):
        without_pickle.encode(KEY, own)


def test_rest_framework_responses_are_pickled() -> None:
    response = Response({"a": 1})
    response.content = b"{}"
    back = round_trip(response, codec)
    assert type(back) is Response
    assert back.content == b"{}"


def test_a_response_with_parts_replaced_is_pickled() -> None:
    response = HttpResponse("x")
    response.tell = len  # type: ignore[assignment, method-assign]
    assert round_trip(response, codec).tell is len
    with pytest.raises(InvalidType):
        without_pickle.encode(KEY, response)

    class OwnMorsel(Morsel[Any]):
        pass

    response = HttpResponse("x")
    morsel = OwnMorsel()
    morsel.set("a", "b", "b")
    response.cookies["a"] = morsel
    with pytest.raises(InvalidType):
        without_pickle.encode(KEY, response)


def stored_response(**changes: Any) -> dict[str, Any]:
    """A stored response with some of its parts exchanged."""
    stored: Any = without_pickle.encode(KEY, full())
    names = ["name", "status", "reason", "charset", "closed", "headers", "cookies", "content", "extra"]
    for name, part in changes.items():
        stored["v"][names.index(name)] = part
    return wire(stored)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "StreamingHttpResponse"},
        {"name": "__class__"},
        {"name": ["HttpResponse"]},
        {"status": "200"},
        {"reason": 5},
        {"charset": b"x"},
        {"closed": None},
        {"headers": [["X", "1\r\nSet-Cookie: a=b"]]},
        {"headers": [["X\n", "1"]]},
        {"headers": [["X"]]},
        {"headers": {"X": "1"}},
        {"headers": [["X", 5]]},
        {"cookies": [["a", "a", "b", "b\r\nX: 1", {}]]},
        {"cookies": [["a", "a", "b", "b", {"path": "/\nX: 1"}]]},
        {"cookies": [["a", "a", "b", "b", {"unknown": "x"}]]},
        {"cookies": [["a", "path", "b", "b", {}]]},
        {"cookies": [["a"]]},
        {"content": "text"},
        {"content": 10**12},
        {"extra": []},
        {"extra": {"content": b"x"}},
        {"extra": {"set_cookie": 1}},
        {"extra": {"headers": {}}},
        {"extra": {"_resource_closers": [1]}},
        {"extra": {"__class__": 1}},
    ],
    ids=repr,
)
def test_a_damaged_response_is_damaged(changes: dict[str, Any]) -> None:
    assert isinstance(codec.decode(KEY, stored_response()), HttpResponse)
    assert reason(stored_response(**changes), codec) == "damaged"


def test_a_planted_response_adds_no_header_by_its_reason_or_past_its_cookies() -> None:
    good = codec.encode("k", HttpResponse("x", reason="Fine"))
    assert codec.decode("k", copy.deepcopy(good)).reason_phrase == "Fine"  # type: ignore[attr-defined]
    for place, planted in ((2, "OK\r\nSet-Cookie: a=b"), (3, "utf-8\nx"), (5, [["Set-Cookie", "a=b"]])):
        changed: Any = copy.deepcopy(good)
        assert changed["t"] == "response"
        changed["v"][place] = planted
        with pytest.raises(Undecodable):
            codec.decode("k", changed)


def test_a_response_with_odd_headers_of_our_own_is_kept() -> None:
    for response in (HttpResponse("x", headers={"Set-Cookie": "a=b"}), HttpResponse("x", reason="odd\nreason")):
        back: Any = codec.decode("k", wire(codec.encode("k", response)))
        assert (list(back.items()) == list(response.items()), back.reason_phrase) == (True, response.reason_phrase)
