"""``transaction`` of the project's own database: Django's, or that of ``django_mongodb_backend`` where that is it."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction as _djangos

MONGODB = settings.DATABASES["default"]["ENGINE"] == "django_mongodb_backend"

transaction: Any = _djangos
if MONGODB:
    from django_mongodb_backend import transaction as _backends

    transaction = _backends
