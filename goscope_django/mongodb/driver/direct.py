"""The cache's commands, sent by ``Database.command``, with the retries and checks that this leaves out.

Half of what an operation costs is Python inside the driver. ``Database.command`` skips most of it, but also the
driver's retries and its check of the reply, which are here instead. Rules of this file:

* A read is sent again once, as the driver does. A write is sent again once under the same transaction number, by which
  the server knows it and carries it out only once (MongoDB's specification of retryable writes). Without such numbers
  (a standalone server, ``retryWrites=false``) a write is sent once.
* A reply to a write is a success only if ``written`` says so.
* The sessions are used by this module in this process only: a server ignores a number that it has seen. They never go
  back to the driver, whose own numbers in them would begin again at 1.

Everything here is a flow of ``Query``: of ``Database.command``, or of the driver's own method where that does better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from weakref import WeakSet

from bson.codec_options import CodecOptions
from pymongo import ReadPreference, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from goscope_django.core.flow import Flow, Query, ask
from goscope_django.core.forking import at_fork
from goscope_django.mongodb.codec import ENTRY_OPTIONS
from goscope_django.mongodb.document.failures import (
    DUPLICATE_KEY,
    RETRYABLE_READ,
    TIMED_OUT,
    means,
    numbers_refused,
)

RETRYABLE_WRITE: Final = "RetryableWriteError"


def row(reply: Mapping[str, Any]) -> Any:
    """The one document of a reply to ``find``, or ``None``."""
    rows = reply["cursor"]["firstBatch"]
    return rows[0] if rows else None


def recent(reply: Mapping[str, Any]) -> tuple[Any, datetime | None]:
    """The document, and the server's time of its last operation, which is ``None`` on a standalone server.

    Each write moves that time on. On an idle replica set the server itself does, every ten seconds.
    """
    stamp = reply.get("operationTime")
    return row(reply), None if stamp is None else stamp.as_datetime()


def written(reply: Mapping[str, Any], *, many: bool = False) -> Mapping[str, Any]:
    """The reply, if the write was carried out and confirmed. Otherwise raises the error that the driver would raise.

    With ``many`` that is a ``BulkWriteError``, with the error of each statement.
    """
    errors, concern = reply.get("writeErrors"), reply.get("writeConcernError")
    if not errors and not concern:
        return reply
    if many:
        raise BulkWriteError({"writeErrors": errors or [], "writeConcernErrors": [concern] if concern else []})
    labels = {"errorLabels": reply["errorLabels"]} if "errorLabels" in reply else {}
    if errors:
        first: dict[str, Any] = {**errors[0], **labels}
        kind = DuplicateKeyError if first.get("code") in DUPLICATE_KEY else WriteError
        raise kind(first.get("errmsg", "a write failed"), first.get("code"), first)
    details: dict[str, Any] = {**(concern or {}), **labels}
    timed_out = details.get("code") in TIMED_OUT or details.get("errInfo", {}).get("wtimeout")
    raise (WTimeoutError if timed_out else WriteConcernError)(
        details.get("errmsg", "a write was not confirmed"), details.get("code"), details
    )


T = TypeVar("T")
Reply = Mapping[str, Any]
Change = tuple[Mapping[str, Any], Any]

DIRECT: Final = frozenset(
    {
        *("point", "newest", "fresh", "many", "recent", "time", "known_primary"),
        *("update", "delete", "modify", "take", "upsert_many", "change_each"),
    }
)
"""The methods of ``Direct``, as a ``Query`` names them."""

_FIRST_NUMBER: Final = 2**40
"""Higher than any number the driver has given: a session may have been the driver's before."""

_UNOWNED: Final = {"readConcern": {"level": "available"}}
"""A shard's answer may hold documents that have moved away from it."""

UNSURE: Final = "unsure"
"""In place of a primary."""

_UNSENT: Final = (ServerSelectionTimeoutError, WaitQueueTimeoutError)
"""Errors of commands that never left this process."""


