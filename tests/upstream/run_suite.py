"""Run Django's own tests of caches and sessions against our backend. A program: ``run_suite.py FOLDER URL``.

``FOLDER`` holds ``cache/`` and ``sessions_tests/`` of Django's ``tests`` from its source distribution. The classes for
backends with a server run unchanged, with the backend's name in place of Django's in-memory one; where something is
overridden, the reason stands beside it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
import unittest
from collections.abc import Mapping
from typing import Any

FOLDER, URL = sys.argv[1:3]
sys.path.insert(0, FOLDER)

import django  # noqa: E402
from django.conf import settings  # noqa: E402

OURS = "goscope_django.cache.MongoDBCache"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"

settings.configure(
    SECRET_KEY="upstream",
    GOSCOPE={"URL": URL, "TEST": {"URL": URL}},
    CACHES={"default": {"BACKEND": OURS}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["goscope_django", "cache", "django.contrib.sessions", "sessions_tests"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    USE_TZ=False,
    LANGUAGE_CODE="en",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
django.setup()

from cache import tests as upstream  # type: ignore[import-not-found]  # noqa: E402  Django's own
from django.core.cache import cache, caches  # noqa: E402
from django.test import SimpleTestCase, TestCase, override_settings  # noqa: E402
from django.test.runner import DiscoverRunner  # noqa: E402
from sessions_tests import tests as sessions  # type: ignore[import-not-found]  # noqa: E402  Django's own

from goscope_django.decorators import cached_page  # noqa: E402
from goscope_django.sessions import SessionStore  # noqa: E402

ENTRY = {"BACKEND": OURS, "TIMEOUT": 300}


@override_settings(CACHES=upstream.caches_setting_for_tests(base=ENTRY))
class BackendTests(upstream.BaseCacheTests, TestCase):  # type: ignore[misc]
    """What every cache backend has to do."""

    incr_decr_type_error = ValueError  # as for the other backends whose server adds

    def setUp(self) -> None:
        super().setUp()
        self.factory = upstream.RequestFactory()

    def tearDown(self) -> None:
        for alias in ("default", "prefix", "v2", "custom_key", "custom_key2", "cull", "zero_cull"):
            upstream.caches[alias].clear()


def renamed(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A ``CACHES`` of Django's, with our backend for its in-memory one and nothing else changed.

    What that one has for a ``LOCATION`` is a mere name; ours would take it for a URL. Two of them are apart by it, so
    it becomes the prefix.
    """
    found = {}
    for alias, entry in entries.items():
        found[alias] = dict(entry)
        if entry["BACKEND"] == LOCMEM:
            location = found[alias].pop("LOCATION", None)
            found[alias]["BACKEND"] = OURS
            if location:
                found[alias]["KEY_PREFIX"] = location
    return found


def on_our_backend(case: type) -> type:
    """A test class of Django that sets its own CACHES; here it gets ours."""
    theirs = getattr(case, "_overridden_settings", None) or {}

    class Ours(case):  # type: ignore[misc]
        def setUp(self) -> None:
            cache.clear()
            super().setUp()

    Ours.__name__ = Ours.__qualname__ = f"{case.__name__}OnMongoDB"
    Ours.__module__ = __name__
    given = renamed(theirs.get("CACHES", {"default": ENTRY}))
    overridden: Any = override_settings(CACHES=given)(Ours)
    return overridden  # type: ignore[no-any-return]


def sessions_on_our_backend(case: type) -> type:
    """A test class of Django's sessions on caches; a test that sets CACHES for itself gets ours there."""
    ours = on_our_backend(case)
    if case.__name__ == "CacheSessionTests":
        entries = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}, "sessions": ENTRY}
        body = inspect.unwrap(case.test_non_default_cache)  # type: ignore[attr-defined]
        overridden = override_settings(CACHES=entries, SESSION_CACHE_ALIAS="sessions")
        ours.test_non_default_cache = overridden(body)  # type: ignore[attr-defined]
    return ours


class OurSessionTests(sessions.SessionTestsMixin, SimpleTestCase):  # type: ignore[misc]
    """What every session engine has to do, of our engine."""

    backend = SessionStore


def twins(sync: Any) -> tuple[asyncio.AbstractEventLoop, Any]:
    """``sync``, a cache, by its asynchronous methods alone: Django has no such tests for backends with a server."""
    loop = asyncio.new_event_loop()

    class Twin:
        def __getattr__(self, name: str) -> Any:
            method = getattr(sync, f"a{name}", None)
            if method is None:
                return getattr(sync, name)
            return lambda *args, **kwargs: loop.run_until_complete(method(*args, **kwargs))

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(sync, name, value)

        def __contains__(self, key: Any) -> bool:
            return bool(loop.run_until_complete(sync.ahas_key(key)))

    return loop, Twin()


class AsyncBackendTests(BackendTests):
    """The same, asynchronously: the tests' own ``cache`` and ``caches`` are replaced."""

    # They store a queryset that is not evaluated: pickling it asks the SQL database, which Django refuses in a task.
    test_cache_read_for_model_instance_with_deferred = None
    test_cache_write_for_model_instance_with_deferred = None

    def setUp(self) -> None:
        super().setUp()
        made: dict[str, tuple[asyncio.AbstractEventLoop, Any]] = {}

        class Twins:
            def __getitem__(self, alias: str) -> Any:
                if alias not in made:
                    made[alias] = twins(caches[alias])
                return made[alias][1]

        self.before = (upstream.cache, upstream.caches)
        upstream.caches = Twins()
        upstream.cache = upstream.caches["default"]
        self.made = made

    def tearDown(self) -> None:
        from goscope_django.runtime import connection

        upstream.cache, upstream.caches = self.before
        for loop, _ in self.made.values():
            loop.run_until_complete(connection().aclose())
            loop.close()
        super().tearDown()


class CachedPageTests(on_our_backend(upstream.CacheMiddlewareTest)):  # type: ignore[misc]
    """The tests of ``cache_page``, of ours."""

    def setUp(self) -> None:
        super().setUp()
        self.theirs, upstream.cache_page = upstream.cache_page, cached_page

    def tearDown(self) -> None:
        upstream.cache_page = self.theirs
        super().tearDown()


def of_pages(case: type) -> type:
    """A test class with only those tests that decorate a view."""
    for name in dir(case):
        if name.startswith("test") and "cache_page(" not in inspect.getsource(getattr(case, name)):
            setattr(case, name, None)
    return case


CASES = [
    BackendTests,
    AsyncBackendTests,
    of_pages(CachedPageTests),
    OurSessionTests,
    *(
        on_our_backend(getattr(upstream, name))
        for name in (
            "DefaultNonExpiringCacheKeyTests",
            "CacheUtils",
            "PrefixedCacheUtils",
            "CacheHEADTest",
            "CacheI18nTest",
            "PrefixedCacheI18nTest",
            "CacheMiddlewareTest",
            "TestWithTemplateResponse",
        )
    ),
    *(
        sessions_on_our_backend(getattr(sessions, name))
        for name in ("CacheSessionTests", "CacheDBSessionTests", "CacheDBSessionWithTimeZoneTests")
    ),
]


class Runner(DiscoverRunner):
    def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
        loader = unittest.TestLoader()
        return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in CASES)


if __name__ == "__main__":
    sys.modules["run_suite"] = types.ModuleType("run_suite")
    sys.exit(bool(Runner(verbosity=1, interactive=False).run_tests([])))
