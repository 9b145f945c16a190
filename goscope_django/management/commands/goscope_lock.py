"""``goscope_lock`` shows which locks are held and by whom, and releases one."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import OperatorCommand, duration, whole


class Command(OperatorCommand):
    """``list`` and ``release``."""

    help = "Lists held locks and releases one. Exits 1 if the lock is not held, or not as it was seen."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List held locks, by key.")
        self.add_paging(listing, "Locks", "key", "key or owner")
        release = add("release", "Take a lock away from its holder, who learns of it at its next renewal.", asks=True)
        release.add_argument("key")
        release.add_argument("--token", type=whole, help="Only if this is (still) its token.")
        release.add_argument("--owner", help="Only if this is (still) its owner.")

    def act(self, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(options["limit"], options["after"], options["search"])
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
        self.table(
            ("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"),
            [(one.key, one.owner, one.token, duration(one.held_for), duration(one.expires_in)) for one in found.items],
        )
        self.more(found)
