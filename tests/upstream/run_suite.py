"""Run Django's own cache tests against our backend. A program: ``run_suite.py FOLDER URL``.

``FOLDER`` holds ``cache/``, Django's ``tests/cache`` from its source distribution. The classes for backends with
a server run unchanged; where something is overridden, the reason stands beside it.
"""

from __future__ import annotations

import sys
import types
import unittest
from typing import Any

FOLDER, URL = sys.argv[1:3]
sys.path.insert(0, FOLDER)

import django  # noqa: E402
from django.conf import settings  # noqa: E402

settings.configure(
    SECRET_KEY="upstream",
    GOSCOPE={"URL": URL, "TEST": {"URL": URL}},
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["goscope_django", "cache"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    USE_TZ=False,
    LANGUAGE_CODE="en",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
django.setup()

from cache import tests as upstream  # type: ignore[import-not-found]  # noqa: E402  Django's own
from django.core.cache import cache  # noqa: E402
from django.test import TestCase, override_settings  # noqa: E402
from django.test.runner import DiscoverRunner  # noqa: E402

ENTRY = {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": "", "TIMEOUT": 300}
MIDDLEWARE = {
    "default": ENTRY,
    "other": {**ENTRY, "TIMEOUT": 1, "KEY_PREFIX": "other"},
}


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


def on_our_backend(case: type) -> type:
    """A test class of Django that sets its own CACHES; here it gets ours."""

    class Ours(case):  # type: ignore[misc]
        def setUp(self) -> None:
            cache.clear()
            super().setUp()

    Ours.__name__ = Ours.__qualname__ = f"{case.__name__}OnMongoDB"
    Ours.__module__ = __name__
    overridden: Any = override_settings(CACHES=MIDDLEWARE)(Ours)
    return overridden  # type: ignore[no-any-return]


CASES = [BackendTests] + [
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
]


class Runner(DiscoverRunner):
    def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
        loader = unittest.TestLoader()
        return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in CASES)


if __name__ == "__main__":
    sys.modules["run_suite"] = types.ModuleType("run_suite")
    sys.exit(bool(Runner(verbosity=1, interactive=False).run_tests([])))