class _Session:
    """A session of the driver and the number of its last write.

    A server forgets a session after half an hour without use. Its next write then counts as the first of a new session.
    """

    __slots__ = ("number", "session")

    def __init__(self, session: Any) -> None:
        self.session = session
        self.number = _FIRST_NUMBER


def _retry_read(error: PyMongoError) -> bool:
    if isinstance(error, OperationFailure) and not isinstance(error, NotPrimaryError):
        return means(error, RETRYABLE_READ)
    return isinstance(error, ConnectionFailure) and not isinstance(error, ServerSelectionTimeoutError)


def _retry_write(error: PyMongoError) -> bool:
    if error.has_error_label(RETRYABLE_WRITE):
        return True
    # The driver would have set the label itself if it had known of the number.
    return isinstance(error, ConnectionFailure) and not isinstance(error, (*_UNSENT, NotPrimaryError))


class Sessions:
    """The sessions of one client that are kept for these commands. Each serves one operation at a time."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._idle: list[_Session] = []  # append and pop are atomic
        self.retry_reads: bool = client.options.retry_reads
        self.numbers: bool = client.options.retry_writes
        _all.add(self)

    def take(self) -> _Session:
        try:
            return self._idle.pop()
        except IndexError:
            return _Session(self.client.start_session(causal_consistency=False))

    def give_back(self, kept: _Session) -> None:
        """Not to be called after a broken connection, a time-out or a cancellation: the server may still use it."""
        self._idle.append(kept)

    def begin_anew(self) -> None:
        """In a forked child: the sessions are the parent's, which goes on with their numbers."""
        self._idle = []


_all: Final[WeakSet[Sessions]] = WeakSet()


def _after_fork() -> None:
    for one in _all:
        one.begin_anew()


at_fork(child=_after_fork)


