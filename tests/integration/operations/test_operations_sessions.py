"""Whoever clears a cache learns before how many people that signs out, whichever alias the sessions are removed by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.management import call_command
from django.test import override_settings

from goscope_django import operations
from goscope_django.dashboard.forms import Seen
from goscope_django.sessions import SessionStore
from tests.support.commands import on_server
from tests.support.dashboard import PAGE, action_url, browser_of
from tests.support.operations import own_store

OURS = {"SESSION_ENGINE": "goscope_django.sessions", "SESSION_CACHE_ALIAS": "people"}
ENTRIES: dict[str, dict[str, Any]] = {
    "default": {"KEY_PREFIX": "d"},
    "people": {"KEY_PREFIX": "p"},
    "twin": {"KEY_PREFIX": "p", "VERSION": 7},
    "all": {"KEY_FUNCTION": "goscope_django.cache.plain_key"},
    "elsewhere": {"KEY_PREFIX": "p", "LOCATION": "mongomock://?database=other"},
}
TOLD = "Sessions are kept in it: {} will be signed out."


@pytest.fixture(params=["goscope_django.sessions", "django.contrib.sessions.backends.cache"])
def three(request: pytest.FixtureRequest) -> Iterator[None]:
    """Three sessions, and an entry that is none, in each alias."""
    with own_store("mongomock://", caches=ENTRIES), override_settings(**{**OURS, "SESSION_ENGINE": request.param}):
        engine = __import__(request.param, fromlist=["SessionStore"])
        for alias in ENTRIES:
            caches[alias].clear()
        for number in range(3):
            session = engine.SessionStore()
            session["user"] = number
            session.save()
        for alias in ENTRIES:
            caches[alias].set("product:1", 1)
        yield


def test_every_alias_whose_clearing_removes_them_says_so(three: None) -> None:
    found = {alias: operations.signed_out(alias) for alias in ENTRIES}
    told = TOLD.format("3 people")
    assert found == {"default": "", "people": told, "twin": told, "all": told, "elsewhere": ""}
    state = operations.state()
    assert state.cache.sessions == 3
    counted = {one.alias: one.sessions for one in state.cache.aliases}
    assert counted == {"default": None, "people": 3, "twin": 3, "all": 3, "elsewhere": None}
    for alias, told in found.items():
        caches[alias].clear()
        left = operations.state().cache.sessions
        assert left == (0 if told else 3), alias
        if told:
            break


def test_a_pattern_counts_what_it_removes(three: None) -> None:
    assert operations.signed_out("people", "product:*") == ""
    assert operations.signed_out("people", "*") == TOLD.format("3 people")
    assert operations.signed_out("people", "*sess*") == TOLD.format("3 people")
    assert operations.signed_out("people", "*", 9) == ""
    assert operations.signed_out("twin", "*") == ""  # of another version
    assert operations.signed_out("twin", "*", 1) == TOLD.format("3 people")
    people: Any = caches["people"]
    (one, *_) = people.keys("*sess*")
    assert operations.signed_out("people", one) == TOLD.format("1 person")


def test_with_another_engine_nobody_is_signed_out(three: None) -> None:
    for engine in ("django.contrib.sessions.backends.db", "django.contrib.sessions.backends.cached_db"):
        with override_settings(SESSION_ENGINE=engine):
            assert operations.signed_out("people") == "" and operations.state().cache.sessions is None


def test_a_number_that_is_not_known_is_no_reason_to_say_nothing() -> None:
    away = "mongodb://127.0.0.1:9/goscope"
    with on_server(away, client_options={"serverSelectionTimeoutMS": 100}, caches=ENTRIES), override_settings(**OURS):
        assert operations.signed_out("people").endswith("how many is not known.")
        assert operations.signed_out("default") == ""


def test_the_commands_and_the_page_tell(three: None, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = StringIO(), StringIO()
    call_command("goscope_status", stdout=out, stderr=err)
    assert "3 live" in out.getvalue()
    document = StringIO()
    call_command("goscope_status", as_json=True, stdout=document)
    assert json.loads(document.getvalue())["cache"]["sessions"] == 3
    from goscope_django.management.output import Error

    with pytest.raises(Error, match="3 people will be signed out") as asked:  # there is nobody to answer
        call_command("goscope_cache", "clear", "--alias", "people")
    assert "Remove all entries" in str(asked.value)
    call_command("goscope_cache", "clear", "--alias", "default", "--no-input", stdout=out, stderr=err)
    assert "signed out" not in err.getvalue()
    call_command("goscope_cache", "clear", "--alias", "people", "--no-input", stdout=out, stderr=err)
    assert TOLD.format("3 people") in err.getvalue()
    assert operations.state().cache.sessions == 0


@pytest.mark.django_db
def test_the_page_that_asks_for_confirmation_tells(settings: Any) -> None:
    with own_store("mongomock://", caches=ENTRIES), override_settings(**OURS):
        caches["people"].clear()
        session = SessionStore()
        session.save()
        operator = browser_of(User.objects.create_superuser("root"))  # signed in: the second session
        assert "2 sessions" in operator.get(PAGE).content.decode()
        for alias, told in (("people", "2 people will be signed out"), ("default", "")):
            page = operator.get(action_url("clear_cache"), {"seen": Seen(alias).encoded()}).content.decode()
            assert ("signed out" in page) == bool(told) and told in page
