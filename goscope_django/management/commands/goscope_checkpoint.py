"""``goscope_checkpoint`` shows tasks, their progress and their checkpoints, and acts on them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import (
    OperatorCommand,
    duration,
    last_heard_of,
    moment,
    percent,
    positive,
    rate,
    time_left,
    whole,
)
from goscope_django.operations import Details
from goscope_django.operations.attention import holder
from goscope_django.operations.values import TaskItem
from goscope_django.operations.wording import escaped, number


class Command(OperatorCommand):
    """``list``, ``show``, ``cleanup``, ``delete``, ``cancel`` and ``reset``."""

    help = "Lists and shows tasks and their checkpoints; removes old checkpoints; cancels, resets and deletes tasks."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List tasks, by id.")
        listing.add_argument("--status", choices=operations.TASK_STATUSES, help="Only those in this status.")
        self.add_paging(listing, "Tasks", "id", "id or owner")
        show = add("show", "Show one task and its checkpoints, without what is stored in them.")
        show.add_argument("task_id")
        self.add_full(show)
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
            self._show(self.one("task", task_id))
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
        found = operations.list_tasks(limit, after, search, status or "")
        if self.as_json:
            self.document({"tasks": found})
            return
        if not found.items:
            self.line("No tasks.")
        else:
            self.table(
                ("TASK", "STATUS", "DONE", "RATE", "LEFT", "ATTEMPT", "HEARTBEAT"),
                [
                    (
                        one.task_id,
                        f"{one.status}, cancelling" if one.cancel_requested and one.status == "running" else one.status,
                        percent(one.progress / 100),
                        rate(one),
                        time_left(one),
                        one.attempt if one.max_attempts is None else f"{one.attempt} of {one.max_attempts}",
                        last_heard_of(one),
                    )
                    for one in found.items
                ],
            )
        self.more(found)

    def _show(self, found: Details) -> None:
        one, saved = found.item, found.checkpoints
        if self.as_json:
            self.document({"task": one, "checkpoints": saved, **self.known(found)})
            return
        assert isinstance(one, TaskItem)
        self.line(f"{escaped(one.task_id)}: {one.status}", self.style.MIGRATE_HEADING)
        self.needs(found.attention)
        done = None if one.done is None else f"{number(one.done)} of {'?' if one.total is None else number(one.total)}"
        self.facts(
            [
                ("progress", percent(one.progress / 100)),
                ("items", done),
                ("remaining", time_left(one)),
                ("attempt", f"{one.attempt} of {one.max_attempts or 'any number'}"),
                ("owner", one.owner if self.full or not one.owner else holder(one.owner)),
                ("token", one.token),
                ("heartbeat", f"{duration(one.heartbeat_age)} ago"),
                ("lease", None if one.lease_left is None else f"{duration(one.lease_left)} left"),
                ("failure", one.failure),
            ]
        )
        if (failure := one.last_failure) is not None:
            self.facts([("last failure", f"{moment(failure.at)}, attempt {failure.attempt}: {failure.error}")])
            for place in failure.trace:
                self.facts([("", place)])
        if saved:
            self.line()
            self.table(
                ("SEQUENCE", "AT", "DONE"),
                [(s.sequence, f"{s.timestamp:%Y-%m-%d %H:%M:%S}", percent(s.progress / 100)) for s in saved],
            )
