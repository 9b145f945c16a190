"""``goscope_indexes`` checks whether the indexes are as they should be, and makes them so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import FAILED, OperatorCommand
from goscope_django.operations import StoreIndexes


class Command(OperatorCommand):
    """``check`` and ``ensure``."""

    help = (
        "Checks or makes the indexes of every store that the settings name. Exits 0 when all are as they should be, "
        "1 when one is missing or differs, 2 when a server can't be reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        add("check", "Compare what is there with what is needed. Changes nothing.")
        ensure = add("ensure", "Make what is missing. Safe to repeat.", asks=True)
        ensure.add_argument("--repair", action="store_true", help="Also replace indexes that exist with other options.")

    def act(self, **options: Any) -> None:
        if options["verb"] == "check":
            self._check()
        else:
            self._ensure(repair=options["repair"], interactive=options["interactive"])

    def _show(self, stores: Iterable[StoreIndexes], **more: Any) -> bool:
        found = list(stores)
        ok = all(one.ok for one in found)
        if self.as_json:
            self.document({"ok": ok, "stores": found, **more})
            return ok
        for store in found:
            self.line(f"{store.setting}: {store.url}", self.style.MIGRATE_HEADING)
            self.table(
                ("COLLECTION", "INDEX", "STATE"),
                [(one.collection, one.name, one.state) for one in store.indexes],
            )
            for one in store.indexes:
                if one.state == "different":
                    self.line(f"! {one.collection}.{one.name}", self.style.WARNING)
                    self.line(f"    needed: {one.needed}")
                    self.line(f"    found:  {one.found}")
        return ok

    def _check(self) -> None:
        stores = operations.check_indexes()
        if not self._show(stores):
            states = {one.state for store in stores for one in store.indexes}
            if "different" in states:
                raise self.failed(
                    "Some indexes differ. `manage.py goscope_indexes ensure --repair` replaces them, and makes what is "
                    "missing.",
                    FAILED,
                )
            raise self.failed("Some indexes are missing. `manage.py goscope_indexes ensure` makes them.", FAILED)

    def _ensure(self, *, repair: bool, interactive: bool) -> None:
        if repair:
            differ = [
                f"{one.collection}.{one.name}"
                for store in operations.check_indexes()
                for one in store.indexes
                if one.state == "different"
            ]
            if differ:
                names = ", ".join(differ)
                question = f"Drop {names} and make them again? Until they are made nothing keeps their keys unique."
                self.confirm(question, interactive=interactive)
        results = operations.ensure_indexes(repair=repair)
        done = [one for _, actions in results for one in actions]
        ok = self._show((store for store, _ in results), done=done)
        for one in done:
            self.line(one.message, self.style.SUCCESS)
        if not done:
            self.line("Nothing was missing.", self.style.SUCCESS)
        if not ok:
            raise self.failed("Some indexes are still missing: somebody else is changing them.", FAILED)
