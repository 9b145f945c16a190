"""URLs of the test suite; tests bring views of their own with ``override_settings(ROOT_URLCONF=...)``."""

from __future__ import annotations

from django.contrib import admin
from django.urls import URLPattern, URLResolver, path

urlpatterns: list[URLPattern | URLResolver] = [path("admin/", admin.site.urls)]