class Direct:
    """The commands of one collection."""

    def __init__(self, collection: Any, sessions: Sessions) -> None:
        self._name: str = collection.name
        self._sessions = sessions
        self._codec: CodecOptions[Any] = collection.codec_options
        self._preference = collection.read_preference
        read, write = collection.read_concern.document, collection.write_concern.document
        self._read_concern: dict[str, Any] = {"readConcern": read} if read else {}
        self._write_concern: dict[str, Any] = {"writeConcern": write} if write else {}

    def _read(
        self,
        command: dict[str, Any],
        outcome: Callable[[Reply], T],
        codec: CodecOptions[Any] | None = None,
        preference: Any = None,
    ) -> Flow[T]:
        sessions = self._sessions
        kept = sessions.take()
        send: Query[Reply] = Query(
            "",
            "command",
            command,
            read_preference=preference or self._preference,
            codec_options=codec or self._codec,
            session=kept.session,
        )
        try:
            reply = yield send
        except PyMongoError as error:
            if not (sessions.retry_reads and _retry_read(error)):
                raise
            reply = yield send
        sessions.give_back(kept)
        return outcome(reply)

    def _write(self, command: dict[str, Any], outcome: Callable[[Reply], T]) -> Flow[T]:
        sessions = self._sessions
        kept = sessions.take()
        if sessions.numbers:
            kept.number += 1
            command["txnNumber"] = kept.number
        command.update(self._write_concern)
        send: Query[Reply] = Query(
            "",
            "command",
            command,
            read_preference=ReadPreference.PRIMARY,
            codec_options=self._codec,
            session=kept.session,
        )
        try:
            reply = yield send
            if "errorLabels" in reply and sessions.numbers and RETRYABLE_WRITE in reply["errorLabels"]:
                written(reply)
        except PyMongoError as error:
            if not self._may_repeat(error, command):
                if isinstance(error, OperationFailure):
                    sessions.give_back(kept)
                raise
            try:
                reply = yield send
            except _UNSENT:
                raise error from None  # the second error would say that nothing was sent
        sessions.give_back(kept)
        return outcome(reply)

    def _may_repeat(self, error: PyMongoError, command: dict[str, Any]) -> bool:
        if numbers_refused(error):
            self._sessions.numbers = False
            command.pop("txnNumber", None)
            return True
        return self._sessions.numbers and _retry_write(error)

    def _one(self, test: Mapping[str, Any]) -> dict[str, Any]:
        return {"find": self._name, "filter": test, "limit": 1, "singleBatch": True}

    def point(self, test: Any, projection: Mapping[str, Any] | None = None, sort: Any = None) -> Flow[Any]:
        """One document or ``None``."""
        command = {**self._one(test), **self._read_concern}
        if projection:
            command["projection"] = projection
        if sort:
            command["sort"] = dict(sort)
        return self._read(command, row)

    def newest(self, test: Mapping[str, Any]) -> Flow[Any]:
        """One document or ``None``, from the primary: for who writes back what it makes of it."""
        command = {**self._one(test), **self._read_concern}
        return self._read(command, row, preference=ReadPreference.PRIMARY)

    def many(self, test: Mapping[str, Any], most: int) -> Flow[list[Any]]:
        """All documents that match; there must be no more than ``most``."""
        command = {"find": self._name, "filter": test, "batchSize": most + 1, **self._read_concern}
        cursor = yield from self._read(command, _cursor)
        if cursor["id"]:  # more than one reply holds: the driver's own cursor fetches the rest as well
            kill = {"killCursors": self._name, "cursors": [cursor["id"]]}
            yield from self._read(kill, lambda reply: reply)
            rows: list[Any] = yield from ask(self._name, "find", test)
            return rows
        rows = cursor["firstBatch"]
        return rows

    def fresh(
        self, test: Mapping[str, Any], projection: Mapping[str, Any], most: int
    ) -> Flow[tuple[list[Any] | None, object]]:
        """All documents that match, at most ``most``, as the primary has them, whatever the URL says; ``None`` if one
        reply does not hold them. And which primary it was; ``UNSURE`` if another one came meanwhile.

        Two commands where they are the client's first: what it reads before it knows the servers is of nobody knows
        which one, and a view that is run on an event loop of its own reads by a new client each time.
        """
        before = primary(self._sessions.client)
        if before is None and _knows_none(self._sessions.client):
            yield from self.time()
            before = primary(self._sessions.client)
        command = {"find": self._name, "filter": test, "projection": projection, "batchSize": most + 1}
        if self._read_concern != _UNOWNED:
            command.update(self._read_concern)
        cursor = yield from self._read(command, _cursor, preference=ReadPreference.PRIMARY)
        if cursor["id"]:
            kill = {"killCursors": self._name, "cursors": [cursor["id"]]}
            yield from self._read(kill, lambda reply: reply, preference=ReadPreference.PRIMARY)
            return None, UNSURE
        after = primary(self._sessions.client)
        return cursor["firstBatch"], after if after == before else UNSURE

    def recent(self, test: Mapping[str, Any]) -> Flow[tuple[Any, datetime | None]]:
        """One document as a majority has it, so that no failover undoes it, and the server's time: see ``recent``."""
        return self._read({**self._one(test), "readConcern": {"level": "majority"}}, recent, ENTRY_OPTIONS)

    def time(self) -> Flow[datetime | None]:
        """The primary's time, to the millisecond; ``None`` if it does not say."""
        return self._read({"hello": 1}, _local_time, ENTRY_OPTIONS, ReadPreference.PRIMARY)

    def known_primary(self) -> Flow[object]:
        """Which primary the driver knows: see ``primary``. No command."""
        yield from ()
        return primary(self._sessions.client)

    def update(self, test: Mapping[str, Any], change: Any, *, upsert: bool = False) -> Flow[Mapping[str, Any]]:
        """Change one document. The reply has ``n``, ``nModified`` and, where one was made, ``upserted``."""
        statement = {"q": test, "u": change, "upsert": upsert}
        return self._write({"update": self._name, "updates": [statement]}, written)

    def delete(self, *tests: Mapping[str, Any]) -> Flow[int]:
        """Remove one document for each test; how many were removed. A deletion of many has no transaction number."""
        statements = [{"q": test, "limit": 1} for test in tests]
        return self._write({"delete": self._name, "deletes": statements}, _removed)

    def modify(
        self,
        test: Mapping[str, Any],
        change: Any,
        fields: Mapping[str, Any] | None = None,
        *,
        upsert: bool = False,
        before: bool = False,
    ) -> Flow[dict[str, Any] | None]:
        """Change one document; what it is then, or ``None`` if none matches. With ``before`` what it was until then,
        and ``None`` if there was none."""
        command = {"findAndModify": self._name, "query": test, "update": change, "new": not before, "upsert": upsert}
        if fields:
            command["fields"] = fields
        return self._write(command, _found)

    def take(self, test: Mapping[str, Any], fields: Mapping[str, Any]) -> Flow[dict[str, Any] | None]:
        """Remove one document; what it was, or ``None`` if none matches."""
        return self._write({"findAndModify": self._name, "query": test, "remove": True, "fields": fields}, _found)

    def change_each(self, changes: Sequence[tuple[Mapping[str, Any], Any, bool]]) -> Flow[tuple[int, frozenset[int]]]:
        """Change one document each, and make those that are missing where the third part says so.

        How many there are then, and the positions of those that were made. ``BulkWriteError`` for those that collided.
        """
        statements = [{"q": test, "u": change, "upsert": makes} for test, change, makes in changes]
        return self._write({"update": self._name, "updates": statements, "ordered": False}, _matched)

    def upsert_many(self, changes: Sequence[Change]) -> Flow[list[int]]:
        """Make or change one document each; the positions of those that collided with another document."""
        statements = [{"q": test, "u": change, "upsert": True} for test, change in changes]
        command = {"update": self._name, "updates": statements, "ordered": False}
        try:
            try:
                yield from self._write(command, _all_written)
            except DocumentTooLarge:  # the driver divides what one message does not hold
                yield from ask(self._name, "bulk_write", _models(changes), ordered=False)
        except BulkWriteError as error:
            return _collided(error)
        return []


