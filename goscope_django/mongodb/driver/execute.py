"""Executors: they carry out a flow's commands on PyMongo, one class per colour and one for mongomock.

Rules of this file: nothing is decided here but how a command is sent. Coordinating collections are read from the
primary, written with majority concern and under a time limit, whatever the URL says; the cache's collection follows
the URL. The driver's own retries stay on; ``direct`` says how commands go past them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import bson
import pymongo
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import ReadPreference, ReturnDocument, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.database import Database

from goscope_django.core.flow import Command, Flow, Pause, Query, arun, run
from goscope_django.mongodb.codec import CODEC_OPTIONS, ENTRY_OPTIONS
from goscope_django.mongodb.document.clock import Clock, LocalClock, ServerClock
from goscope_django.mongodb.driver.direct import DIRECT, Direct, Send, Sessions
from goscope_django.mongodb.driver.limits import RANGE_LIMIT, TIME_LIMIT, time_limit
from goscope_django.mongodb.driver.sessions import AsyncSessions, MockSessions, SyncSessions

CACHE = "go_goscope_cache"

_NOT_A_REPLICA_SET = 123


class _Base:
    clock: Clock
    _sessions: Sessions

    def __init__(self, database: Any, *, limit: float = TIME_LIMIT) -> None:
        self.database = database
        self.limit = limit
        self._calls: dict[tuple[str, str], Callable[..., Any]] = {}

    def collection(self, name: str) -> Any:
        if name == CACHE:
            # Every operation of a cache has an outcome, so an unacknowledged write (w=0) is none of them.
            acknowledged = None if self.database.write_concern.acknowledged else WriteConcern(1)
            return self.database.get_collection(name, codec_options=ENTRY_OPTIONS, write_concern=acknowledged)
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
        call: Callable[..., Any]
        if own:
            call = partial(own, collection)
        elif method in DIRECT:
            call = self._direct(getattr(Direct(collection, self._sessions), method))
        else:
            call = getattr(collection, method)
        if name and name != CACHE:
            return self._limited(call, self.limit)
        limit: float | None = self.database.client.options.timeout
        if limit is not None:
            # The driver would begin it anew for each attempt of ours.
            return self._limited(call, limit) if method in DIRECT else call
        if method == "delete_many":
            # Millions of entries: the socket's time limit is for answers that come at once. timeoutMS is for all.
            return self._reached(self._limited(call, RANGE_LIMIT))
        return call

    def _direct(self, steps: Callable[..., Flow[Any]]) -> Callable[..., Any]:
        raise NotImplementedError

    def _limited(self, call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        raise NotImplementedError

    def _reached(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` once a server is found, which is waited for as ever: under a time limit for all it would be for as
        long as that. Sends nothing."""
        raise NotImplementedError


