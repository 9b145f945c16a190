"""Settings that can't be used: a system check names them, ``ready()`` passes over them, first use raises."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.cache import cache, caches
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from goscope_django import conf, runtime
from goscope_django.checks import check_settings
from goscope_django.locks import lock

BACKEND = "goscope_django.cache.MongoDBCache"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"URLS": "x"}, ["GOSCOPE['URLS']", "Did you mean 'URL'?", "Allowed are URL, KEY_PREFIX"]),
        ({"nonsense": 1}, ["GOSCOPE['nonsense']", "Allowed are URL, KEY_PREFIX"]),
        ({"URL": "redis://h/0"}, ["GOSCOPE['URL']", "redis://h/0", "mongodb://"]),
        ({"URL": "mongodb://user:hunter2@h"}, ["GOSCOPE['URL']", "user:***@h", "a database is needed"]),
        ({"URL": None}, ["GOSCOPE['URL']", "None", "(str)"]),
        ({"URL": "mongodb://h/d?maxPoolSize=many"}, ["GOSCOPE['URL']", "must be an integer"]),
        ({"KEY_PREFIX": 5}, ["GOSCOPE['KEY_PREFIX']", "5", "(str)"]),
        ({"KEY_PREFIX": "\ud800"}, ["GOSCOPE['KEY_PREFIX']", "surrogates"]),
        ({"CLIENT_OPTIONS": 5}, ["GOSCOPE['CLIENT_OPTIONS']=5", "dict", "not int"]),
        ({"CLIENT_OPTIONS": "mongodb://u:hunter2@h"}, ["GOSCOPE['CLIENT_OPTIONS']='mongodb://u:***@h'", "dict"]),
        ({"CLIENT_OPTIONS": [("password", "hunter2")]}, ["GOSCOPE['CLIENT_OPTIONS']", "dict", "not list"]),
        ({"CLIENT_OPTIONS": {5: 1}}, ["GOSCOPE['CLIENT_OPTIONS']", "5", "(str)"]),
        ({"DEFAULT_LOCK_TIMEOUT": 0}, ["GOSCOPE['DEFAULT_LOCK_TIMEOUT']", "0", "greater than zero"]),
        ({"DEFAULT_LOCK_TIMEOUT": "30"}, ["GOSCOPE['DEFAULT_LOCK_TIMEOUT']", "'30'", "seconds"]),
        ({"DEFAULT_LOCK_TIMEOUT": True}, ["GOSCOPE['DEFAULT_LOCK_TIMEOUT']", "True"]),
        ({"DEFAULT_LOCK_TIMEOUT": float("nan")}, ["GOSCOPE['DEFAULT_LOCK_TIMEOUT']", "nan", "finite"]),
        ({"DEFAULT_LOCK_TIMEOUT": 10**20}, ["GOSCOPE['DEFAULT_LOCK_TIMEOUT']", "1000 years"]),
        ({"LOCK_BACKEND": 5}, ["GOSCOPE['LOCK_BACKEND']", "dotted path"]),
        ({"LOCK_BACKEND": "Backend"}, ["GOSCOPE['LOCK_BACKEND']", "'Backend'", "dotted path"]),
        ({"CONNECT_ON_READY": "yes"}, ["GOSCOPE['CONNECT_ON_READY']", "'yes'", "True or False"]),
        ({"FAIL_FAST": 1}, ["GOSCOPE['FAIL_FAST']", "True or False"]),
        ({"ON_ERROR": "pass"}, ["GOSCOPE['ON_ERROR']", "'pass'", "'raise' or 'ignore'"]),
        ({"ON_ERROR": []}, ["GOSCOPE['ON_ERROR']", "'raise' or 'ignore'"]),
        ({"TEST": 5}, ["GOSCOPE['TEST']=5", "dict", "not int"]),
        ({"TEST": "mongodb://u:hunter2@h/d"}, ["GOSCOPE['TEST']='mongodb://u:***@h/d'", "dict"]),
        ({"TEST": {"URI": "x"}}, ["GOSCOPE['TEST']['URI']", "'URL'"]),
        ({"TEST": {"URL": "x"}}, ["GOSCOPE['TEST']['URL']", "scheme"]),
        ([], ["GOSCOPE", "dict", "list"]),
        ("mongodb://u:hunter2@h/d", ["GOSCOPE='mongodb://u:***@h/d'", "dict", "not str"]),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, list) or value == [] else "",
)
def test_goscope(given: Any, parts: list[str]) -> None:
    with override_settings(GOSCOPE=given):
        errors = [one for one in run_checks() if one.id == "goscope.E001"]
        assert errors
        text = " ".join(f"{one.msg} {one.hint or ''}" for one in errors)
        for part in parts:
            assert part in text
        assert "hunter2" not in text
        runtime.prepare()  # what ready() calls: it raises nothing
        with pytest.raises(ImproperlyConfigured) as caught:
            cache.get("k")
        assert parts[0] in str(caught.value) and "hunter2" not in str(caught.value)
        with pytest.raises(ImproperlyConfigured):
            runtime.adapter()


def test_several_faults_are_all_named() -> None:
    with override_settings(GOSCOPE={"URL": 1, "FAIL_FAST": 2, "ON_ERROR": 3}):
        text = " ".join(one.msg for one in check_settings())
    for name in ("URL", "FAIL_FAST", "ON_ERROR"):
        assert f"GOSCOPE[{name!r}]" in text


@pytest.mark.parametrize(
    "options",
    [
        {"maxPoolSize": "many"},
        {"nonsense": 1},
        {"username": "u", "password": b"hunter2"},
        {"w": -1},
        {"tlsCAFile": "/nope"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_client_options_that_the_driver_refuses(options: dict[str, Any]) -> None:
    given = {"URL": "mongodb://h/d", "TEST": {"URL": "mongodb://127.0.0.1:9/d"}, "CLIENT_OPTIONS": options}
    with override_settings(GOSCOPE=given):
        errors = check_settings()
        assert [one.id for one in errors] == ["goscope.E001"]
        assert "CLIENT_OPTIONS" in errors[0].msg and "hunter2" not in errors[0].msg
        runtime.prepare()
        with pytest.raises(ImproperlyConfigured, match="CLIENT_OPTIONS") as caught:
            cache.get("k")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"LOCATION": "redis://h/0"}, ["CACHES LOCATION", "redis://h/0", "mongodb://"]),
        ({"LOCATION": "mongodb://u:hunter2@h"}, ["CACHES LOCATION", "a database is needed"]),
        ({"LOCATION": ["mongodb://a/b"]}, ["CACHES LOCATION", "one URL"]),
        ({"TIMEOUT": "soon"}, ["CACHES TIMEOUT", "'soon'", "seconds"]),
        ({"TIMEOUT": True}, ["CACHES TIMEOUT", "True"]),
        ({"TIMEOUT": float("nan")}, ["CACHES TIMEOUT", "nan"]),
        ({"OPTIONS": []} | {"OPTIONS": ["x"]}, ["CACHES OPTIONS", "dict"]),
        ({"OPTIONS": {"MAX_ENTRY": 5}}, ["OPTIONS['MAX_ENTRY']", "'MAX_ENTRIES'"]),
        ({"OPTIONS": {"MAX_ENTRIES": 0}}, ["MAX_ENTRIES", "0", "at least 1"]),
        ({"OPTIONS": {"MAX_ENTRIES": "five"}}, ["MAX_ENTRIES", "'five'"]),
        ({"OPTIONS": {"CULL_FREQUENCY": -1}}, ["CULL_FREQUENCY", "-1", "at least 0"]),
        ({"OPTIONS": {"SERIALIZER": "json"}}, ["SERIALIZER", "'json'", "'auto', 'bson'"]),
        ({"OPTIONS": {"ON_ERROR": "pass"}}, ["ON_ERROR", "'pass'", "'raise' or 'ignore'"]),
        ({"OPTIONS": {"SIGN": "yes"}}, ["OPTIONS['SIGN']", "'yes'", "True or False"]),
        ({"OPTIONS": {"SIGN": 1}}, ["OPTIONS['SIGN']", "1", "True or False"]),
        ({"OPTIONS": {"SIGN": None}}, ["OPTIONS['SIGN']", "None", "True or False"]),
        ({"OPTIONS": {"SIGNED": True}}, ["OPTIONS['SIGNED']", "'SIGN'"]),
        ({"OPTIONS": {"COMPRESS": True}}, ["OPTIONS['COMPRESS']", "True", "{'MIN_BYTES': 8192}"]),
        ({"OPTIONS": {"COMPRESS": "zlib"}}, ["OPTIONS['COMPRESS']", "'zlib'", "{'MIN_BYTES': 8192}"]),
        ({"OPTIONS": {"COMPRESS": 8192}}, ["OPTIONS['COMPRESS']", "8192", "{'MIN_BYTES': 8192}"]),
        ({"OPTIONS": {"COMPRESS": {"LEVEL": 9}}}, ["OPTIONS['COMPRESS']['LEVEL']", "unknown", "MIN_BYTES"]),
        ({"OPTIONS": {"COMPRESS": {5: 9}}}, ["OPTIONS['COMPRESS'][5]", "unknown", "MIN_BYTES"]),
        ({"OPTIONS": {"COMPRESS": {"MIN_BYTES": "8192"}}}, ["['COMPRESS']['MIN_BYTES']", "'8192'", "int"]),
        ({"OPTIONS": {"COMPRESS": {"MIN_BYTES": True}}}, ["['COMPRESS']['MIN_BYTES']", "True", "int"]),
        ({"OPTIONS": {"COMPRESS": {"MIN_BYTES": None}}}, ["['COMPRESS']['MIN_BYTES']", "None", "int"]),
        ({"OPTIONS": {"COMPRESS": {"MIN_BYTES": 0}}}, ["['COMPRESS']['MIN_BYTES']", "0", "at least 1"]),
        ({"OPTIONS": {"COMPRESS": {"MIN_BYTES": 1.5}}}, ["['COMPRESS']['MIN_BYTES']", "1.5", "int"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_caches(entry: dict[str, Any], parts: list[str]) -> None:
    with override_settings(CACHES={"default": {"BACKEND": BACKEND}, "other": {"BACKEND": BACKEND, **entry}}):
        # All checks: Django's own make every cache, and must not stumble.
        (error,) = [one for one in run_checks() if str(one.id).startswith("goscope.")]
        assert error.id == "goscope.E002" and error.obj == "settings.CACHES['other']"
        with pytest.raises(ImproperlyConfigured) as caught:
            caches["other"].get("k")
        for part in parts:
            assert part in error.msg and part in str(caught.value)
        assert "hunter2" not in error.msg + str(caught.value)


@pytest.mark.parametrize("path", ["nowhere.Backend", "goscope_django.locks.Nothing", "os.path.join"])
def test_a_lock_backend_that_is_not_there(path: str) -> None:
    with override_settings(GOSCOPE={"LOCK_BACKEND": path}):
        (error,) = [one for one in run_checks() if str(one.id).startswith("goscope.")]
        assert error.id == "goscope.E001" and f"GOSCOPE['LOCK_BACKEND']={path!r}" in error.msg
        with pytest.raises(ImproperlyConfigured, match="LOCK_BACKEND"), lock("k"):
            pass


def test_settings_that_are_right_have_no_errors() -> None:
    assert check_settings() == []
    with override_settings(GOSCOPE={}):
        assert check_settings() == []
        assert conf.current().url == "mongomock://", "no tests touch the default either"


@pytest.mark.parametrize("key", ["\ud800", "k" * 70_000])
@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
def test_keys_that_can_not_be_stored(key: str) -> None:
    for call in (
        lambda: cache.get(key),
        lambda: cache.set(key, 1),
        lambda: cache.get_many([key]),
        lambda: cache.delete(key),
    ):
        with pytest.raises(ValueError, match="key=") as caught:
            call()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "timeout", [True, "5", b"5", [], float("nan"), float("inf"), float("-inf"), 10**15, -(10**15), ...], ids=repr
)
def test_timeouts_that_are_none(timeout: Any) -> None:
    cache.set("k", "before")
    for call in (
        lambda: cache.set("k", 1, timeout),
        lambda: cache.add("k2", 1, timeout),
        lambda: cache.touch("k", timeout),
        lambda: cache.set_many({"k": 1}, timeout),
        lambda: cache.get_or_set("k3", 1, timeout),
    ):
        with pytest.raises((TypeError, ValueError), match="timeout="):
            call()
    assert cache.get("k") == "before"


@pytest.mark.parametrize("pattern", [None, 5, b"a*", "[z-a]"], ids=repr)
def test_patterns_that_are_none(pattern: Any) -> None:
    ours: Any = cache
    for call in (
        lambda: ours.keys(pattern),
        lambda: list(ours.iter_keys(pattern)),
        lambda: ours.delete_pattern(pattern),
    ):
        with pytest.raises((TypeError, ValueError), match="pattern="):
            call()


def test_every_fault_is_named_not_the_first_of_its_kind() -> None:
    given = {
        "ON_ERROR": "pass",
        "LOCK_BACKEND": "no.such.Backend",
        "CLIENT_OPTIONS": {5: 1, None: 2},
        "TEST": {"URL": "redis://h/0", "KEY_PREFIX": 5, "URI": "x"},
    }
    entry = {
        "BACKEND": BACKEND,
        "LOCATION": "redis://cache/0",
        "TIMEOUT": True,
        "OPTIONS": {"MAX_ENTRIES": -1, "SERIALIZER": "yaml", "ON_ERROR": "pass", "nonsense": 1},
    }
    with override_settings(GOSCOPE=given, CACHES={"default": entry, "other": {**entry, "OPTIONS": 5}}):
        found = check_settings()
    texts = [f"{one.id} {one.obj} {one.msg}" for one in found]
    parts = ["GOSCOPE['ON_ERROR']", "no.such.Backend", "and 5 is none", "and None is none", "redis://h/0"]
    parts += ["GOSCOPE['TEST']['KEY_PREFIX']", "GOSCOPE['TEST']['URI']"]
    for part in parts:
        assert len([text for text in texts if part in text]) == 1, (part, texts)
    for alias, wanted in (
        ("default", ["redis://cache/0", "TIMEOUT", "MAX_ENTRIES", "SERIALIZER", "ON_ERROR", "nonsense"]),
        ("other", ["redis://cache/0", "TIMEOUT", "OPTIONS: a dict"]),
    ):
        mine = [text for text in texts if f"E002 settings.CACHES[{alias!r}]" in text]
        assert len(mine) == len(wanted), mine
        for part in wanted:
            assert [text for text in mine if part in text], part


def test_what_the_driver_refuses_is_named_beside_other_faults() -> None:
    given = {
        "URL": "mongodb://h/d",
        "TEST": {"URL": "mongodb://127.0.0.1:9/d"},
        "CLIENT_OPTIONS": {"maxPoolSize": "many"},
        "ON_ERROR": "pass",
    }
    with override_settings(GOSCOPE=given, CACHES={"default": {"BACKEND": BACKEND, "TIMEOUT": True}}):
        text = " ".join(one.msg for one in check_settings())
    assert "maxPoolSize" in text and "ON_ERROR" in text and "TIMEOUT" in text
