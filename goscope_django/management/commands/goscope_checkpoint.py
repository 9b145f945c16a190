"""``goscope_checkpoint`` shows tasks, their progress and their checkpoints, and acts on them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import (
    OperatorCommand,
    duration,
    percent,
    positive,
    whole,
)
from goscope_django.operations.wording import escaped, number


class Command(OperatorCommand):
    """``list``, ``show``, ``cleanup``, ``delete``, ``cancel`` and ``reset``."""

    help = "Lists and shows tasks and their checkpoints; removes old checkpoints; cancels, resets and deletes tasks."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List tasks, by id.")
        listing.add_argument(
            "--status", choices=operations.TASK_STATUSES, help="Only those in this status, of those listed."
        )
        self.add_paging(listing, "Tasks", "id", "id or owner")
        add("show", "Show one task and its checkpoints, without what is stored in them.").add_argument("task_id")
        cleanup = add("cleanup", "Remove all but the newest checkpoints of a task.", asks=True)
        cleanup.add_argument("task_id")
        cleanup.add_argument("--keep", type=positive, default=1, help="How many stay (default: 1).")
        delete = add("delete", "Delete a task that nobody runs, with all its checkpoints.", asks=True)
        cancel = add(
            "cancel", "Ask a task to stop at its next save; it does not start again until it is reset.", asks=True
        )
        reset = add("reset", "Let a task that nobody runs be started again.", asks=True)
        reset.add_argument("--discard", action="store_true", help="From the beginning, without its checkpoints.")
        for one in (delete, cancel, reset):
            one.add_argument("task_id")
            one.add_argument("--token", type=whole, help="Only if this is (still) the token of its last run.")

    def act(self, **options: Any) -> None:
        verb = options["verb"]
        if verb == "list":
            self._list(options["limit"], options["after"], options["search"], options["status"])
            return
        task_id = options["task_id"]
        if verb == "show":
            self._show(task_id)
            return
        question = {
            "cleanup": f"Remove all but the newest {options.get('keep')} checkpoints of task {task_id!r}?",
            "delete": f"Delete task {task_id!r} and all its checkpoints?",
            "cancel": f"Cancel task {task_id!r}?",
            "reset": f"Reset task {task_id!r}" + (" and discard its checkpoints?" if options.get("discard") else "?"),
        }[verb]
        self.confirm(question, interactive=options["interactive"])
        if verb == "cleanup":
            done = operations.cleanup_checkpoints(task_id, options["keep"])
        elif verb == "delete":
            done = operations.delete_task(task_id, options["token"])
        elif verb == "cancel":
            done = operations.cancel_task(task_id, options["token"])
        else:
            done = operations.reset_task(task_id, options["token"], options["discard"])
        self.done(done)

    def _list(self, limit: int, after: str | None, search: str, status: str | None) -> None:
        found = operations.list_tasks(limit, after, search)
        items = [one for one in found.items if status in (None, one.status)]
        if self.as_json:
            self.document({"tasks": {**operations.plain(found), "items": operations.plain(items)}})
            return
        if not items:
            self.line("No tasks.")
        else:
            self.table(
                ("TASK", "STATUS", "DONE", "RATE", "LEFT", "ATTEMPT", "HEARTBEAT"),
                [
                    (
                        one.task_id,
                        f"{one.status}, cancelling" if one.cancel_requested and one.status == "running" else one.status,
                        percent(one.progress / 100),
                        "-" if one.rate is None else f"{one.rate:.1f}/s",
                        duration(one.estimated_time_remaining),
                        one.attempt if one.max_attempts is None else f"{one.attempt} of {one.max_attempts}",
                        duration(one.heartbeat_age),
                    )
                    for one in items
                ],
            )
        self.more(found)

    def _show(self, task_id: str) -> None:
        one, saved = operations.get_task(task_id), operations.list_checkpoints(task_id)
        if self.as_json:
            self.document({"task": one, "checkpoints": saved})
            return
        self.line(f"{escaped(one.task_id)}: {one.status}", self.style.MIGRATE_HEADING)
        for name, value in (
            ("progress", percent(one.progress / 100)),
            (
                "items",
                "-" if one.done is None else f"{number(one.done)} of {one.total if one.total is not None else '?'}",
            ),
            ("remaining", duration(one.estimated_time_remaining)),
            ("attempt", f"{one.attempt} of {one.max_attempts or 'any number'}"),
            ("owner", escaped(one.owner or "-")),
            ("token", one.token),
            ("heartbeat", f"{duration(one.heartbeat_age)} ago"),
            ("lease", f"{duration(one.lease_left)} left" if one.lease_left is not None else "-"),
            ("failure", escaped(one.failure or "-")),
        ):
            self.line(f"  {name:<10} {value}")
        if one.status == "stalled":
            self.line("  Its worker is gone. The next start goes on where it stopped.", self.style.WARNING)
        if one.status == "exhausted":
            self.line(
                "  It was tried as often as it may be. `goscope_checkpoint reset` lets it start again.",
                self.style.WARNING,
            )
        if saved:
            self.line()
            self.table(
                ("SEQUENCE", "AT", "DONE"),
                [(s.sequence, f"{s.timestamp:%Y-%m-%d %H:%M:%S}", percent(s.progress / 100)) for s in saved],
            )
