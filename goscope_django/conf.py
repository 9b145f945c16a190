"""Settings: the only reader of ``django.conf.settings``.

Rules of this file: settings are read when they are used, and checked as a whole. A fault names the key, the value
(with its secrets masked) and what is allowed. ``faults`` lists them for the system checks, ``current`` raises the
first one.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from goscope_django.core import arguments
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb.driver import urls

OnError = Literal["raise", "ignore"]
DEFAULTS: Final[Mapping[str, Any]] = {
    "URL": "mongodb://127.0.0.1:27017/goscope",
    "KEY_PREFIX": "",
    "CLIENT_OPTIONS": {},
    "DEFAULT_LOCK_TIMEOUT": 30,
    "LOCK_BACKEND": "goscope_django.locks.MongoDBLockBackend",
    "CONNECT_ON_READY": True,
    "FAIL_FAST": False,
    "ON_ERROR": "raise",
    "TEST": {"URL": "mongomock://"},
    "DESCRIBE_HOLDERS": True,
}
TEST_KEYS: Final = ("URL", "KEY_PREFIX")


class BadSettings(ConfigurationError, ImproperlyConfigured):
    """``settings.GOSCOPE`` or a cache's options can't be used."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one key."""

    key: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """``GOSCOPE`` as it holds now. ``default_lock_timeout`` is in seconds."""

    url: str
    key_prefix: str
    client_options: Mapping[str, Any]
    default_lock_timeout: float
    lock_backend: str
    connect_on_ready: bool
    fail_fast: bool
    on_error: OnError
    testing: bool
    describe_holders: bool = True

    def __repr__(self) -> str:
        return f"<GOSCOPE settings for {urls.masked(self.url)}>"


def testing() -> bool:
    """Whether this process runs tests: Django's test runner or pytest-django, before and after it sets itself up."""
    mail = sys.modules.get("django.core.mail")
    if mail is not None and hasattr(mail, "outbox"):
        return True
    if sys.argv[1:2] == ["test"] and sys.argv[0].endswith(("manage.py", "django-admin", "django/__main__.py")):
        return True
    return "pytest_django.plugin" in sys.modules and "_pytest.main" in sys.modules


def base_dir() -> Path | None:
    """``BASE_DIR``, where relative folders begin."""
    base = getattr(settings, "BASE_DIR", None)
    return Path(base) if base else None


def session_cookie_name() -> str:
    """The name of Django's session cookie."""
    return str(settings.SESSION_COOKIE_NAME)


