"""``manage.py send_newsletter``: a short task for the dashboard. ``--dies`` kills the worker in the middle."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from goscope_django.checkpoints import checkpointed
from goscope_django.exceptions import CheckpointError, TaskAlreadyRunning
from testproject.shop.trouble import LEASE, NEWSLETTER, send_newsletter


class Command(BaseCommand):
    """Send the newsletter as a task that resumes."""

    help = "Sends the demo's newsletter; resumes one whose worker died."

    def add_arguments(self, parser: CommandParser) -> None:
        """The command's options."""
        parser.add_argument("--dies", action="store_true", help="begin anew, and be killed in the middle")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the task to its end, or to the middle."""
        deadline = time.monotonic() + 3 * LEASE
        while True:
            try:
                with checkpointed(NEWSLETTER, lease=LEASE, restart=options["dies"]) as task:
                    if not task.completed:
                        send_newsletter(task, dies=options["dies"])
                return
            except TaskAlreadyRunning as error:
                if time.monotonic() >= deadline:
                    raise CommandError(str(error)) from error
                time.sleep(min(max(error.retry_after, 0.1), 1.0))
            except CheckpointError as error:
                raise CommandError(str(error)) from error
