"""Settings of a small project that has all recipes."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = os.environ.get("SECRET_KEY", "change-me-" + "x" * 50)
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
if "POSTGRES_HOST" in os.environ:
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["POSTGRES_HOST"],
        "NAME": "shop",
        "USER": "shop",
        "PASSWORD": os.environ["POSTGRES_PASSWORD"],
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["goscope_django", "beat", "webhook", "nightly", "supplier", "page", "stock", "outbox", "probes"]
MIDDLEWARE = [
    "goscope_django.middleware.StoreUnavailableMiddleware",
    "goscope_django.middleware.CircuitOpenMiddleware",
]
GOSCOPE = {
    "URL": os.environ.get("GOSCOPE_URL", "mongodb://127.0.0.1:27017/recipes"),
    "TEST": {"URL": os.environ.get("TEST_URL", "mongomock://")},
}
CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}
WEBHOOK_SECRET = os.environ.get("WEBHOOK_SECRET", "shared with the sender")
