"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """``INSTALLED_APPS = [..., "testproject.shop"]``."""

    name = "testproject.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let operators run a stalled task again from the dashboard."""
        from goscope_django.checkpoints import register_dispatcher
        from testproject.shop.trouble import dispatch

        register_dispatcher(dispatch)
