"""Settings: the only reader of ``django.conf.settings``.

Rules of this file:

* Settings are read when they are used, and checked as a whole. A fault names the key, the value (with its secrets
  masked) and what is allowed. ``faults`` lists them for the system checks, ``current`` raises the first one.
* ``TEST`` holds only while a test environment of Django runs. What a process merely has imported, its environment
  variables and its arguments never decide where something is stored.
* Outside of a test environment what was read first holds until ``setting_changed``: the store can't change under a
  running process.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string

from goscope_django.core import arguments
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb.driver import urls

logger = logging.getLogger("goscope")
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
    "CREDENTIAL_HEADERS": [],
    "DESCRIBE_HOLDERS": True,
    "FIGURES_PER_NAME": 0,
    "RECORD_FAILURES": True,
}
MOST_NAMES: Final = 100
"""The most that ``FIGURES_PER_NAME`` may be: what is kept of names is a document an hour, and labels in Prometheus."""

TEST_KEYS: Final = ("URL", "KEY_PREFIX")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHANGING: Final = re.compile(r"signature|timestamp|nonce|csrf|xsrf|idempotency|request-?id", re.IGNORECASE)


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
    record_failures: bool = True
    credential_headers: tuple[str, ...] = ()
    figures_per_name: int = 0

    @property
    def chosen_by(self) -> str:
        """What names the store that is in force."""
        return "GOSCOPE['TEST']['URL'], under test" if self.testing else "GOSCOPE['URL']"

    def __repr__(self) -> str:
        return f"<GOSCOPE settings for {urls.masked(self.url)}>"


def testing() -> bool:
    """Whether a test environment of Django runs: between ``setup_test_environment`` and ``teardown_test_environment``.

    Django's test runner and pytest-django set it up. Nothing else counts: e-mails of the ``locmem`` backend leave an
    outbox in production too, and a test module may be imported anywhere. A forked child has its parent's environment.
    """
    utils = sys.modules.get("django.test.utils")  # who has not imported it has set up nothing
    # Django has no public flag. This is what ``setup_test_environment`` itself looks at to refuse a second call.
    return hasattr(getattr(utils, "_TestState", None), "saved_data")


def starts_tests() -> bool:
    """Whether this process was started to run tests, by ``manage.py test`` or pytest. Says nothing about the store.

    Such a process does not connect at its start, since its test environment is not set up yet.
    """
    if getattr(sys.modules.get("goscope_django.testing.plugin"), "started", False):
        return True
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.name == "__main__.py" else program.name.removesuffix(".exe")
    if name in ("pytest", "py.test"):
        return True
    return sys.argv[1:2] == ["test"] and name in ("manage.py", "django-admin", "django-admin.py", "django")


def worker_prefix() -> str:
    """What stands in front of the ``KEY_PREFIX`` of a worker of parallel tests, so that workers don't share data."""
    if test_prefix is not None:
        return test_prefix
    worker = getattr(sys.modules.get("django.test.runner"), "_worker_id", 0)
    return f"worker{worker}:" if worker else ""


def base_dir() -> Path | None:
    """``BASE_DIR``, where relative folders begin."""
    base = getattr(settings, "BASE_DIR", None)
    return Path(base) if base else None


def default_charset() -> str:
    """Django's ``DEFAULT_CHARSET``, by which a query is read unless somebody says otherwise."""
    return str(settings.DEFAULT_CHARSET)


def session_cookie_name() -> str:
    """The name of Django's session cookie."""
    return str(settings.SESSION_COOKIE_NAME)


def session_engine() -> str:
    """The module of ``SESSION_ENGINE``."""
    return str(settings.SESSION_ENGINE)


def page_seconds() -> Any:
    """For how long Django's ``cache_page`` keeps a page where nothing else says it."""
    return settings.CACHE_MIDDLEWARE_SECONDS


def session_cache_alias() -> str:
    """The alias of the cache that holds sessions."""
    return str(settings.SESSION_CACHE_ALIAS)


def secret() -> str | bytes:
    """``SECRET_KEY``. Raises ``ImproperlyConfigured`` if there is none."""
    found: str | bytes = settings.SECRET_KEY
    return found


def former_secrets() -> list[str | bytes]:
    """``SECRET_KEY_FALLBACKS``, those that say something: by an empty one anybody could sign."""
    return [one for one in settings.SECRET_KEY_FALLBACKS if one]


def middleware() -> list[str]:
    """The dotted names in ``MIDDLEWARE``."""
    return [str(one) for one in settings.MIDDLEWARE]


def every_setting() -> dict[str, Any]:
    """All settings of the project and of Django, as they are: with their passwords."""
    return {name: getattr(settings, name) for name in dir(settings) if name.isupper()}


def reporter_filter() -> str:
    """The dotted name of what hides secrets from pages and mails about errors."""
    return str(settings.DEFAULT_EXCEPTION_REPORTER_FILTER)


