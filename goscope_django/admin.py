"""Puts the dashboard on the default admin site. ``django.contrib.admin`` loads this module if it is installed."""

from __future__ import annotations

from django.contrib import admin

from goscope_django import dashboard

dashboard.register(admin.site)
