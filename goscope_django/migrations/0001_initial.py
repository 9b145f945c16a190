"""Makes no table: tells Django of the permissions only."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Dashboard",
            fields=[("id", models.CharField(max_length=255, primary_key=True, serialize=False))],
            options={
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
                "permissions": [
                    ("view_dashboard", "Can view the dashboard"),
                    ("release_lock", "Can release locks"),
                    ("change_circuit", "Can open, close and reset circuits"),
                    ("delete_checkpoint", "Can cancel, reset and delete tasks and their checkpoints"),
                    ("clear_cache", "Can clear caches"),
                ],
                "managed": False,
                "default_permissions": (),
            },
        ),
    ]
