"""``manage.py import_products``: the nightly import. Kill it and run it again: it resumes where it stopped."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from goscope_django.checkpoints import checkpointed
from goscope_django.exceptions import CheckpointError, TaskAlreadyRunning
from testproject.shop.importing import CHUNK, LEASE, ROWS, import_list, task_id


class Command(BaseCommand):
    """Import the supplier's price list as a task that resumes."""

    help = "Imports the supplier's price list; resumes an import that was killed where it stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        """The command's options."""
        parser.add_argument("--rows", type=int, default=ROWS, help="rows of the list (default %(default)s)")
        parser.add_argument("--pause", type=float, default=0.0, help=f"seconds to wait after each {CHUNK} rows")
        parser.add_argument("--restart", action="store_true", help="import again, even if tonight's import is complete")
        parser.add_argument(
            "--wait", action="store_true", help="after a killed import, wait until its lease has ended (a few seconds)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the import to its end. A parameter that changes the list is part of the task's version."""
        deadline = time.monotonic() + 3 * LEASE
        while True:
            try:
                self._import(options)
            except TaskAlreadyRunning as error:
                if not options["wait"] or time.monotonic() >= deadline:
                    raise CommandError(str(error)) from error
                time.sleep(min(max(error.retry_after, 0.1), 1.0))
            except CheckpointError as error:
                raise CommandError(str(error)) from error
            else:
                return

    def _import(self, options: dict[str, Any]) -> None:
        version = f"{options['rows']} rows"
        with checkpointed(task_id(), lease=LEASE, restart=options["restart"], version=version) as task:
            if task.completed:
                self.stdout.write(f"{task.id} is complete; --restart imports again.")
                return
            begun = f"resumes at {task.progress:.0f} %" if task.resumed else "begins"
            self.stdout.write(f"{task.id}: attempt {task.attempt} {begun}")
            import_list(task, options["rows"], options["pause"])
        self.stdout.write(self.style.SUCCESS(f"{task.id}: all {options['rows']} rows are imported."))
