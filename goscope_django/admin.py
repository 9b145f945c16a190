"""Loaded by ``django.contrib.admin`` if it is installed: the dashboard's entry on the default site."""

from __future__ import annotations

from django.contrib import admin

from goscope_django import dashboard

dashboard.register(admin.site)