class SyncExecutor(SyncSessions, _Base):
    """Executes on ``pymongo.MongoClient``, on the calling thread."""

    def __init__(self, database: Database[Any], *, limit: float | None = None) -> None:
        super().__init__(database, limit=time_limit(database) if limit is None else limit)
        self.clock = ServerClock(reads_elsewhere=database.read_preference != ReadPreference.PRIMARY)
        self._sessions = Sessions(database.client)

    def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            return self.call(command)(*command.args, **command.kwargs)
        if type(command) is Send:
            return self.database.command(
                command.command,
                read_preference=command.preference,
                codec_options=command.codec,
                session=command.session,
            )
        if type(command) is Pause:
            return time.sleep(command.seconds)
        raise TypeError(f"{command!r} is not a command that an executor knows")

    def _direct(self, steps: Callable[..., Flow[Any]]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(steps(*args, **kwargs), self)

    def _limited(self, call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def limited(*args: Any, **kwargs: Any) -> Any:
            with pymongo.timeout(seconds):
                return call(*args, **kwargs)

        return limited

    def _reached(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def reached(*args: Any, **kwargs: Any) -> Any:
            _ = self.database.client.is_primary
            return call(*args, **kwargs)

        return reached

    def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = collection.find(*args, **kwargs).to_list()
        return rows

    def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = collection.aggregate(*args, **kwargs).to_list()
        return rows

    def _upserted(self, collection: Any, test: Mapping[str, Any], change: Any) -> tuple[Any, Timestamp | None]:
        """The document as an upsert leaves it, and the server's cluster time then."""
        with self.database.client.start_session(causal_consistency=False) as session:
            found = collection.find_one_and_update(
                test, change, upsert=True, return_document=ReturnDocument.AFTER, session=session
            )
            return found, session.operation_time

    def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        try:
            return collection.find_one(test)
        except OperationFailure as error:
            if error.code != _NOT_A_REPLICA_SET:
                raise
            return collection.with_options(read_concern=ReadConcern()).find_one(test)


class AsyncExecutor(AsyncSessions, _Base):
    """Executes on ``pymongo.AsyncMongoClient``, in the running event loop."""

    def __init__(self, database: AsyncDatabase[Any], *, limit: float | None = None) -> None:
        super().__init__(database, limit=time_limit(database) if limit is None else limit)
        self.clock = ServerClock(reads_elsewhere=database.read_preference != ReadPreference.PRIMARY)
        self._sessions = Sessions(database.client)

    async def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            return await self.call(command)(*command.args, **command.kwargs)
        if type(command) is Send:
            return await self.database.command(
                command.command,
                read_preference=command.preference,
                codec_options=command.codec,
                session=command.session,
            )
        if type(command) is Pause:
            return await asyncio.sleep(command.seconds)
        raise TypeError(f"{command!r} is not a command that an executor knows")

    def _direct(self, steps: Callable[..., Flow[Any]]) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **kwargs: arun(steps(*args, **kwargs), self)

    def _limited(self, call: Callable[..., Awaitable[Any]], seconds: float) -> Callable[..., Awaitable[Any]]:
        async def limited(*args: Any, **kwargs: Any) -> Any:
            with pymongo.timeout(seconds):
                return await call(*args, **kwargs)

        return limited

    def _reached(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def reached(*args: Any, **kwargs: Any) -> Any:
            await self.database.client.is_primary
            return await call(*args, **kwargs)

        return reached

    async def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = await collection.find(*args, **kwargs).to_list()
        return rows

    async def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        rows: list[Any] = await (await collection.aggregate(*args, **kwargs)).to_list()
        return rows

    async def _upserted(self, collection: Any, test: Mapping[str, Any], change: Any) -> tuple[Any, Timestamp | None]:
        """As its twin."""
        async with self.database.client.start_session(causal_consistency=False) as session:
            found = await collection.find_one_and_update(
                test, change, upsert=True, return_document=ReturnDocument.AFTER, session=session
            )
            return found, session.operation_time

    async def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        try:
            return await collection.find_one(test)
        except OperationFailure as error:
            if error.code != _NOT_A_REPLICA_SET:
                raise
            return await collection.with_options(read_concern=ReadConcern()).find_one(test)


def _unpacked(value: Any) -> Any:
    """``value`` without encoded documents, which mongomock can't take."""
    if isinstance(value, RawBSONDocument):
        return bson.decode(value.raw)
    if type(value) is dict:
        return {name: _unpacked(one) for name, one in value.items()}
    return [_unpacked(one) for one in value] if type(value) is list else value


class MockExecutor(MockSessions, _Base):
    """Executes on mongomock, in this process, for both colours. Its clock is this process's."""

    def __init__(self, database: Any, *, limit: float = TIME_LIMIT) -> None:
        super().__init__(database, limit=limit)
        self.clock = LocalClock()
        self._atomic = threading.RLock()  # its findAndModify reads first and writes then

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
        return partial(own, collection) if own else getattr(collection, method)

    def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.find(*args, **kwargs))

    def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.aggregate(*args, **kwargs))

    def _many(self, collection: Any, test: Mapping[str, Any], most: int) -> list[Any]:
        return list(collection.find(test))

    def _upserted(self, collection: Any, test: Mapping[str, Any], change: Any) -> tuple[Any, Timestamp | None]:
        return collection.find_one_and_update(test, change, upsert=True, return_document=ReturnDocument.AFTER), None

    def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        return collection.find_one(test)

    def _insert_one(self, collection: Any, document: Mapping[str, Any]) -> Any:
        return collection.insert_one(_unpacked(document))

    def _point(self, collection: Any, test: Any, projection: Any = None, sort: Any = None) -> Any:
        return collection.find_one(test, projection or None, sort=sort)

    def _update(
        self, collection: Any, test: Mapping[str, Any], change: Any, *, upsert: bool = False
    ) -> Mapping[str, Any]:
        done = collection.update_one(test, _unpacked(change), upsert=upsert)
        reply = {"n": done.matched_count, "nModified": done.modified_count}
        return reply if done.upserted_id is None else {**reply, "n": 1, "upserted": [{"_id": done.upserted_id}]}

    def _delete(self, collection: Any, test: Mapping[str, Any]) -> int:
        return int(collection.delete_one(test).deleted_count)

    def _modify(self, collection: Any, test: Mapping[str, Any], change: Any, fields: Any = None) -> Any:
        return collection.find_one_and_update(test, change, fields, return_document=ReturnDocument.AFTER)

    def _upsert_many(self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[int]:
        collided = []
        for position, (test, update) in enumerate(changes):
            try:
                collection.update_one(test, _unpacked(update), upsert=True)
            except DuplicateKeyError:
                collided.append(position)
        return collided
