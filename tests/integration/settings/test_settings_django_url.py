"""``django://``: the store in the deployment of an entry of ``DATABASES``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from goscope_django import checks, conf, runtime
from goscope_django.exceptions import ConfigurationError
from tests.support.backend import ALIAS, mongodb_alias

installed = pytest.mark.skipif(not conf._is_mongodb(conf.ENGINE), reason="django-mongodb-backend is not installed")
SECRET = "hunter2"


@pytest.fixture
def outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in production, where ``django://`` names the entry's own database."""
    conf.reset()
    monkeypatch.setattr(conf, "testing", lambda: False)
    yield
    conf.reset()


# Refusals


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("django://", "alias"),
        ("django:///db", "alias"),
        ("django://nobody", "no entry 'nobody'"),
        ("django://default", "django.db.backends.sqlite3"),
        ("django://default/", "empty"),
        ("django://default/a.b", "'a.b'"),
        ("django://default?w=1", "options come from|has the credentials"),
        (f"django://me:{SECRET}@default", "credentials"),
    ],
)
@pytest.mark.parametrize("key", ["URL", "TEST"])
def test_what_is_no_entry_of_that_engine_is_an_error_of_the_checks(url: str, said: str, key: str) -> None:
    if connections.settings["default"]["ENGINE"] != "django.db.backends.sqlite3" and "default" in url:
        pytest.skip("here that entry is MongoDB's")
    with override_settings(GOSCOPE={key: {"URL": url} if key == "TEST" else url}):
        (fault,) = checks.check_settings()
        assert fault.id == "goscope.E001"
        assert key in fault.msg
        assert "django" in fault.msg
        assert SECRET not in fault.msg
        with pytest.raises(ImproperlyConfigured, match=said):
            conf.current()


def test_a_cache_is_told_as_well() -> None:
    entry = {"BACKEND": conf.BACKEND, "LOCATION": "django://nobody"}
    with override_settings(CACHES={"default": entry}):
        (fault,) = checks.check_settings()
    assert (fault.id, "nobody" in fault.msg) == ("goscope.E002", True)


def test_the_error_names_the_alias_its_engine_and_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        conf.target("django://nobody", "X")
    assert "django_mongodb_backend" in str(caught.value)


# What it names


@installed
def test_it_takes_hosts_options_and_credentials_and_shows_no_password(outside_of_tests: None) -> None:
    entry: dict[str, Any] = {
        "HOST": "a.example,b.example",
        "PORT": "27018",
        "NAME": "shop",
        "USER": "me",
        "PASSWORD": SECRET,
        "OPTIONS": {"replicaSet": "rs", "serverSelectionTimeoutMS": 7},
    }
    with mongodb_alias("mongodb://x/shop", **entry):
        target = conf.target(f"django://{ALIAS}")
        assert (target.place, target.database) == ("a.example,b.example", "shop")
        assert target.arguments == {
            "replicaSet": "rs",
            "serverSelectionTimeoutMS": 7,
            "username": "me",
            "password": SECRET,
            "port": 27018,
        }
        assert SECRET not in f"{target!r} {target}"
        assert conf.target(f"django://{ALIAS}/other").database == "other"
        with override_settings(GOSCOPE={"URL": f"django://{ALIAS}"}):
            with runtime.connection().client(connect=False) as client:
                assert {host for host, _ in client._topology_settings.seeds} == {"a.example", "b.example"}
                assert client.options.server_selection_timeout == 0.007
            assert [one.id for one in checks.check_security()] == ["goscope.W030"]
            assert SECRET not in str(checks.check_security())


@installed
def test_the_database_may_stand_in_the_uri(outside_of_tests: None) -> None:
    with mongodb_alias("mongodb://x/shop", HOST="mongodb://x/inside?w=1", NAME=""):
        assert conf.target(f"django://{ALIAS}").database == "inside"


@installed
def test_an_entry_that_cant_be_used_is_told(outside_of_tests: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = {"ENGINE": conf.ENGINE, "HOST": "mongodb://x", "NAME": ""}
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings, ALIAS, nameless)
        with pytest.raises(ConfigurationError, match="NAME"):
            conf.target(f"django://{ALIAS}", "X")
    with mongodb_alias("mongodb://x/shop", PORT="many"), pytest.raises(ConfigurationError, match="PORT"):
        conf.target(f"django://{ALIAS}", "X")


@installed
def test_under_test_it_names_the_test_database_before_and_after_that_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conf, "_names", {})
    with mongodb_alias("mongodb://x/shop", TEST={"NAME": None}) as connection:
        conf.remember_databases()
        for url in (f"django://{ALIAS}", f"django://{ALIAS}/other"):
            assert conf.target(url).database == "test_shop"
        for name in ("test_shop", "test_shop_1"):  # create_test_db, and a clone for a worker
            connection.settings_dict["NAME"] = name
            assert conf.target(f"django://{ALIAS}").database == name
    with mongodb_alias("mongodb://x/shop", TEST={"NAME": "mine"}):
        conf.remember_databases()
        assert conf.target(f"django://{ALIAS}").database == "mine"


@installed
@pytest.mark.parametrize(
    ("entry", "warns"),
    [
        ({"OPTIONS": {"w": 1}}, True),
        ({"OPTIONS": {"W": "1"}}, True),
        ({"HOST": "mongodb://x/?w=2"}, True),
        ({"HOST": "mongodb://x/?w=1", "OPTIONS": {"w": "majority"}}, False),
        ({"HOST": "mongodb://x/?w=majority"}, False),
        ({"OPTIONS": {"w": "two-data-centres"}}, False),
        ({}, False),
    ],
)
def test_a_check_warns_of_commits_below_majority(outside_of_tests: None, entry: dict[str, Any], warns: bool) -> None:
    with mongodb_alias("mongodb://x/shop", **entry), override_settings(GOSCOPE={"URL": f"django://{ALIAS}"}):
        assert [one.id for one in checks.check_durability()] == ["goscope.W021"] * warns


@installed
@pytest.mark.real
def test_it_has_its_own_clients_sync_and_async(mongo_url: str, django_db_blocker: Any) -> None:
    with (
        django_db_blocker.unblock(),
        mongodb_alias(mongo_url) as connection,
        override_settings(GOSCOPE={"TEST": {"URL": f"django://{ALIAS}"}}),
    ):
        adapter = runtime.adapter()
        handle = adapter.lock.acquire("k")
        assert handle is not None
        assert asyncio.run(adapter.lock.aget("k")).token == handle.token  # type: ignore[union-attr]
        assert connection.database["go_goscope_locks"].count_documents({}) == 1
        assert adapter.store.executor().database.client is not connection.connection
        handle.release()
