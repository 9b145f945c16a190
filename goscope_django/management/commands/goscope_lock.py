"""``goscope_lock`` shows which locks are held and by whom, and releases one."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import OperatorCommand, duration, moment, whole
from goscope_django.operations import Details
from goscope_django.operations.attention import holder
from goscope_django.operations.values import LockItem
from goscope_django.operations.wording import escaped


class Command(OperatorCommand):
    """``list``, ``show`` and ``release``."""

    help = (
        "Lists and shows held locks, and releases one. Exits 1 if the lock is not held, or not as it was seen. "
        "``show`` also knows a lock that was lost lately."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List held locks, by key.")
        self.add_paging(listing, "Locks", "key", "key or owner")
        show = add("show", "Show one lock: its holder, who waits for it, and when it was lost.")
        show.add_argument("key")
        self.add_full(show)
        release = add("release", "Take a lock away from its holder, who learns of it at its next renewal.", asks=True)
        release.add_argument("key")
        release.add_argument("--token", type=whole, help="Only if this is (still) its token.")
        release.add_argument("--owner", help="Only if this is (still) its owner.")

    def act(self, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(options["limit"], options["after"], options["search"])
            return
        if options["verb"] == "show":
            self._show(self.one("lock", options["key"]))
            return
        key, token, owner = options["key"], options["token"], options["owner"]
        self.confirm(
            f"Release lock {key!r}? Its holder does not know, and goes on until its next renewal.",
            interactive=options["interactive"],
        )
        self.done(operations.release_lock(key, token, owner))

    def _list(self, limit: int, after: str | None, search: str) -> None:
        found = operations.list_locks(limit, after, search)
        if self.as_json:
            self.document({"locks": found})
            return
        if not found.items:
            self.line("No locks are held.")
            return
        self.locks(found.items)
        self.more(found)

    def _show(self, found: Details) -> None:
        if self.as_json:
            self.document({"lock": found.item, **self.known(found)})
            return
        one = found.item if isinstance(found.item, LockItem) else None
        self.line(f"{escaped(found.key)}: {'not held' if one is None else 'held'}", self.style.MIGRATE_HEADING)
        self.needs(found.attention)
        if one is not None:
            self.facts(
                [
                    ("holder", one.owner if self.full else holder(one.owner)),
                    ("token", one.token),
                    ("held for", duration(one.held_for)),
                    ("since", moment(one.created_at)),
                    ("lease", "never ends" if one.expires_in is None else f"{duration(one.expires_in)} left"),
                ]
            )
        for wait in found.waits:
            self.facts([("waiting", f"{wait.count} of {wait.process}, the first for {duration(wait.longest)}")])
        self.timeline(found)
