"""Settings as a whole, and who is taken for a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from goscope_django import conf
from goscope_django.cache import MongoDBCache
from goscope_django.exceptions import GoscopeError


def test_defaults_are_the_contracts() -> None:
    with override_settings(GOSCOPE={}):
        found = conf.current()
    assert (found.key_prefix, found.client_options, found.default_lock_timeout) == (conf.test_prefix, {}, 30)
    assert (found.connect_on_ready, found.fail_fast, found.on_error) == (True, False, "raise")
    assert found.lock_backend == "goscope_django.locks.MongoDBLockBackend"
    assert conf.DEFAULTS["URL"] == "mongodb://127.0.0.1:27017/goscope"
    assert found.url == "mongomock://", "tests use the TEST URL"


def test_without_a_setting_the_defaults_hold() -> None:
    with override_settings():
        from django.conf import settings

        del settings.GOSCOPE
        assert conf.faults() == []
        assert conf.current().url == "mongomock://"


def test_a_fault_is_improperly_configured_and_ours() -> None:
    with override_settings(GOSCOPE={"ON_ERROR": "x"}), pytest.raises(ImproperlyConfigured) as caught:
        conf.current()
    assert isinstance(caught.value, GoscopeError)


def test_suggestions() -> None:
    assert conf.suggestion("b_", ("AA", "BB", "B")) == "Did you mean 'B'? Allowed are AA, BB, B."
    assert conf.suggestion("zzz", ("A", "B")) == "Allowed are A, B."


@pytest.mark.parametrize(
    ("argv", "tests"),
    [
        (["manage.py", "test"], True),
        (["./manage.py", "test", "app"], True),
        (["/usr/bin/django-admin", "test"], True),
        (["manage.py", "runserver"], False),
        (["manage.py", "migrate", "test"], False),
        (["other.py", "test"], False),
        ([""], False),
    ],
)
def test_who_is_taken_for_a_test(argv: list[str], tests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_django.plugin")
    monkeypatch.delattr(mail, "outbox")
    monkeypatch.setattr(sys, "argv", argv)
    assert conf.testing() is tests


def test_djangos_test_environment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_django.plugin")
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    assert conf.testing() is True


def test_outside_of_tests_the_url_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "testing", lambda: False)
    given = {"URL": "mongodb://127.0.0.1/real", "KEY_PREFIX": "p:", "TEST": {"KEY_PREFIX": "t:"}}
    with override_settings(GOSCOPE=given):
        found = conf.current()
        assert (found.url, found.key_prefix, found.testing) == ("mongodb://127.0.0.1/real", "p:", False)
    monkeypatch.setattr(conf, "testing", lambda: True)
    with override_settings(GOSCOPE=given):
        assert (conf.current().url, conf.current().key_prefix) == ("mongomock://", f"{conf.test_prefix}t:")


def test_stores_are_named_once() -> None:
    backend = conf.BACKEND
    caches = {
        "default": {"BACKEND": backend},
        "same": {"BACKEND": backend, "LOCATION": "mongomock://"},
        "other": {"BACKEND": backend, "LOCATION": "mongomock://other"},
        "foreign": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "x"},
    }
    with override_settings(GOSCOPE={}, CACHES=caches):
        assert conf.store_urls() == [
            ("GOSCOPE['URL']", "mongomock://"),
            ("CACHES['other']['LOCATION']", "mongomock://other"),
        ]
        assert set(conf.our_caches()) == {"default", "same", "other"}


class Own(MongoDBCache):
    """A project's own, made of ours."""


@pytest.mark.parametrize(
    ("backend", "ours"),
    [
        (f"{__name__}.Own", True),
        (f"{__name__}.away", False),
        ("nowhere.Cache", False),
        ("nonsense", False),
        (None, False),
    ],
)
def test_a_backend_made_of_ours_is_ours(backend: Any, ours: bool) -> None:
    entry = {"BACKEND": backend, "LOCATION": "mongomock://other"}
    with override_settings(GOSCOPE={}, CACHES={"default": entry}):
        assert bool(conf.our_caches()) is ours
        assert len(conf.store_urls()) == 1 + ours


def test_relative_folders_begin_at_base_dir() -> None:
    with override_settings(BASE_DIR="/srv/project"):
        assert conf.base_dir() == Path("/srv/project")
    with override_settings(BASE_DIR=None):
        assert conf.base_dir() is None