def secret_key() -> str | bytes:
    """``SECRET_KEY``, by which hashes of what callers sent are keyed."""
    found: str | bytes = settings.SECRET_KEY
    return found


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
    target(value, what)


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


def _headers(value: object, what: str) -> None:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ConfigurationError(f"{what}: a list of header names is needed, not {type(value).__name__}")
    for name in value:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"{what}: {name!r:.80} is no name of a header, such as 'X-Shop-Key'")
        if _CHANGING.search(name):
            raise ConfigurationError(
                f"{what}: {name!r:.80} is not allowed. Signatures, timestamps, nonces and CSRF tokens change with each "
                f"request, so they do not say who asks"
            )


def _names_counted(value: object, what: str) -> None:
    if arguments.count(value, what, least=0) > MOST_NAMES:
        raise ConfigurationError(f"{what}={value!r:.80}: at most {MOST_NAMES}")


def _dotted(value: object, what: str) -> None:
    if not isinstance(value, str) or "." not in value:
        raise ConfigurationError(f"{what}={value!r:.80}: the dotted path of a class (str) is needed")


ENGINE: Final = "django_mongodb_backend"
"""The engine of an entry of ``DATABASES`` that a ``django://`` URL may name. Subclasses of its wrapper may be, too."""

_targets: dict[str, urls.Target] = {}
_names: dict[str, str] = {}


def remember_databases() -> None:
    """Note the names in ``DATABASES`` as they are at start-up, to tell later which ones a test run has replaced."""
    for alias, entry in connections.settings.items():
        _names.setdefault(alias, str(entry.get("NAME") or urls.path_of(str(entry.get("HOST") or ""))))


def target(url: object, what: str = "URL") -> urls.Target:
    """What ``url`` names. Opens nothing. Raises ``ConfigurationError``, naming ``what``.

    ``django://`` names the deployment of an entry of ``DATABASES``; under test, always that entry's test database.
    Outside of tests the first answer holds until ``reset``.
    """
    url = urls.Hidden(url) if isinstance(url, str) else url
    found = _tried_target(url, what)
    if isinstance(found, ConfigurationError):
        raise found
    return found


def _tried_target(url: object, what: str) -> urls.Target | ConfigurationError:
    try:
        return _target(url, what)
    except ConfigurationError as error:
        return urls.bare(error)  # an entry of DATABASES has a password, too


def _target(url: object, what: str) -> urls.Target:
    if not urls.is_django(url):
        return urls.parse(url, what, base=base_dir())
    tests = testing()
    if not tests and url in _targets:
        return _targets[url]
    alias, database = urls.django_names(url, what)
    connection = _mongodb_entry(alias, url, what)
    if tests:
        database = _test_database(connection)
    database = database or str(connection.settings_dict["NAME"])
    try:
        given = connection.get_connection_params()
    except (TypeError, ValueError):
        raise ConfigurationError(f"{what}={url!r}: PORT of DATABASES[{alias!r}] is not a number") from None
    found = urls.entry_target(what, f"django://{alias}/{database}", given, database)
    if not tests:
        _targets[url] = found
    return found


def _mongodb_entry(alias: str, url: str, what: str) -> Any:
    """The connection object of the entry ``alias``. It is not connected here."""
    entries = connections.settings
    engine = entries[alias].get("ENGINE") if alias in entries else None
    try:
        if alias in entries and _is_mongodb(engine):
            return connections[alias]
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"{what}={url!r}: DATABASES[{alias!r}] can't be used: {str(error)[:300]}") from None
    fit = [repr(name) for name, entry in entries.items() if _is_mongodb(entry.get("ENGINE"))]
    allowed = f"an entry with the engine {ENGINE!r} is allowed: {', '.join(fit) or 'there is none'}"
    if alias not in entries:
        raise ConfigurationError(f"{what}={url!r}: DATABASES has no entry {alias!r}; {allowed}")
    missing = "" if find_spec(ENGINE) else f" (the package {ENGINE} is not installed)"
    raise ConfigurationError(f"{what}={url!r}: the engine of DATABASES[{alias!r}] is {engine!r}; {allowed}{missing}")


def _is_mongodb(engine: object) -> bool:
    try:
        ours: Any = import_string(f"{ENGINE}.base.DatabaseWrapper")
        found: Any = import_string(f"{engine}.base.DatabaseWrapper")
    except Exception:  # noqa: BLE001  not installed, or an engine that can't be imported: Django says why when it is used
        return False
    return isinstance(found, type) and issubclass(found, ours)


