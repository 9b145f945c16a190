"""Executors: they carry out a flow's commands on PyMongo, one class per colour and one for mongomock.

Rules of this file: nothing is decided here but how a command is sent. Coordinating collections are read from the
primary, written with majority concern and under a time limit, whatever the URL says; the cache's collection follows
the URL. The driver's own retries stay on. The one command sent past them is ``point``, a read, which is therefore
sent again once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import bson
import pymongo
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import ReadPreference, UpdateOne, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.database import Database

from goscope_django.mongodb.codec import CODEC_OPTIONS
from goscope_django.mongodb.expressions import Clock, LocalClock, ServerClock
from goscope_django.mongodb.flow import Command, Pause, Query
from goscope_django.mongodb.limits import TIME_LIMIT, time_limit
from goscope_django.mongodb.replies import recent, recent_command, row
from goscope_django.mongodb.sessions import AsyncSessions, MockSessions, SyncSessions

CACHE = "go_goscope_cache"
ENTRY_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=CODEC_OPTIONS.datetime_conversion,
    unicode_decode_error_handler=CODEC_OPTIONS.unicode_decode_error_handler,
)
"""For entries of the cache: their own dates are compared with each other only, so no zone is put on them, which takes
longer than all the rest of a small entry. The codec gives the dates inside a value their zone."""

_NOT_A_REPLICA_SET = 123
_RETRYABLE = frozenset({6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
DUPLICATE_KEY = 11000


def _retry_read(error: PyMongoError) -> bool:
    if isinstance(error, OperationFailure) and not isinstance(error, NotPrimaryError):
        return error.code in _RETRYABLE
    return isinstance(error, ConnectionFailure) and not isinstance(error, ServerSelectionTimeoutError)


def _upserts(changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[UpdateOne]:
    return [UpdateOne(test, update, upsert=True) for test, update in changes]


def _collided(error: BulkWriteError) -> list[int]:
    """Positions of the upserts that collided with another document; any other failure is raised."""
    failed = error.details["writeErrors"]
    if error.details.get("writeConcernErrors") or any(one["code"] != DUPLICATE_KEY for one in failed):
        raise error
    return [one["index"] for one in failed]


class _Base:
    clock: Clock

    def __init__(self, database: Any, *, limit: float = TIME_LIMIT) -> None:
        self.database = database
        self.limit = limit
        self._calls: dict[tuple[str, str], Callable[..., Any]] = {}
        self._point_command = self._point_options()

    def _point_options(self) -> dict[str, Any]:
        concern = self.database.read_concern.document
        return {"readConcern": concern} if concern else {}

    def collection(self, name: str) -> Any:
        if name == CACHE:
            return self.database.get_collection(name, codec_options=ENTRY_OPTIONS)
        return self.database.get_collection(
            name,
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    def call(self, query: Query[Any]) -> Callable[..., Any]:
        """What carries out ``query``: looked up once for each collection and method."""
        place = (query.collection, query.method)
        found = self._calls.get(place)
        if found is None:
            found = self._calls[place] = self._prepare(*place)
        return found

    def _prepare(self, name: str, method: str) -> Callable[..., Any]:
        own = getattr(self, f"_{method}", None)
        collection = self.collection(name) if name else self.database
        if method == "confirm":
            collection = collection.with_options(read_concern=ReadConcern("linearizable"))
        call = (lambda *a, **k: own(collection, *a, **k)) if own else getattr(collection, method)
        return self._limited(call) if name != CACHE and name else call

    def _limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def _find_command(self, collection: Any, test: Any, projection: Any, sort: Any) -> dict[str, Any]:
        command = {"find": collection.name, "filter": test, "limit": 1, "singleBatch": True, **self._point_command}
        if projection:
            command["projection"] = projection
        if sort:
            command["sort"] = dict(sort)
        return command


class SyncExecutor(SyncSessions, _Base):
    """Executes on ``pymongo.MongoClient``, on the calling thread."""

    def __init__(self, database: Database[Any], *, limit: float | None = None) -> None:
        super().__init__(database, limit=time_limit(database) if limit is None else limit)
        self.clock = ServerClock()

    def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            return self.call(command)(*command.args, **command.kwargs)
        if type(command) is Pause:
            return time.sleep(command.seconds)
        raise TypeError(f"{command!r} is not a command that an executor knows")

    def _limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*args: Any, **kwargs: Any) -> Any:
            with pymongo.timeout(self.limit):
                return call(*args, **kwargs)

        return limited

    def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = collection.find(*args, **kwargs).to_list()
        return rows

    def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = collection.aggregate(*args, **kwargs).to_list()
        return rows

    def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        try:
            return collection.find_one(test)
        except OperationFailure as error:
            if error.code != _NOT_A_REPLICA_SET:
                raise
            return collection.with_options(read_concern=ReadConcern()).find_one(test)

    def _point(self, collection: Any, test: Any, projection: Any = None, sort: Any = None) -> Any:
        return row(self._read(collection, self._find_command(collection, test, projection, sort)))

    def _recent(self, collection: Any, test: Mapping[str, Any]) -> tuple[Any, datetime | None]:
        """One document that no failover takes back, and the server's time of its last operation, which a write moves
        on, or else every ten seconds. ``None`` on a standalone server."""
        return recent(self._read(collection, recent_command(collection, test), ENTRY_OPTIONS))

    def _many(self, collection: Any, test: Mapping[str, Any], most: int) -> list[Any]:
        command = {"find": collection.name, "filter": test, "batchSize": most + 1, **self._point_command}
        cursor = self._read(collection, command)["cursor"]
        if cursor["id"]:  # more than one reply holds: the driver's own cursor fetches the rest as well
            self.database.command({"killCursors": collection.name, "cursors": [cursor["id"]]})
            return self._find(collection, test)
        rows: list[Any] = cursor["firstBatch"]
        return rows

    def _read(self, collection: Any, command: Mapping[str, Any], codec: CodecOptions[Any] | None = None) -> Any:
        options = {"codec_options": codec or collection.codec_options, "read_preference": collection.read_preference}
        try:
            return self.database.command(command, **options)
        except PyMongoError as error:
            if not (_retry_read(error) and self.database.client.options.retry_reads):
                raise
            return self.database.command(command, **options)

    def _upsert_many(self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[int]:
        try:
            collection.bulk_write(_upserts(changes), ordered=False)
        except BulkWriteError as error:
            return _collided(error)
        return []


class AsyncExecutor(AsyncSessions, _Base):
    """Executes on ``pymongo.AsyncMongoClient``, in the running event loop."""

    def __init__(self, database: AsyncDatabase[Any], *, limit: float | None = None) -> None:
        super().__init__(database, limit=time_limit(database) if limit is None else limit)
        self.clock = ServerClock()

    async def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            return await self.call(command)(*command.args, **command.kwargs)
        if type(command) is Pause:
            return await asyncio.sleep(command.seconds)
        raise TypeError(f"{command!r} is not a command that an executor knows")

    def _limited(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def limited(*args: Any, **kwargs: Any) -> Any:
            with pymongo.timeout(self.limit):
                return await call(*args, **kwargs)

        return limited

    async def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = await collection.find(*args, **kwargs).to_list()
        return rows

    async def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = await (await collection.aggregate(*args, **kwargs)).to_list()
        return rows

    async def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        try:
            return await collection.find_one(test)
        except OperationFailure as error:
            if error.code != _NOT_A_REPLICA_SET:
                raise
            return await collection.with_options(read_concern=ReadConcern()).find_one(test)

    async def _point(self, collection: Any, test: Any, projection: Any = None, sort: Any = None) -> Any:
        return row(await self._read(collection, self._find_command(collection, test, projection, sort)))

    async def _recent(self, collection: Any, test: Mapping[str, Any]) -> tuple[Any, datetime | None]:
        return recent(await self._read(collection, recent_command(collection, test), ENTRY_OPTIONS))

    async def _many(self, collection: Any, test: Mapping[str, Any], most: int) -> list[Any]:
        command = {"find": collection.name, "filter": test, "batchSize": most + 1, **self._point_command}
        cursor = (await self._read(collection, command))["cursor"]
        if cursor["id"]:
            await self.database.command({"killCursors": collection.name, "cursors": [cursor["id"]]})
            return await self._find(collection, test)
        rows: list[Any] = cursor["firstBatch"]
        return rows

    async def _read(self, collection: Any, command: Mapping[str, Any], codec: CodecOptions[Any] | None = None) -> Any:
        options = {"codec_options": codec or collection.codec_options, "read_preference": collection.read_preference}
        try:
            return await self.database.command(command, **options)
        except PyMongoError as error:
            if not (_retry_read(error) and self.database.client.options.retry_reads):
                raise
            return await self.database.command(command, **options)

    async def _upsert_many(self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[int]:
        try:
            await collection.bulk_write(_upserts(changes), ordered=False)
        except BulkWriteError as error:
            return _collided(error)
        return []


class MockExecutor(MockSessions, _Base):
    """Executes on mongomock, in this process, for both colours. Its clock is this process's."""

    def __init__(self, database: Any, *, limit: float = TIME_LIMIT) -> None:
        super().__init__(database, limit=limit)
        self.clock = LocalClock()
        self._atomic = threading.RLock()  # its findAndModify reads first and writes then

    def _point_options(self) -> dict[str, Any]:
        return {}

    def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            with self._atomic:
                return self.call(command)(*command.args, **command.kwargs)
        if type(command) is Pause:
            return time.sleep(command.seconds)
        raise TypeError(f"{command!r} is not a command that an executor knows")

    async def asynchronously(self, command: Command[Any]) -> Any:
        if type(command) is Pause:
            return await asyncio.sleep(command.seconds)
        return self(command)

    def collection(self, name: str) -> Any:
        return self.database.get_collection(name, codec_options=self.database.codec_options.with_options(tz_aware=True))

    def _prepare(self, name: str, method: str) -> Callable[..., Any]:
        own = getattr(self, f"_{method}", None)
        collection = self.collection(name) if name else self.database
        return (lambda *a, **k: own(collection, *a, **k)) if own else getattr(collection, method)

    def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.find(*args, **kwargs))

    def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.aggregate(*args, **kwargs))

    def _many(self, collection: Any, test: Mapping[str, Any], most: int) -> list[Any]:
        return list(collection.find(test))

    def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        return collection.find_one(test)

    def _insert_one(self, collection: Any, document: Mapping[str, Any]) -> Any:
        if isinstance(document, RawBSONDocument):  # which it can't take
            document = bson.decode(document.raw)
        return collection.insert_one(document)

    def _point(self, collection: Any, test: Any, projection: Any = None, sort: Any = None) -> Any:
        return collection.find_one(test, projection or None, sort=sort)

    def _upsert_many(self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[int]:
        collided = []
        for position, (test, update) in enumerate(changes):
            try:
                collection.update_one(test, update, upsert=True)
            except DuplicateKeyError:
                collided.append(position)
        return collided