def suggestion(name: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A hint for a misspelt key."""
    near = difflib.get_close_matches(str(name).upper(), list(allowed), n=1)
    return f"{f'Did you mean {near[0]!r}? ' if near else ''}Allowed are {', '.join(allowed)}."


def not_a_dict(value: object, what: str, needed: str = "a dict") -> str:
    """What is wrong with ``value``, which is no dict. It may hold a password: of a container only the type is named."""
    if isinstance(value, str):
        what = f"{what}={urls.masked(value)!r}"
    elif value is None or isinstance(value, int | float):
        what = f"{what}={value!r:.80}"
    return f"{what}: {needed} is needed, not {type(value).__name__}"


def _url(value: object, what: str) -> None:
    urls.parse(value, what, base=base_dir())


def _is(kind: type, allowed: str) -> Callable[[object, str], None]:
    def check(value: object, what: str) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{what}={value!r:.80}: {allowed} is needed, not {type(value).__name__}")

    return check


def _prefix(value: object, what: str) -> None:
    arguments.key(value, what)


def _options(value: object, what: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(not_a_dict(value, what, "a dict of keyword arguments for MongoClient"))
    for name in value:
        if not isinstance(name, str):
            raise ConfigurationError(f"{what}: its keys are names (str), and {name!r:.80} is none")


def _timeout(value: object, what: str) -> None:
    arguments.duration_seconds(value, what)


def on_error(value: object, what: str) -> None:
    """Raise unless ``value`` is ``"raise"`` or ``"ignore"``."""
    if value not in ("raise", "ignore"):
        raise ConfigurationError(f"{what}={value!r:.80}: 'raise' or 'ignore' is allowed")


def _test(value: object, what: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(not_a_dict(value, what))
    for name in value:
        if name not in TEST_KEYS:
            raise ConfigurationError(f"{what}[{name!r}] is unknown. {suggestion(name, TEST_KEYS)}")
    _url(value.get("URL", "mongomock://"), f"{what}['URL']")
    _prefix(value.get("KEY_PREFIX", ""), f"{what}['KEY_PREFIX']")


def _dotted(value: object, what: str) -> None:
    if not isinstance(value, str) or "." not in value:
        raise ConfigurationError(f"{what}={value!r:.80}: the dotted path of a class (str) is needed")


_CHECKS: Final[Mapping[str, Callable[[object, str], None]]] = {
    "URL": _url,
    "KEY_PREFIX": _prefix,
    "CLIENT_OPTIONS": _options,
    "DEFAULT_LOCK_TIMEOUT": _timeout,
    "LOCK_BACKEND": _dotted,
    "CONNECT_ON_READY": _is(bool, "True or False"),
    "FAIL_FAST": _is(bool, "True or False"),
    "ON_ERROR": on_error,
    "TEST": _test,
    "DESCRIBE_HOLDERS": _is(bool, "True or False"),
}


def faults(given: object = None) -> list[Fault]:
    """Everything that is wrong with ``GOSCOPE``; empty if it can be used. Opens nothing."""
    given = getattr(settings, "GOSCOPE", {}) if given is None else given
    if not isinstance(given, Mapping):
        return [Fault("GOSCOPE", not_a_dict(given, "GOSCOPE"))]
    found = [
        Fault(str(name), f"GOSCOPE[{name!r}] is unknown.", suggestion(name, DEFAULTS))
        for name in given
        if name not in DEFAULTS
    ]
    for name, check in _CHECKS.items():
        try:
            check(given.get(name, DEFAULTS[name]), f"GOSCOPE[{name!r}]")
        except GoscopeError as error:
            found.append(Fault(name, str(error)))
    return found


_cached: tuple[object, bool, Settings] | None = None
test_prefix = ""
"""Put in front of ``KEY_PREFIX`` in tests; see ``goscope_django.testing.plugin``."""


BACKEND: Final = "goscope_django.cache.MongoDBCache"


def our_caches() -> dict[str, Mapping[str, Any]]:
    """The entries of ``CACHES`` whose backend is ours or a subclass, by alias. Opens nothing."""
    caches = getattr(settings, "CACHES", {})
    return {
        alias: entry
        for alias, entry in (caches.items() if isinstance(caches, Mapping) else ())
        if isinstance(entry, Mapping) and _is_ours(entry.get("BACKEND"))
    }


def _is_ours(backend: object) -> bool:
    if backend == BACKEND:
        return True
    try:
        found = import_string(str(backend))
    except Exception:  # noqa: BLE001  somebody else's backend, which raises when it is used
        return False
    return isinstance(found, type) and issubclass(found, import_string(BACKEND))


def store_urls() -> list[tuple[str, str]]:
    """The name and the URL of every setting that names a store: ``GOSCOPE``'s, and those of caches with their own."""
    found = [("GOSCOPE['URL']", current().url)]
    for alias, entry in our_caches().items():
        location = entry.get("LOCATION", "")
        if isinstance(location, str) and location and location not in {url for _, url in found}:
            found.append((f"CACHES[{alias!r}]['LOCATION']", location))
    return found


def reset(**_: object) -> None:
    """Forget what was read."""
    global _cached
    _cached = None


def current() -> Settings:
    """The settings in force now. Raises ``BadSettings`` (an ``ImproperlyConfigured``) for the first fault."""
    global _cached
    given = getattr(settings, "GOSCOPE", {})
    tests = testing()
    if _cached is not None and _cached[0] == given and _cached[1] == tests:
        return _cached[2]
    for fault in faults(given):
        raise BadSettings(" ".join(filter(None, (fault.message, fault.hint))))
    merged = {**DEFAULTS, **given}
    test = {**DEFAULTS["TEST"], **merged["TEST"]}
    found = Settings(
        url=test["URL"] if tests else merged["URL"],
        key_prefix=(test_prefix + test.get("KEY_PREFIX", merged["KEY_PREFIX"])) if tests else merged["KEY_PREFIX"],
        client_options=dict(merged["CLIENT_OPTIONS"]),
        default_lock_timeout=arguments.duration_seconds(merged["DEFAULT_LOCK_TIMEOUT"], "DEFAULT_LOCK_TIMEOUT"),
        lock_backend=merged["LOCK_BACKEND"],
        connect_on_ready=merged["CONNECT_ON_READY"],
        fail_fast=merged["FAIL_FAST"],
        on_error=merged["ON_ERROR"],
        testing=tests,
        describe_holders=merged["DESCRIBE_HOLDERS"],
    )
    _cached = (_snapshot(given), tests, found)
    return found


def _snapshot(value: Any) -> Any:
    """A copy of the containers, so that a change in place is noticed. What they hold (say, listeners) is not copied."""
    if isinstance(value, dict):
        return {name: _snapshot(one) for name, one in value.items()}
    return [_snapshot(one) for one in value] if isinstance(value, list) else value
