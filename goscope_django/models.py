"""The one model. It has no table, only the dashboard's permissions and its entry in the admin's index.

``django.contrib.admin`` need not be installed for it.
"""

from __future__ import annotations

from django.db import models


class Dashboard(models.Model):
    """What the dashboard is to Django's admin. It is never stored, only its permissions and content type are.

    The key is text, since the default database may be MongoDB, which has no automatic integers.
    """

    id = models.CharField(primary_key=True, max_length=255)

    class Meta:
        managed = False
        verbose_name = "dashboard"
        verbose_name_plural = "dashboard"
        default_permissions = ()
        permissions = [
            ("view_dashboard", "Can view the dashboard"),
            ("release_lock", "Can release locks"),
            ("change_circuit", "Can open, close and reset circuits"),
            ("delete_checkpoint", "Can cancel, reset and delete tasks and their checkpoints"),
            ("delete_idempotency", "Can delete idempotency records"),
            ("clear_cache", "Can clear caches"),
        ]

    def __str__(self) -> str:
        return str(self.id)
