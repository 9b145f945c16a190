"""What a server can do for this package, and what its user may do: asked by those who look at a server.

Rules of this file: it changes nothing. Normal operations never ask any of this; an operation that a server can't carry
out, or a user may not, is an error that says so (``document.failures``). What a server has proved is remembered in the
clock, so it is asked once for each client. What a user may do can change, so it is asked each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

from pymongo.errors import OperationFailure

from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import MissingRights
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.failures import MISSING_RIGHTS, NOT_SUPPORTED, grant, means
from goscope_django.mongodb.document.indexes import INDEXES

Kind = Literal["end of life", "standalone", "no change streams", "not supported", "rights"]

COLLECTIONS: Final = tuple(dict.fromkeys(spec.collection for spec in INDEXES))
DATA: Final = ("find", "insert", "update", "remove")
"""The rights that every operation needs some of, in MongoDB's words."""

INDEX: Final = ("listIndexes", "createIndex")
"""The rights by which indexes are checked and made."""

_NEVER: Final = "goscope: no document has this _id"

_ENDS: Final = {17: date(2025, 7, 31), 21: date(2027, 8, 31), 25: date(2029, 10, 31)}
"""When MongoDB 6.0, 7.0 and 8.0 get their last fixes, by wire version."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about a server. ``text`` and ``cure`` are sentences. With ``fatal`` it must be mended."""

    kind: Kind
    text: str
    cure: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.cure}"


def ended(wire_version: int | None, version: str, today: date) -> Finding | None:
    """Whether a version has reached the end of its life by ``today``."""
    end = _ENDS.get(wire_version or 0)
    if end is None or today <= end:
        return None
    return Finding(
        "end of life",
        f"MongoDB {version} reached its end of life on {end.isoformat()}: it gets no security fixes any more.",
        "Move to a newer version; see docs/how-to/servers.md.",
    )


STANDALONE: Final = Finding(
    "standalone",
    "It is a standalone server: it has no transactions and no change streams, and a fencing token may repeat once its "
    "lock's document is gone.",
    "Make it a replica set; one node suffices.",
)

UNFIT: Final = Finding(
    "not supported",
    "The server can't update by a pipeline with its own time in it, by which everything here is decided.",
    "Use MongoDB 6.0 or later; servers that only speak its protocol are not supported.",
    fatal=True,
)


def fitness(clock: Clock) -> Flow[Finding | None]:
    """One command, until the server has proved it: how it would carry out a change. Needs the rights for that.

    Raises the driver's error for a user without these rights.
    """
    if clock.proved:
        return None
    change = [{"$set": {"expiresAt": clock.now(), "token": clock.token()}}]
    command = {"findAndModify": COLLECTIONS[0], "query": {"_id": _NEVER}, "update": change}
    try:
        yield from ask("", "command", {"explain": command, "verbosity": "queryPlanner"})
    except OperationFailure as error:
        if means(error, NOT_SUPPORTED):
            return UNFIT
        if means(error, MISSING_RIGHTS):
            raise
        return None  # a standalone server has no cluster time, and works all the same
    clock.proved = True
    return None


def change_streams(clock: Clock) -> Flow[Finding | None]:
    """Two commands, until the server has opened one."""
    if clock.streams:
        return None
    command = {"aggregate": COLLECTIONS[0], "pipeline": [{"$changeStream": {}}], "cursor": {"batchSize": 0}}
    try:
        opened = yield from ask("", "command", command)
    except OperationFailure as error:
        why = "the user may not open one" if means(error, MISSING_RIGHTS) else "the server has none"
        return Finding(
            "no change streams",
            f"There are no change streams ({why}): a near cache goes by time alone.",
            "Everything else works; see docs/how-to/servers.md.",
        )
    yield from ask("", "command", {"killCursors": COLLECTIONS[0], "cursors": [opened["cursor"]["id"]]})
    clock.streams = True
    return None


def rights(clock: Clock, database: str) -> Flow[Finding | None]:
    """One command: which rights the user lacks. ``None`` where all are there, or where the server does not tell.

    Raises ``MissingRights`` for a user who may not read anything.
    """
    try:
        status = yield from ask("", "command", {"connectionStatus": 1, "showPrivileges": True})
    except OperationFailure:  # it is outside of the Stable API
        return None
    info = status.get("authInfo", {})
    users, privileges = info.get("authenticatedUsers") or (), info.get("authenticatedUserPrivileges") or ()
    if not users:
        return None
    missing = {
        action: tuple(one for one in COLLECTIONS if not _allowed(privileges, database, one, action))
        for action in (*DATA, *INDEX)
    }
    if not any(missing.values()):
        return None
    name, home = str(users[0].get("user", "<user>")), str(users[0].get("db", "admin"))
    command = grant(database, name, home)
    if len(missing["find"]) == len(COLLECTIONS):
        raise MissingRights(f"the user {name!r} has no rights in the database {database!r}. Administrator: `{command}`")
    return Finding(
        "rights",
        f"The user {name!r} lacks rights in the database {database!r}: {_told(missing)}.",
        f"An administrator grants them: `{command}`.",
        fatal=any(missing[action] for action in (*DATA, "listIndexes")),
    )


def not_told(error: OperationFailure, database: str) -> Finding:
    """What a refused change means where the server does not tell the user's rights."""
    if "requires authentication" in str(error):
        raise error
    return _lacking("find and update", database)


def unlisted(database: str) -> Finding:
    """What a refused list of indexes means where the server does not tell the user's rights."""
    return _lacking("listIndexes", database)


def _lacking(actions: str, database: str) -> Finding:
    return Finding(
        "rights",
        f"The user lacks rights in the database {database!r}: {actions}.",
        f"An administrator grants them: `{grant(database)}`.",
        fatal=True,
    )


def _told(missing: Mapping[str, tuple[str, ...]]) -> str:
    """The missing rights, those of the same collections together."""
    places: dict[tuple[str, ...], list[str]] = {}
    for action, where in missing.items():
        if where:
            places.setdefault(where, []).append(action)
    return "; ".join(
        ", ".join(actions) + ("" if len(where) == len(COLLECTIONS) else f" in {', '.join(where)}")
        for where, actions in places.items()
    )


def _allowed(privileges: Iterable[Mapping[str, Any]], database: str, collection: str, action: str) -> bool:
    for one in privileges:
        resource = one.get("resource", {})
        covers = resource.get("anyResource") is True or (
            resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
        )
        if covers and action in one.get("actions", ()):
            return True
    return False