def _test_database(connection: Any) -> str:
    """The name of the test database, also before it was made."""
    name = str(connection.settings_dict["NAME"])
    known = _names.get(connection.alias)
    if name != known and (known is not None or name.startswith("test_")):
        return name  # Django has put the test database's name there
    return str(connection.creation._get_test_db_name())


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
    "CREDENTIAL_HEADERS": _headers,
    "DESCRIBE_HOLDERS": _is(bool, "True or False"),
    "FIGURES_PER_NAME": _names_counted,
    "RECORD_FAILURES": _is(bool, "True or False"),
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
        value = given.get(name, DEFAULTS[name])
        several = name in ("TEST", "CLIENT_OPTIONS") and isinstance(value, Mapping)
        for one in [{key: value[key]} for key in value] if several else [value]:
            try:
                check(one, f"GOSCOPE[{name!r}]")
            except GoscopeError as error:
                found.append(Fault(name, str(error)))
    return found


def sound() -> dict[str, Any]:
    """What ``GOSCOPE`` says, or leaves to the defaults, without the keys that have a fault. Opens nothing."""
    given = getattr(settings, "GOSCOPE", {})
    given = given if isinstance(given, Mapping) else {}
    wrong = {fault.key for fault in faults()}
    return {name: given.get(name, default) for name, default in DEFAULTS.items() if name not in wrong}


_outside: Settings | None = None
_under_test: tuple[object, str, Settings] | None = None
_told: set[tuple[str, str]] = set()
test_prefix: str | None = None
"""The worker's prefix, where ``goscope_django.testing.plugin`` has set one. ``None``: Django's runner knows."""


BACKEND: Final = "goscope_django.cache.MongoDBCache"


def our_caches() -> dict[str, Mapping[str, Any]]:
    """The entries of ``CACHES`` whose backend is ours or a subclass, by alias. Opens nothing."""
    caches = getattr(settings, "CACHES", {})
    return {
        alias: _hiding_location(entry)
        for alias, entry in (caches.items() if isinstance(caches, Mapping) else ())
        if isinstance(entry, Mapping) and _is_ours(entry.get("BACKEND"))
    }


def _hiding_location(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    location = entry.get("LOCATION")
    return {**entry, "LOCATION": urls.Hidden(location)} if isinstance(location, str) else entry


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
    global _outside, _under_test
    _outside = _under_test = None
    _targets.clear()


def current() -> Settings:
    """The settings in force now. Raises ``BadSettings`` (an ``ImproperlyConfigured``) for the first fault.

    Under test they are looked at each time. Outside of a test environment what was read first holds until ``reset``.
    """
    global _outside, _under_test
    if not testing():
        found = _outside
        if found is None:
            read = _read(getattr(settings, "GOSCOPE", {}), None)
            if isinstance(read, BadSettings):
                raise read
            found = _outside = _told_of(read)
        return found
    given, prefix, known = getattr(settings, "GOSCOPE", {}), worker_prefix(), _under_test
    if known is not None and known[0] == given and known[1] == prefix:
        return known[2]
    read = _read(given, prefix)
    if isinstance(read, BadSettings):
        del given, known
        raise read
    found = _told_of(read)
    _under_test = (_snapshot(given), prefix, found)
    return found


def _read(given: Any, prefix: str | None) -> Settings | BadSettings:
    """``given`` as settings; under test, ``prefix`` is the worker's. An error is returned, since what is given may hold
    a password, and pages about an error show the variables of functions that raised."""
    for fault in faults(given):
        return BadSettings(" ".join(filter(None, (fault.message, fault.hint))))
    merged = {**DEFAULTS, **given}
    test = {"KEY_PREFIX": merged["KEY_PREFIX"], **DEFAULTS["TEST"], **merged["TEST"]}
    return Settings(
        url=urls.Hidden(merged["URL"] if prefix is None else test["URL"]),
        key_prefix=merged["KEY_PREFIX"] if prefix is None else prefix + test["KEY_PREFIX"],
        client_options=urls.Options(merged["CLIENT_OPTIONS"]),
        default_lock_timeout=arguments.duration_seconds(merged["DEFAULT_LOCK_TIMEOUT"], "DEFAULT_LOCK_TIMEOUT"),
        lock_backend=merged["LOCK_BACKEND"],
        connect_on_ready=merged["CONNECT_ON_READY"],
        fail_fast=merged["FAIL_FAST"],
        on_error=merged["ON_ERROR"],
        testing=prefix is not None,
        credential_headers=tuple(sorted(name.upper().replace("-", "_") for name in merged["CREDENTIAL_HEADERS"])),
        describe_holders=merged["DESCRIBE_HOLDERS"],
        figures_per_name=merged["FIGURES_PER_NAME"],
        record_failures=merged["RECORD_FAILURES"],
    )


def _told_of(found: Settings) -> Settings:
    """``found``, after the log has told of its store, once in each process."""
    said = (urls.masked(found.url), found.chosen_by)
    if said not in _told:
        _told.add(said)
        logger.info("the store is %s (%s)", *said)
    return found


def _snapshot(value: Any) -> Any:
    """A copy of the containers, so that a change in place is noticed. What they hold (say, listeners) is not copied."""
    if isinstance(value, dict):
        return {name: _snapshot(one) for name, one in value.items()}
    return [_snapshot(one) for one in value] if isinstance(value, list) else value
