"""The Django app."""

from __future__ import annotations

import sys

from django.apps import AppConfig
from django.core.signals import setting_changed

from goscope_django import runtime


def _settings_changed(*, setting: str, **_: object) -> None:
    if setting in ("GOSCOPE", "CACHES", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        runtime.reset()


class GoscopeConfig(AppConfig):
    """``INSTALLED_APPS = [..., "goscope_django"]``."""

    name = "goscope_django"
    label = "goscope"
    verbose_name = "Coordination"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect, make missing indexes and let go again (within 2 seconds), and register the system checks.

        Raises only with ``FAIL_FAST``.
        """
        from goscope_django import checks, figures  # noqa: F401 - figures count what happens from here on

        checks.register()
        setting_changed.connect(_settings_changed, dispatch_uid="goscope.settings")
        # An operator's command looks for itself: it says what is missing or away, and mends nothing unasked.
        if not "".join(sys.argv[1:2]).startswith("goscope_"):
            runtime.prepare()
