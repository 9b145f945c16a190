"""The shop and Django's admin, with the dashboard of goscope_django in it."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("testproject.shop.urls"))]
