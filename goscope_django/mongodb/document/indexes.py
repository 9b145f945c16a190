"""The indexes that the collections need, as data, and the flows that check and make them.

Rules of this file: nothing is dropped unasked. An index that exists with other options is named in an
``IndexConflict``, with both definitions and the command that repairs it. The definitions for shared collections are
exactly those of the TypeScript adapter, so it does not matter which of the two connects first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pymongo.errors import OperationFailure

from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import IndexConflict
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.failures import INDEX_DIFFERS, NAMESPACE_NOT_FOUND, means

REPAIR: Final = "manage.py goscope_indexes ensure --repair"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """One index: a collection, the keys in order, and the options that are not defaults."""

    collection: str
    keys: tuple[tuple[str, int | str], ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """MongoDB's default name, which is what Node's adapter gives."""
        return "_".join(f"{key}_{order}" for key, order in self.keys)

    def __str__(self) -> str:
        keys = ", ".join(f"{key}: {order}" for key, order in self.keys)
        options = "".join(f", {name}={value!r}" for name, value in sorted(self.options.items()))
        return f"{{{keys}}}{options}"


@dataclass(frozen=True, slots=True)
class IndexState:
    """What was found for an index: ``present``, ``missing`` or ``different`` (then ``found`` describes it)."""

    spec: IndexSpec
    state: Literal["present", "missing", "different"]
    found: str | None = None


_UNIQUE: Final = {"unique": True}
_TTL: Final = {"expireAfterSeconds": 0}
_KEY: Final = (("key", 1),)
_EXPIRY: Final = (("expiresAt", 1),)

INDEXES: Final = (
    IndexSpec("go_goscope_locks", _KEY, _UNIQUE),
    IndexSpec("go_goscope_locks", _EXPIRY, _TTL),
    IndexSpec("go_goscope_circuit", _KEY, _UNIQUE),
    IndexSpec("go_goscope_cache", _KEY, _UNIQUE),
    IndexSpec("go_goscope_cache", _EXPIRY, _TTL),
    IndexSpec("go_goscope_checkpoints", (("taskId", 1), ("sequence", 1)), _UNIQUE),
    IndexSpec("go_goscope_checkpoints", (("taskId", 1),)),
    IndexSpec("go_goscope_idempotency", _KEY, _UNIQUE),
    IndexSpec("go_goscope_idempotency", _EXPIRY, _TTL),
    IndexSpec("go_goscope_flights", _EXPIRY, _TTL),
    IndexSpec("go_goscope_tasks", _EXPIRY, _TTL),
    IndexSpec("go_goscope_stats", _EXPIRY, _TTL),
    IndexSpec("go_goscope_tags", _EXPIRY, _TTL),
)
_IGNORED: Final = frozenset({"key", "v", "ns", "background", "name"})


def _described(found: Mapping[str, Any]) -> IndexSpec:
    options = {name: value for name, value in found.items() if name not in _IGNORED}
    if not options.get("unique", True):
        del options["unique"]
    # An order is 1 or -1 (from some shells as a double), or a word such as "hashed".
    keys = tuple((key, order if isinstance(order, str) else int(order)) for key, order in found["key"])
    return IndexSpec("", keys, options)


def _compare(spec: IndexSpec, existing: Mapping[str, Mapping[str, Any]]) -> IndexState:
    described = {name: _described(found) for name, found in existing.items() if isinstance(found.get("key"), list)}
    # The server allows several indexes on the same keys, with another collation for example: ours may be any of them.
    for name, found in described.items():
        if found.keys == spec.keys and dict(found.options) == dict(spec.options):
            return IndexState(spec, "present", name)
    for name, found in described.items():
        if found.keys == spec.keys or name == spec.name:
            return IndexState(spec, "different", f"{name}: {found}")
    return IndexState(spec, "missing")


def check(clock: Clock, *, collection: str | None = None) -> Flow[list[IndexState]]:
    """One command for each collection; the state of every index (of ``collection``, or of all)."""
    states, existing = [], dict[str, Mapping[str, Any]]()
    for spec in INDEXES:
        if collection not in (None, spec.collection):
            continue
        if spec.collection not in existing:
            existing[spec.collection] = yield from _existing(spec.collection)
        states.append(_compare(spec, existing[spec.collection]))
    return states


def _existing(collection: str) -> Flow[Mapping[str, Any]]:
    try:
        found: Mapping[str, Any] = yield from ask(collection, "index_information")
    except OperationFailure as error:
        if not means(error, NAMESPACE_NOT_FOUND):
            raise
        return {}
    return found


def conflict(state: IndexState) -> IndexConflict:
    """The error for an index that exists with other options."""
    spec = state.spec
    return IndexConflict(
        f"index {spec.name} of {spec.collection}: needed is {spec}, found is {state.found}. Nothing was changed; "
        f"`{REPAIR}` replaces it"
    )


def ensure(clock: Clock, *, repair: bool = False, collection: str | None = None) -> Flow[list[IndexState]]:
    """Make what is missing; idempotent. The states as found before.

    Raises ``IndexConflict`` for an index with other options, after everything else was made. With ``repair`` such an
    index is dropped and made anew; meanwhile ``_id`` still keeps our own documents unique.
    """
    states = yield from check(clock, collection=collection)
    different = [one for one in states if one.state == "different"]
    for state in states:
        if state.state == "missing":
            yield from _create(state.spec)
    for state in different:
        if not repair:
            raise conflict(state)
        name = (state.found or "").split(":", 1)[0]
        yield from ask(state.spec.collection, "drop_index", name)
        yield from _create(state.spec)
    return states


def _create(spec: IndexSpec) -> Flow[None]:
    try:
        yield from ask(spec.collection, "create_index", list(spec.keys), **spec.options)
    except OperationFailure as error:
        if not means(error, INDEX_DIFFERS):
            raise
        raise conflict(IndexState(spec, "different", str(error)[:200])) from error
