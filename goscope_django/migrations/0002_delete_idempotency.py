"""One more permission. Nothing is made but that."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations


class Migration(migrations.Migration):
    """``delete_idempotency``."""

    dependencies: ClassVar = [("goscope", "0001_initial")]
    operations: ClassVar = [
        migrations.AlterModelOptions(
            name="dashboard",
            options={
                "default_permissions": (),
                "managed": False,
                "permissions": [
                    ("view_dashboard", "Can view the dashboard"),
                    ("release_lock", "Can release locks"),
                    ("change_circuit", "Can open, close and reset circuits"),
                    ("delete_checkpoint", "Can cancel, reset and delete tasks and their checkpoints"),
                    ("delete_idempotency", "Can delete idempotency records"),
                    ("clear_cache", "Can clear caches"),
                ],
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
            },
        ),
    ]
