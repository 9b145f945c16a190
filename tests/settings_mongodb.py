"""Settings of the tests that run with MongoDB as the project's own database (``make test-mongodb``).

The server of ``DATABASES`` is the test process's own ``mongod``; ``tests/conftest.py`` fills in its address when the
first test needs a database.
"""

from __future__ import annotations

from tests.settings import *  # noqa: F403 - all of them, but for the database and what its keys need
from tests.settings import INSTALLED_APPS as _APPS

DATABASES = {"default": {"ENGINE": "django_mongodb_backend", "HOST": "mongodb://127.0.0.1:1", "NAME": "project"}}
DEFAULT_AUTO_FIELD = "django_mongodb_backend.fields.ObjectIdAutoField"

_CONFIGS = {
    "django.contrib.admin": "tests.support.mongodb_apps.Admin",
    "django.contrib.auth": "tests.support.mongodb_apps.Auth",
    "django.contrib.contenttypes": "tests.support.mongodb_apps.ContentTypes",
}
INSTALLED_APPS = [_CONFIGS.get(name, name) for name in _APPS]
# Django's own migrations make integer keys, which MongoDB has not.
MIGRATION_MODULES = {"admin": None, "auth": None, "contenttypes": None, "sessions": None}
