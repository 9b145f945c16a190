"""Settings as a whole, and who is taken for a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings, utils

from goscope_django import conf
from goscope_django.cache import MongoDBCache
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.testing import empty_store, plugin


def test_defaults_are_the_contracts() -> None:
    with override_settings(GOSCOPE={}):
        found = conf.current()
    assert (found.key_prefix, found.client_options, found.default_lock_timeout) == (conf.worker_prefix(), {}, 30)
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


@pytest.mark.parametrize("value", [-1, 101, True, 1.5, "5", None])
def test_the_number_of_names_that_are_counted_is_bounded(value: object) -> None:
    with override_settings(GOSCOPE={"FIGURES_PER_NAME": value}):
        (fault,) = conf.faults()
        assert fault.key == "FIGURES_PER_NAME" and repr(value) in fault.message
    for allowed in (0, conf.MOST_NAMES):
        with override_settings(GOSCOPE={"FIGURES_PER_NAME": allowed}):
            assert conf.current().figures_per_name == allowed


def test_suggestions() -> None:
    assert conf.suggestion("b_", ("AA", "BB", "B")) == "Did you mean 'B'? Allowed are AA, BB, B."
    assert conf.suggestion("zzz", ("A", "B")) == "Allowed are A, B."


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test environment runs, as in production."""
    monkeypatch.delattr("django.test.utils._TestState.saved_data")
    conf.reset()
    yield
    monkeypatch.undo()
    conf.reset()


@pytest.mark.parametrize(
    ("argv", "tests"),
    [
        (["manage.py", "test"], True),
        (["./manage.py", "test", "app"], True),
        (["/usr/bin/django-admin", "test"], True),
        (["C:/Scripts/django-admin.exe", "test"], True),
        (["/lib/django/__main__.py", "test"], True),
        (["/usr/bin/pytest"], True),
        (["/venv/bin/py.test", "-q"], True),
        (["C:/Scripts/pytest.exe"], True),
        (["/lib/pytest/__main__.py"], True),
        (["manage.py", "runserver"], False),
        (["manage.py", "migrate", "test"], False),
        (["other.py", "test"], False),
        (["/srv/pytest/serve.py"], False),
        ([""], False),
        ([], False),
    ],
)
def test_who_was_started_to_run_tests(argv: list[str], tests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "started", False)
    monkeypatch.setattr(sys, "argv", argv)
    assert conf.starts_tests() is tests


def test_a_run_of_pytest_is_known_whatever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/ide/runner.py"])
    assert conf.starts_tests() is True
    monkeypatch.delitem(sys.modules, plugin.__name__)
    assert conf.starts_tests() is False


@pytest.mark.usefixtures("outside")
def test_only_a_running_test_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an outbox (the ``locmem`` backend leaves one in production), an argument, a variable or an import."""
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    monkeypatch.setattr(sys, "argv", ["manage.py", "test"])
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert {"pytest", "_pytest.main", "pytest_django.plugin", "django.test"} <= sys.modules.keys()
    assert conf.testing() is False
    monkeypatch.setattr("django.test.utils._TestState.saved_data", object(), raising=False)
    monkeypatch.delattr(mail, "outbox")
    assert conf.testing() is True


@pytest.mark.usefixtures("outside")
def test_the_store_stays_whatever_happens_to_the_settings_object(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"URL": "mongodb://127.0.0.1/real", "KEY_PREFIX": "p:"}
    with override_settings(GOSCOPE=given):
        first = conf.current()
        given["URL"] = "mongodb://127.0.0.1/other"
        given["KEY_PREFIX"] = "q:"
        settings.GOSCOPE = {"URL": "mongomock://"}
        monkeypatch.setattr(mail, "outbox", [], raising=False)
        assert conf.current() is first
        assert (first.url, first.key_prefix) == ("mongodb://127.0.0.1/real", "p:")
        with override_settings(GOSCOPE={"URL": "mongodb://127.0.0.1/said"}):
            assert conf.current().url == "mongodb://127.0.0.1/said"


def test_a_test_environment_in_mid_process_begins_and_ends() -> None:
    """It may: Django's own runner begins it in a process that has used its settings already."""
    with override_settings(GOSCOPE={"URL": "mongodb://127.0.0.1/real"}):
        assert conf.current().url == "mongomock://"
        held = utils._TestState.saved_data  # type: ignore[attr-defined]
        del utils._TestState.saved_data  # type: ignore[attr-defined]
        try:
            assert conf.current().url == "mongodb://127.0.0.1/real"
        finally:
            utils._TestState.saved_data = held  # type: ignore[attr-defined]
        assert conf.current().url == "mongomock://"


def test_the_log_says_once_which_store_is_in_force(
    outside: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conf, "_told", set())
    with caplog.at_level("INFO", "goscope"), override_settings(GOSCOPE={"URL": "mongodb://me:hunter2@127.0.0.1/real"}):
        for _ in range(3):
            conf.reset()
            conf.current()
        monkeypatch.setattr("django.test.utils._TestState.saved_data", object(), raising=False)
        conf.current()
        conf.current()
    assert [record.getMessage() for record in caplog.records if record.name == "goscope"] == [
        "the store is mongodb://me:***@127.0.0.1/real (GOSCOPE['URL'])",
        "the store is mongomock:// (GOSCOPE['TEST']['URL'], under test)",
    ]


@pytest.mark.parametrize(("worker", "prefix"), [(0, ""), (1, "worker1:"), (12, "worker12:")])
def test_each_worker_of_djangos_parallel_runner_has_a_prefix(
    worker: int, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, "test_prefix", None)
    monkeypatch.setattr("django.test.runner._worker_id", worker)
    with override_settings(GOSCOPE={"KEY_PREFIX": "p:"}):
        assert conf.current().key_prefix == f"{prefix}p:"
    with override_settings(GOSCOPE={"KEY_PREFIX": "p:", "TEST": {"KEY_PREFIX": "t:"}}):
        assert conf.current().key_prefix == f"{prefix}t:"


@pytest.mark.usefixtures("outside")
def test_a_prefix_of_a_worker_is_for_tests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.test.runner._worker_id", 3)
    with override_settings(GOSCOPE={"KEY_PREFIX": "p:"}):
        assert conf.current().key_prefix == "p:"


def test_outside_of_tests_the_url_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "testing", lambda: False)
    conf.reset()
    given = {"URL": "mongodb://127.0.0.1/real", "KEY_PREFIX": "p:", "TEST": {"KEY_PREFIX": "t:"}}
    with override_settings(GOSCOPE=given):
        found = conf.current()
        assert (found.url, found.key_prefix, found.testing) == ("mongodb://127.0.0.1/real", "p:", False)
    monkeypatch.setattr(conf, "testing", lambda: True)
    with override_settings(GOSCOPE=given):
        assert (conf.current().url, conf.current().key_prefix) == ("mongomock://", f"{conf.worker_prefix()}t:")


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


def test_a_store_is_emptied_under_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.set("k", 1)
    empty_store()
    assert cache.get("k") is None
    monkeypatch.setattr(conf, "testing", lambda: False)
    with (
        override_settings(GOSCOPE={"URL": "mongomock://elsewhere"}),
        pytest.raises(ConfigurationError, match="no test"),
    ):
        empty_store()
