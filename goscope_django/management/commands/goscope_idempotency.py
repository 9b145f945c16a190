"""``goscope_idempotency`` shows which idempotent requests run or are answered, never the answer; and deletes one."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import OperatorCommand, duration, moment, whole
from goscope_django.operations import Details
from goscope_django.operations.attention import holder
from goscope_django.operations.values import IdempotencyItem
from goscope_django.operations.wording import escaped


class Command(OperatorCommand):
    """``list``, ``show`` and ``delete``."""

    help = (
        "Lists and shows idempotency records, without what is stored in them, and deletes one. "
        "Exits 1 if there is no such record, or it is not as it was seen."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        listing = add("list", "List claims that are in progress, then results, by key.")
        self.add_paging(listing, "Records", "cursor", "key or holder")
        show = add("show", "Show one record, without what is stored in it.")
        show.add_argument("key")
        self.add_full(show)
        delete = add("delete", "Delete a claim or result, so that a repeat of its request runs again.", asks=True)
        delete.add_argument("key")
        delete.add_argument("--token", type=whole, help="Only if this is (still) its token.")

    def act(self, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(options["limit"], options["after"], options["search"])
            return
        key = options["key"]
        if options["verb"] == "show":
            self._show(self.one("idempotency", key))
            return
        self.confirm(
            f"Delete idempotency record {key!r}? A repeat of its request runs again.",
            interactive=options["interactive"],
        )
        self.done(operations.delete_idempotency(key, options["token"]))

    def _list(self, limit: int, after: str | None, search: str) -> None:
        found = operations.list_idempotency(limit, after, search)
        if self.as_json:
            self.document({"idempotency": found})
            return
        if not found.items:
            self.line("No records.")
            return
        self.table(
            ("KEY", "STATE", "HOLDER", "TOKEN", "AGE", "LEFT"),
            [
                (
                    one.key,
                    "in progress" if one.state == "in_progress" else one.state,
                    (one.holder if self.full else holder(one.holder)) if one.holder else None,
                    one.token,
                    duration(one.age),
                    duration(one.expires_in),
                )
                for one in found.items
            ],
            cut=(2,),
        )
        self.more(found)

    def _show(self, found: Details) -> None:
        if self.as_json:
            self.document({"record": found.item, **self.known(found)})
            return
        one = found.item
        assert isinstance(one, IdempotencyItem)
        state = "in progress" if one.state == "in_progress" else one.state
        self.line(f"{escaped(one.key)}: {state}", self.style.MIGRATE_HEADING)
        self.facts(
            [
                ("holder", one.holder if self.full or not one.holder else holder(one.holder)),
                ("token", one.token),
                ("since", moment(one.updated_at)),
                ("age", duration(one.age)),
                ("left", "for ever" if one.expires_in is None else duration(one.expires_in)),
            ]
        )
        self.timeline(found)
