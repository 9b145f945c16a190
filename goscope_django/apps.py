"""The Django app: it connects at start-up and registers the system checks."""

from __future__ import annotations

import sys

from django.apps import AppConfig
from django.core.signals import setting_changed

from goscope_django import conf, runtime


def _settings_changed(*, setting: str, **_: object) -> None:
    if setting in ("GOSCOPE", "CACHES", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASES"):
        runtime.reset()


def _follow_tasks() -> None:
    """Know which task of ``django.tasks`` runs, where Django has them: whoever holds something says so."""
    try:
        from django.tasks import signals
    except ImportError:  # before Django 6.0
        return
    from goscope_django.process import holder

    signals.task_started.connect(holder.task_began, dispatch_uid="goscope.tasks")
    signals.task_finished.connect(holder.task_ended, dispatch_uid="goscope.tasks")


class GoscopeConfig(AppConfig):
    """``INSTALLED_APPS = [..., "goscope_django"]``."""

    name = "goscope_django"
    label = "goscope"
    verbose_name = "Coordination"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks; connect, make missing indexes and disconnect again, within 2 seconds.

        Raises only with ``FAIL_FAST``. A process that was started to run tests does not connect here.
        """
        from goscope_django import checks, figures  # noqa: F401 - figures count what happens from here on

        checks.register()
        conf.remember_databases()
        setting_changed.connect(_settings_changed, dispatch_uid="goscope.settings")
        _follow_tasks()
        # An operator's command connects itself. It reports what is missing, and changes nothing unasked. Tests are not
        # set up yet: here the store would still be the one of GOSCOPE["URL"].
        if not "".join(sys.argv[1:2]).startswith("goscope_") and not conf.starts_tests():
            runtime.prepare()
