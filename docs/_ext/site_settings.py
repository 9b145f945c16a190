"""Settings under which the package is imported for its own documentation."""

SECRET_KEY = "only to build the documentation"  # noqa: S105
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "goscope_django"]
GOSCOPE = {"URL": "mongodb://127.0.0.1:27017/docs", "CONNECT_ON_READY": False}
USE_TZ = True
