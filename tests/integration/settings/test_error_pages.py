"""Django's page about an error and its mail to ADMINS: no password of ours, with ``DEBUG`` and without."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.core import mail
from django.core.cache import caches
from django.template.defaultfilters import pprint
from django.test import RequestFactory, override_settings
from django.utils.log import AdminEmailHandler
from django.views import debug as django_debug
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from goscope_django import checks, conf, debug, runtime
from goscope_django.mongodb.document.failures import cleaned
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.driver import urls
from tests.support.commands import on_server

FILTER = "goscope_django.debug.ExceptionReporterFilter"
DEFAULT = "django.views.debug.SafeExceptionReporterFilter"
SECRET, OTHER, OPTION, ESCAPED = "canary-pw-1", "canary-pw-2", "canary pw 3", "canary%2Fpw%204"
SECRETS = (SECRET, OTHER, OPTION, "canary pw", ESCAPED, "canary/pw 4")
DEAD = "127.0.0.1:9/shop?serverSelectionTimeoutMS=50"
URL = f"mongodb://me:{SECRET}@{DEAD}"
BAD = f"mongodb://me:{SECRET}@127.0.0.1:9/sh op"


def _forget_filter() -> None:
    made: Any = django_debug.get_default_exception_reporter_filter
    made.cache_clear()


@pytest.fixture(params=[True, False], ids=["DEBUG", "production"])
def debugging(request: pytest.FixtureRequest) -> Iterator[bool]:
    with override_settings(DEBUG=request.param, ADMINS=[("me", "me@example.com")]):
        yield request.param


@pytest.fixture(params=[FILTER, DEFAULT], ids=["ours", "default"])
def in_force(request: pytest.FixtureRequest) -> Iterator[str]:
    _forget_filter()
    with override_settings(DEFAULT_EXCEPTION_REPORTER_FILTER=request.param):
        yield request.param
    _forget_filter()


def reported(call: Callable[[], Any]) -> dict[str, str]:
    """What Django says of what ``call`` raises: the page, the text for clients without HTML, and the mail."""
    request = RequestFactory().get("/buy", GOSCOPE_URL=URL)
    try:
        call()
    except Exception:
        info = sys.exc_info()
    else:
        pytest.fail("nothing was raised")
    reporter = django_debug.ExceptionReporter(request, *info)
    record = logging.LogRecord("django.request", logging.ERROR, __file__, 1, "Failed", (), info)
    record.request = request
    mail.outbox.clear()
    AdminEmailHandler(include_html=True).emit(record)
    (sent,) = mail.outbox
    html = "".join(str(one[0]) for one in getattr(sent, "alternatives", ()))
    assert "<html" in html
    return {
        "page": reporter.get_traceback_html(),
        "text": reporter.get_traceback_text(),
        "mail": f"{sent.subject}\n{sent.body}\n{html}",
    }


def _connect() -> None:
    runtime.adapter().lock.acquire("k")


def _cached() -> None:
    caches["own"].set("k", 1)


CALLS: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "lock": (_connect, {"URL": URL}),
    "cache": (_cached, {"URL": URL}),
    "options": (_connect, {"URL": f"mongodb://{DEAD}", "CLIENT_OPTIONS": {"username": "me", "password": OPTION}}),
    "bad URL": (_connect, {"URL": BAD}),
    "bad key": (_connect, {"URL": URL, "NO_SUCH": 1}),
    "bad options": (_connect, {"URL": URL, "CLIENT_OPTIONS": {"password": OPTION, "maxPoolSize": "many"}}),
    "bad option": (_connect, {"URL": f"{URL}&readPreference=nowhere"}),
    "escaped": (_connect, {"URL": f"mongodb://me:{ESCAPED}@{DEAD}"}),
}


@pytest.fixture(params=CALLS)
def situation(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    call, given = CALLS[request.param]
    ours = "goscope_django.cache.MongoDBCache"
    stores = {"default": {"BACKEND": ours}, "own": {"BACKEND": ours, "LOCATION": f"mongodb://me:{OTHER}@{DEAD}"}}
    with override_settings(
        CACHES=stores, GOSCOPE={**given, "TEST": {"URL": given["URL"]}, "CONNECT_ON_READY": False}, SOME_BROKER=[URL]
    ):
        yield call
    clients.close_all()


def leaks(text: str, *, of: tuple[str, ...] = SECRETS) -> list[str]:
    return [f"{one}: ...{text[max(0, text.index(one) - 300) : text.index(one) + 40]}" for one in of if one in text]


def test_no_password_with_our_filter(situation: Callable[[], None], debugging: bool) -> None:
    _forget_filter()
    with override_settings(DEFAULT_EXCEPTION_REPORTER_FILTER=FILTER):
        found = reported(situation)
    _forget_filter()
    for name, text in found.items():
        assert not leaks(text), name
    assert "SOME_BROKER" in found["page"] and "GOSCOPE_URL" in found["mail"]


def test_no_password_in_variables_of_ours_with_djangos_own_filter(
    situation: Callable[[], None], debugging: bool
) -> None:
    reporter_filter = django_debug.SafeExceptionReporterFilter()
    frames = []
    try:
        situation()
    except Exception as error:
        one: BaseException | None = error
        while one is not None:
            trace = one.__traceback__
            while trace is not None:
                frames.append(trace.tb_frame)
                trace = trace.tb_next
            one = one.__cause__ or one.__context__
    ours = [frame for frame in frames if frame.f_globals["__name__"].startswith("goscope_django")]
    assert ours
    for frame in ours:
        for name, value in reporter_filter.get_traceback_frame_variables(None, frame):
            assert not leaks(repr(value)), f"{frame.f_code.co_qualname}: {name}"
            assert not leaks(pprint(value)), f"{frame.f_code.co_qualname}: {name}"


def test_values_in_variables_of_ours_and_of_the_driver(mongo_url: str) -> None:
    """They are what is stored. The mail of production does not hold them, the page of development does."""
    _forget_filter()
    card = "canary4111"
    with (
        on_server(mongo_url),
        override_settings(DEFAULT_EXCEPTION_REPORTER_FILTER=FILTER, ADMINS=[("me", "me@example.com")]),
        MongoClient[dict[str, Any]](mongo_url) as client,
    ):
        runtime.adapter().ensure_indexes()
        client.get_default_database().command("collMod", "go_goscope_cache", validator={"value": -1})
        number = {"card": "".join(itertools.chain(card))}
        for shown in (False, True):
            with override_settings(DEBUG=shown):
                found = reported(lambda: caches["default"].set("k", number))
            pages = "".join(found.values())
            # This test's own variables are shown: what is looked at are the others.
            assert ("Document failed validation" in pages) and (pages.count(card) > 20) is shown
    _forget_filter()


def test_the_driver_functions_that_had_the_password_are_left_out() -> None:
    error = OperationFailure("Authentication failed.", 18, {"code": 18})
    namespace: dict[str, Any] = {"__name__": "pymongo.synchronous.auth", "error": error}
    exec("def authenticate(credentials):\n    raise error", namespace)
    with pytest.raises(OperationFailure) as caught:
        namespace["authenticate"](SECRET)
    assert cleaned(caught.value).__traceback__ is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (f"mongodb://me:{SECRET}@h/db", [True]),
        ("mongodb://h/db", []),
        ("mongodb://me@h/db", []),
        (f"mongodb://h/db?tlsCertificateKeyFilePassword={SECRET}", [True]),
    ],
)
def test_the_check_for_deployment(given: str, expected: list[bool], in_force: str) -> None:
    with override_settings(GOSCOPE={"URL": given, "TEST": {"URL": given}}, CACHES={}):
        found = [one for one in checks.check_reports() if one.id == "goscope.W033"]
        assert bool(found) is (bool(expected) and in_force == DEFAULT)
        assert not leaks(str(found))


def test_the_check_looks_at_each_cache_and_a_filter_of_ones_own(in_force: str) -> None:
    ours = {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": f"mongodb://me:{OTHER}@h/db"}
    with override_settings(GOSCOPE={"TEST": {"URL": "mongodb://h/db"}}, CACHES={"default": ours}):
        found = [one.msg for one in checks.check_reports()]
        assert ["LOCATION" in one for one in found] == ([True] if in_force == DEFAULT else [])

        class Own(debug.ExceptionReporterFilter):
            pass

        with mock.patch.object(debug, "import_string", return_value=Own):
            assert checks.check_reports() == []


@pytest.mark.parametrize("value", [URL, [URL], {"a": (URL,)}, {URL: 1}, {URL}, urls.Hidden(URL), conf.Fault(URL, URL)])
def test_a_password_is_masked_wherever_a_setting_has_it(value: object) -> None:
    with override_settings(SOME=value, GOSCOPE={"URL": URL}):
        shown = debug.ExceptionReporterFilter().get_safe_settings()
        assert not leaks(repr(shown))
        assert "127.0.0.1:9" in repr(shown["SOME"]), "the rest is shown"


@pytest.mark.parametrize("wrong", ["me:{}@db/shop", "mongodb:/me:{}@db/shop", "mongodb:me:{}@db", "redis//me:{}@db"])
@pytest.mark.parametrize("where", ["URL", "TEST", "LOCATION"])
def test_a_password_in_what_should_be_a_url_and_is_none(wrong: str, where: str) -> None:
    given = {"URL": "mongomock://", "TEST": {"URL": "mongomock://"}}
    entry = {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": ""}
    value = wrong.format(SECRET)
    changed: dict[str, dict[str, Any]] = {"URL": {"URL": value}, "TEST": {"TEST": {"URL": value}}, "LOCATION": {}}
    with override_settings(
        GOSCOPE={**given, **changed[where]},
        CACHES={"default": entry | ({"LOCATION": value} if where == "LOCATION" else {})},
        DEFAULT_EXCEPTION_REPORTER_FILTER=FILTER,
    ):
        _forget_filter()
        shown = debug.shown_settings()
        assert "@db" in shown
        assert SECRET not in shown
    _forget_filter()