def _matched(reply: Reply) -> tuple[int, frozenset[int]]:
    made = written(reply, many=True).get("upserted", ())
    return int(reply["n"]), frozenset(int(one["index"]) for one in made)


def primary(client: Any) -> object:
    """Which primary the driver knows: its address and its election. ``None`` if it knows none, or on other topologies.

    Sends nothing.
    """
    for one in client.topology_description.server_descriptions().values():
        if one.server_type_name == "RSPrimary":
            return one.address, one.election_id, one.set_version
    return None


def _knows_none(client: Any) -> bool:
    servers = client.topology_description.server_descriptions().values()
    return all(one.server_type_name == "Unknown" for one in servers)


def _cursor(reply: Reply) -> Mapping[str, Any]:
    found: Mapping[str, Any] = reply["cursor"]
    return found


def _local_time(reply: Reply) -> datetime | None:
    return reply.get("localTime")


def _removed(reply: Reply) -> int:
    return int(written(reply)["n"])


def _found(reply: Reply) -> dict[str, Any] | None:
    found: dict[str, Any] | None = written(reply)["value"]
    return found


def _all_written(reply: Reply) -> None:
    written(reply, many=True)


def _models(changes: Sequence[Change]) -> list[UpdateOne]:
    return [UpdateOne(test, change, upsert=True) for test, change in changes]


def _collided(error: BulkWriteError) -> list[int]:
    """Positions of the upserts that collided with another document; any other failure is raised."""
    failed = error.details["writeErrors"]
    if error.details.get("writeConcernErrors") or any(one["code"] not in DUPLICATE_KEY for one in failed):
        raise error
    return [one["index"] for one in failed]
