"""Settings of the demo, all from the environment or from a file ``.env`` (see ``.env.example``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environ

from testproject.secret import kept_secret

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()
if (BASE_DIR / ".env").is_file():
    env.read_env(BASE_DIR / ".env")

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or kept_secret(BASE_DIR / "demo-data" / "secret-key")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "goscope_django",
    "testproject.shop",
]
MIDDLEWARE = [
    "goscope_django.middleware.StoreUnavailableMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "testproject.middleware.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "goscope_django.middleware.CircuitOpenMiddleware",
]
ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"
ASGI_APPLICATION = "testproject.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "testproject.shop.process.server",
            ]
        },
    }
]

DATABASES: dict[str, dict[str, Any]] = {
    "default": env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'demo.sqlite3'}")
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # The import writes while pages read: with a write-ahead log neither waits for the other, and two writers wait for
    # one another at the start of a transaction instead of failing in the middle.
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
    }

# A private mongod in the folder demo-data, unless a server is named.
GOSCOPE: dict[str, Any] = {
    "URL": env.str("GOSCOPE_URL", default="embedded://demo-data"),
    "KEY_PREFIX": env.str("GOSCOPE_KEY_PREFIX", default="shop:"),
    "ON_ERROR": env.str("GOSCOPE_ON_ERROR", default="raise"),
    "FAIL_FAST": env.bool("GOSCOPE_FAIL_FAST", default=False),
    "CONNECT_ON_READY": env.bool("GOSCOPE_CONNECT_ON_READY", default=True),
}
CACHES: dict[str, dict[str, Any]] = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache", "TIMEOUT": 300}}
SESSION_ENGINE = "goscope_django.sessions"

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "admin:login"
X_FRAME_OPTIONS = "DENY"

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {process} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    # Every transition, as it happens: a circuit that opens, a flight or a task that is taken over.
    "loggers": {
        "goscope": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
        # Django shows errors in the terminal only while DEBUG is on.
        "django.request": {"handlers": ["console"], "level": "ERROR", "propagate": False},
    },
}
