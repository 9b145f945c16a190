"""Settings of the fleet's shop: sessions, cache and everything else in MongoDB, users in SQLite, the dashboard."""

from __future__ import annotations

from tests.fleet.site.settings import *  # noqa: F403
from tests.fleet.site.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "django.contrib.admin", "django.contrib.messages", "django.contrib.staticfiles"]
MIDDLEWARE = [
    "goscope_django.middleware.StoreUnavailableMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "goscope_django.middleware.CircuitOpenMiddleware",
]
ROOT_URLCONF = "tests.fleet.site.shop"
SESSION_ENGINE = "goscope_django.sessions"
SESSION_CACHE_ALIAS = "sessions"
STATIC_URL = "static/"
_BACKEND = "goscope_django.cache.MongoDBCache"
CACHES = {
    "default": {"BACKEND": _BACKEND, "KEY_PREFIX": "pages"},
    "lenient": {"BACKEND": _BACKEND, "KEY_PREFIX": "lenient", "OPTIONS": {"ON_ERROR": "ignore"}},
    "sessions": {"BACKEND": _BACKEND, "KEY_PREFIX": "sessions"},
}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
