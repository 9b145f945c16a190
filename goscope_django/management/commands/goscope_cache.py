"""``goscope_cache`` lists, deletes and clears what is cached, and shows how the caches are used."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import (
    FAILED,
    UNKNOWN,
    Error,
    OperatorCommand,
    percent,
    positive,
    whole,
)
from goscope_django.operations.wording import escaped, number


class Command(OperatorCommand):
    """``keys``, ``delete``, ``clear`` and ``stats``."""

    help = "Lists, deletes and clears entries of the caches that use MongoDBCache, and shows their figures."

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        keys = add("keys", "List live keys, in order.")
        keys.add_argument("pattern", nargs="?", default="*", help="A glob: *, ?, [a-z] (default: *).")
        keys.add_argument("--limit", type=positive, default=1_000, help="Keys to list at most (default: 1000).")
        delete = add("delete", "Delete keys. Exits 1 if one of them does not exist.", asks=True)
        delete.add_argument("keys", nargs="+", metavar="KEY")
        clear = add("clear", "Remove all entries of an alias, or those that match a pattern.", asks=True)
        clear.add_argument("--pattern", help="A glob; only keys of one version that match it.")
        stats = add("stats", "Entries and figures of the last hour, of the whole fleet.")
        for one in (keys, delete, clear):
            one.add_argument("--alias", default="default", help="An entry of CACHES (default: default).")
            one.add_argument("--key-version", type=whole, dest="key_version", help="Default: the alias's VERSION.")
        stats.add_argument("--alias", help="Only this entry of CACHES.")

    def act(self, **options: Any) -> None:
        alias = options["alias"]
        known = operations.cache_aliases()
        if alias is not None and alias not in known:
            names = ", ".join(known) or "none"
            raise Error(f"--alias {alias}: CACHES has no such entry that uses MongoDBCache; these do: {names}", UNKNOWN)
        getattr(self, f"_{options['verb']}")(**options)

    def _keys(self, *, alias: str, pattern: str, key_version: int | None, limit: int, **_: Any) -> None:
        found = operations.cache_keys(alias, pattern, key_version, limit + 1)
        more = len(found) > limit
        if self.as_json:
            self.document({"alias": alias, "pattern": pattern, "keys": found[:limit], "more": more})
        for key in found[:limit]:
            self.line(escaped(key))
        if more:
            self.note(f"There are more than {number(limit)}: give a higher --limit.")

    def _delete(self, *, alias: str, keys: list[str], key_version: int | None, interactive: bool, **_: Any) -> None:
        self.confirm(f"Delete {len(keys)} keys of cache {alias!r}?", interactive=interactive)
        done = operations.delete_cache_keys(alias, keys, key_version)
        if self.as_json:
            self.document({"done": done})
        self.line(done.message)
        if done.count < len(keys):
            raise self.failed(f"{len(keys) - done.count} of {len(keys)} keys do not exist.", FAILED)

    def _clear(self, *, alias: str, pattern: str | None, key_version: int | None, interactive: bool, **_: Any) -> None:
        what = "all entries" if pattern is None else f"the entries that match {pattern!r}"
        warning = operations.signed_out(alias, pattern, key_version)
        self.confirm(f"{warning} Remove {what} of cache {alias!r}?".strip(), interactive=interactive)
        if warning and not interactive:
            self.note(warning)
        self.done(operations.clear_cache(alias, pattern, key_version))

    def _stats(self, *, alias: str | None, **_: Any) -> None:
        state = operations.state(limit=1)
        aliases = [one for one in state.cache.aliases if alias in (None, one.alias)]
        if self.as_json:
            self.document(
                {
                    "generated_at": state.generated_at,
                    "entries": state.cache.entries,
                    "error": state.error,
                    "aliases": aliases,
                }
            )
        if not state.reachable:
            raise self.failed(f"{state.url} can't be reached: {state.error}. {state.hint}", UNKNOWN)
        headers = ("ALIAS", "NAMESPACE", "ENTRIES", "HITS", "RATIO", "MISSES", "SETS", "ERRORS", "FORGED")
        rows = []
        for one in aliases:
            entries = "?" if one.entries is None else number(one.entries, at_least=one.at_least)
            for name, entry, shown in (
                ("(all)", entries, one.figures),
                *((space.namespace, "", space.figures) for space in one.namespaces),
            ):
                rows.append(
                    (
                        one.alias,
                        name,
                        entry,
                        shown.hits,
                        percent(shown.hit_ratio),
                        shown.misses,
                        shown.sets,
                        shown.errors,
                        shown.forged,
                    )
                )
        self.table(headers, rows, cut=(1,))
        failed = [f"cache {one.alias!r} can't be read: {one.error}" for one in aliases if one.error]
        if failed:
            raise self.failed("\n".join(failed), UNKNOWN)
