"""``goscope_lock``: who holds what, and take it away."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import OperatorCommand, duration, number, positive, whole


class Command(OperatorCommand):
    """See ``help``."""

    help = "Lists held locks and releases one. Exits 1 if the lock is not held, or not as it was seen."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List held locks, by key.")
        listing.add_argument("--search", default="", help="Only those with this text in their key or owner.")
        listing.add_argument("--limit", type=positive, default=100, help="Locks to list at most (default: 100).")
        listing.add_argument("--after", help="Go on behind this key.")
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
            f"Release lock {key!r}? Its holder still believes that it is alone.", interactive=options["interactive"]
        )
        done = operations.release_lock(key, token, owner)
        if self._as_json:
            self.document({"done": done})
        self.line(done.message, self.style.SUCCESS)

    def _list(self, limit: int, after: str | None, search: str) -> None:
        found = operations.list_locks(limit, after, search)
        if self._as_json:
            self.document({"locks": found})
            return
        if not found.items:
            self.line("No locks are held.")
            return
        self.table(
            ("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"),
            [(one.key, one.owner, one.token, duration(one.held_for), duration(one.expires_in)) for one in found.items],
        )
        if found.next is not None:
            self.note(f"{len(found.items)} of {number(found.total)}; go on with --after {found.next!r}.")
