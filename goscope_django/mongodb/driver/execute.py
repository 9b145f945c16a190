"""Executors: they carry out a flow's commands on PyMongo. One class is for sync, one for async, one for mongomock.

Rules of this file:

* Nothing is decided here but how a query is sent. What takes several calls of the driver is written once, as *steps*:
  a flow of ``Call``, which the executor itself runs.
* Coordinating collections are read from the primary, written with majority concern and under a time limit, whatever
  the URL says. The cache's collection follows the URL.
* A query has a place in the pool of connections before its time limit begins; see ``places``.
* The driver's own retries stay on. ``direct`` says how the cache's commands go past them.
* During an outage the first call waits for a server, the others don't; see ``reach``, which the store asks.
* What the driver knows of the servers is looked at before the first write and after the first read. A server that is
  too old is refused by name, a standalone one gets its own kind of tokens. No command is sent for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

import bson
import pymongo
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import ReadPreference, ReturnDocument, WriteConcern
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern

from goscope_django.core.flow import Command, Flow, Query, aexecute, arun, execute, invoke, run
from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb.codec import CODEC_OPTIONS, ENTRY_OPTIONS
from goscope_django.mongodb.document.clock import LocalClock, ServerClock
from goscope_django.mongodb.document.failures import (
    FAILURES,
    LEAST_WIRE_VERSION,
    NOT_A_REPLICA_SET,
    READS,
    TYPE_MISMATCH,
    cleaned,
    means,
    plain,
    too_old,
)
from goscope_django.mongodb.driver import sessions, written
from goscope_django.mongodb.driver.direct import DIRECT, Direct, Sessions
from goscope_django.mongodb.driver.limits import RANGE_LIMIT, time_limit
from goscope_django.mongodb.driver.places import Place, TaskPlaces, ThreadPlaces
from goscope_django.mongodb.driver.reach import Reach

CACHE = "go_goscope_cache"

_NOT_NEWEST: Final = ("snapshot", "available")
_UNMET: Final = ("Unknown", "PossiblePrimary")

Steps = Callable[..., Flow[Any]]


class _Calls(dict[tuple[str, str], Callable[..., Any]]):
    """What carries out a query, by collection and method; made at the first one."""

    def __init__(self, prepare: Callable[[str, str], Callable[..., Any]]) -> None:
        self._prepare = prepare

    def __missing__(self, place: tuple[str, str]) -> Callable[..., Any]:
        return self.setdefault(place, self._prepare(*place))


class _Executor:
    """What executors on PyMongo have in common: which function or which steps carry out a query, and for how long.

    ``limit`` is in seconds, for one coordinating query; see ``limits`` for what it is if not given.
    """

    _places: ThreadPlaces | TaskPlaces

    def __init__(self, database: Any, *, limit: float | None = None) -> None:
        self.database = database
        self.limit = time_limit(database) if limit is None else limit
        self.clock = ServerClock(reads_elsewhere=database.read_preference != ReadPreference.PRIMARY)
        options = database.client.options
        bounds = (options.server_selection_timeout, self.limit, options.timeout or self.limit)
        self.reach = Reach(database.client, min(bounds), self._preference)
        self._sessions = Sessions(database.client)
        self._calls = _Calls(self._introduce)

    def _failed(self, place: Place, error: BaseException) -> None:
        """A query failed: give its place back, and raise an error of the driver's without what it quotes."""
        self._places.fail(place, error)
        if isinstance(error, FAILURES):
            raise plain(cleaned(error)) from error.__cause__

    def _preference(self, query: Query[Any]) -> Any:
        """Which servers can answer ``query``, as a read preference."""
        anywhere = query.collection in ("", CACHE) and query.method in READS
        return self.database.read_preference if anywhere else ReadPreference.PRIMARY

    def collection(self, name: str) -> Any:
        """The driver's collection of that name, with the concerns that its kind has."""
        if name == CACHE:
            # Every operation of a cache has an outcome, so an unacknowledged write (w=0) is none of them.
            acknowledged = None if self.database.write_concern.acknowledged else WriteConcern(1)
            return self.database.get_collection(name, codec_options=ENTRY_OPTIONS, write_concern=acknowledged)
        # A snapshot may be older than what a majority has, and not every command takes one.
        level = self.database.read_concern.level
        return self.database.get_collection(
            name,
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
            read_concern=ReadConcern("local") if level in _NOT_NEWEST else None,
        )

    def _introduce(self, name: str, method: str) -> Callable[..., Any]:
        """``_prepare`` until the servers are known."""
        prepared = self._prepare(name, method)
        steps: Steps = partial(self._meet, prepared, writes=method not in READS)
        seconds = self._limit(name, method)
        return self._runner(steps if seconds in (None, RANGE_LIMIT) else _limited(steps, seconds))

    def _meet(self, prepared: Callable[..., Any], *args: Any, writes: bool, **kwargs: Any) -> Flow[Any]:
        if not self._known() and writes:
            yield from invoke(getattr, self.database.client, "is_primary")  # waits for a server, as the write would
            self._known()
        found = yield from invoke(prepared, *args, **kwargs)
        self._known()
        return found

    def _known(self) -> bool:
        """Whether the driver has met a server. Raises ``ServerNotSupported`` if that is too old."""
        topology = self.database.client.topology_description
        met = [one for one in topology.server_descriptions().values() if one.server_type_name not in _UNMET]
        for one in met:
            if one.max_wire_version < LEAST_WIRE_VERSION:
                raise too_old(one.max_wire_version)
        if met:
            if all(one.server_type_name == "Standalone" for one in met):
                self.clock.cluster_time = False
            self._calls = _Calls(self._prepare)
        return bool(met)

    def _prepare(self, name: str, method: str) -> Callable[..., Any]:
        place = self.collection(name) if name else self.database
        seconds = self._limit(name, method)
        if method in DIRECT:
            steps: Steps = getattr(Direct(place, self._sessions), method)
        elif method in _STEPS:
            steps = partial(_STEPS[method], place)
        elif seconds is None and (name != CACHE or method in READS):
            found: Callable[..., Any] = getattr(place, method)
            return found
        else:
            steps = partial(invoke, getattr(place, method))
        if seconds is not None:
            steps = _limited(steps, seconds)
        if seconds == RANGE_LIMIT:
            steps = _once_reached(steps, self.database.client)
        if name == CACHE and method not in READS:
            steps = written.told(steps, method)
        return self._runner(steps)

    def _limit(self, name: str, method: str) -> float | None:
        """Seconds for all of a query, its retries included; ``None`` where the driver's own limits are enough."""
        if name not in ("", CACHE) or method in _ENDS:
            return self.limit
        given: float | None = self.database.client.options.timeout
        if given is not None:
            # For each attempt of ours the driver would begin it anew.
            return given if method in DIRECT else None
        # Millions of entries: the socket's time limit is for answers that come at once. timeoutMS is for all.
        return RANGE_LIMIT if method in _LONG else None

    def _runner(self, steps: Steps) -> Callable[..., Any]:
        """A function that runs ``steps`` with this executor."""
        raise NotImplementedError


class SyncExecutor(_Executor):
    """Executes on a ``pymongo`` ``Database``, on the calling thread."""

    _places: ThreadPlaces

    def __init__(self, database: Any, *, limit: float | None = None) -> None:
        super().__init__(database, limit=limit)
        self._places = ThreadPlaces(database.client, self.limit)

    def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            places = self._places
            place = places.take()  # before any time limit begins
            try:
                found = self._calls[command.collection, command.method](*command.args, **command.kwargs)
            except BaseException as error:
                self._failed(place, error)
                raise
            places.give(place)
            return found
        return execute(command)

    def _step(self, command: Command[Any]) -> Any:
        """Carry out a part of a query, which has its place already."""
        if type(command) is Query:
            return self._calls[command.collection, command.method](*command.args, **command.kwargs)
        return execute(command)

    def _runner(self, steps: Steps) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(steps(*args, **kwargs), self._step)


class AsyncExecutor(_Executor):
    """Executes on a ``pymongo`` ``AsyncDatabase``, in the running event loop."""

    _places: TaskPlaces

    def __init__(self, database: Any, *, limit: float | None = None) -> None:
        super().__init__(database, limit=limit)
        self._places = TaskPlaces(database.client, self.limit)

    async def __call__(self, command: Command[Any]) -> Any:
        if type(command) is Query:
            places = self._places
            place = places.free()
            if place is None:
                place = await places.wait()  # before any time limit begins
            try:
                found = await self._calls[command.collection, command.method](*command.args, **command.kwargs)
            except BaseException as error:
                self._failed(place, error)
                raise
            places.give(place)
            return found
        return await aexecute(command)

    async def _step(self, command: Command[Any]) -> Any:
        """Carry out a part of a query, which has its place already."""
        if type(command) is Query:
            return await self._calls[command.collection, command.method](*command.args, **command.kwargs)
        return await aexecute(command)

    def _runner(self, steps: Steps) -> Callable[..., Any]:
        return lambda *args, **kwargs: arun(steps(*args, **kwargs), self._step)


# What takes several calls of the driver


def _limited(steps: Steps, seconds: float) -> Steps:
    def limited(*args: Any, **kwargs: Any) -> Flow[Any]:
        with pymongo.timeout(seconds):
            return (yield from steps(*args, **kwargs))

    return limited


def _once_reached(steps: Steps, client: Any) -> Steps:
    """``steps`` once a server is found, which is waited for as ever: under a time limit for all it would be for as
    long as that. Sends nothing."""

    def reached(*args: Any, **kwargs: Any) -> Flow[Any]:
        yield from invoke(getattr, client, "is_primary")
        return (yield from steps(*args, **kwargs))

    return reached


def _find(collection: Any, *args: Any, **kwargs: Any) -> Flow[list[Any]]:
    rows: list[Any] = yield from invoke(collection.find(*args, **kwargs).to_list)
    return rows


def _aggregate(collection: Any, *args: Any, **kwargs: Any) -> Flow[list[Any]]:
    cursor = yield from invoke(collection.aggregate, *args, **kwargs)
    rows: list[Any] = yield from invoke(cursor.to_list)
    return rows


def _upserted(
    collection: Any, test: Mapping[str, Any], change: Any, **options: Any
) -> Flow[tuple[Any, Timestamp | None]]:
    """The document as an upsert leaves it, and the server's cluster time then."""
    session = collection.database.client.start_session(causal_consistency=False)
    try:
        found = yield from invoke(
            collection.find_one_and_update,
            test,
            change,
            upsert=True,
            return_document=ReturnDocument.AFTER,
            session=session,
            **options,
        )
        return found, session.operation_time
    finally:
        yield from invoke(session.end_session)


def _confirm(collection: Any, test: Mapping[str, Any]) -> Flow[Any]:
    """A document that no failover takes back: a linearizable read, where the server has such."""
    try:
        return (yield from invoke(collection.with_options(read_concern=ReadConcern("linearizable")).find_one, test))
    except OperationFailure as error:
        if not means(error, NOT_A_REPLICA_SET):
            raise
        return (yield from invoke(collection.find_one, test))


def _estimated_document_count(collection: Any) -> Flow[int]:
    """The server's estimate, from what it knows of the collection: a snapshot has none."""
    local = collection.with_options(read_concern=ReadConcern("local"))
    found: int = yield from invoke(local.estimated_document_count)
    return found


_STEPS: Final[Mapping[str, Steps]] = {
    "find": _find,
    "aggregate": _aggregate,
    "upserted": _upserted,
    "confirm": _confirm,
    "estimated_document_count": _estimated_document_count,
    "transaction": sessions.begin,
    "transactional": sessions.require,
    "commit": sessions.commit,
    "end": sessions.end,
}
"""By the method that a ``Query`` names. The first argument is the collection, of the last four the database."""

_ENDS: Final = ("commit", "end")
_LONG: Final = ("delete_many", "create_index")


# mongomock


def _unpacked(value: Any) -> Any:
    """``value`` without encoded documents, which mongomock can't take."""
    if isinstance(value, RawBSONDocument):
        return bson.decode(value.raw)
    if type(value) is dict:
        return {name: _unpacked(one) for name, one in value.items()}
    return [_unpacked(one) for one in value] if type(value) is list else value


class MockExecutor:
    """Executes on mongomock, in this process, for sync and async. Its clock is this process's."""

    reach: None = None

    def __init__(self, database: Any) -> None:
        self.database = database
        self.clock = LocalClock()
        self._atomic = threading.RLock()  # its findAndModify reads first and writes then

    def __call__(self, command: Command[Any]) -> Any:
        if type(command) is not Query:
            return execute(command)
        own = getattr(self, f"_{command.method}", None)
        place = self.collection(command.collection) if command.collection else self.database
        carry_out = partial(own, place) if own else getattr(place, command.method)
        tells = command.collection == CACHE and command.method not in READS
        try:
            with written.telling(command.method, command.args) if tells else nullcontext(), self._atomic:
                return carry_out(*command.args, **command.kwargs)
        except FAILURES as error:
            cleaned(error)
            raise

    async def asynchronously(self, command: Command[Any]) -> Any:
        """Async version of calling it. A query does not wait: there is nothing to wait for."""
        return self(command) if type(command) is Query else await aexecute(command)

    def collection(self, name: str) -> Any:
        """mongomock's collection of that name."""
        return self.database.get_collection(name, codec_options=self.database.codec_options.with_options(tz_aware=True))

    def _transactional(self, _: Any) -> Any:
        return self._transaction(_)

    def _transaction(self, _: Any) -> Any:
        raise ConfigurationError("mongomock has no transactions: use a real server (embedded://) where one is needed")

    def _find(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.find(*args, **kwargs))

    def _aggregate(self, collection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(collection.aggregate(*args, **kwargs))

    def _many(self, collection: Any, test: Mapping[str, Any], most: int) -> list[Any]:
        return list(collection.find(test))

    def _fresh(
        self, collection: Any, test: Mapping[str, Any], projection: Mapping[str, Any], most: int
    ) -> tuple[list[Any], object]:
        return list(collection.find(test, projection)), None

    def _known_primary(self, _: Any) -> None:
        return None

    def _upserted(
        self, collection: Any, test: Mapping[str, Any], change: Any, **options: Any
    ) -> tuple[Any, Timestamp | None]:
        after = ReturnDocument.AFTER
        return collection.find_one_and_update(test, change, upsert=True, return_document=after, **options), None

    def _confirm(self, collection: Any, test: Mapping[str, Any]) -> Any:
        return collection.find_one(test)

    def _insert_one(self, collection: Any, document: Mapping[str, Any]) -> Any:
        return collection.insert_one(_unpacked(document))

    def _point(self, collection: Any, test: Any, projection: Any = None, sort: Any = None) -> Any:
        return collection.find_one(test, projection or None, sort=sort)

    def _newest(self, collection: Any, test: Mapping[str, Any]) -> Any:
        return collection.find_one(test)

    def _update(
        self, collection: Any, test: Mapping[str, Any], change: Any, *, upsert: bool = False
    ) -> Mapping[str, Any]:
        done = collection.update_one(test, _unpacked(change), upsert=upsert)
        reply = {"n": done.matched_count, "nModified": done.modified_count}
        return reply if done.upserted_id is None else {**reply, "n": 1, "upserted": [{"_id": done.upserted_id}]}

    def _delete(self, collection: Any, *tests: Mapping[str, Any]) -> int:
        return sum(int(collection.delete_one(test).deleted_count) for test in tests)

    def _modify(
        self,
        collection: Any,
        test: Mapping[str, Any],
        change: Any,
        fields: Any = None,
        *,
        upsert: bool = False,
        before: bool = False,
    ) -> Any:
        which = ReturnDocument.BEFORE if before else ReturnDocument.AFTER
        try:
            # It can't look into a list: what was there before comes as a whole.
            shown = None if before else fields
            return collection.find_one_and_update(test, _unpacked(change), shown, upsert=upsert, return_document=which)
        except TypeError as error:  # $inc of what is no number
            raise OperationFailure(type(error).__name__, min(TYPE_MISMATCH)) from None

    def _take(self, collection: Any, test: Mapping[str, Any], fields: Any) -> Any:
        return collection.find_one_and_delete(test, fields)

    def _change_each(
        self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any, bool]]
    ) -> tuple[int, frozenset[int]]:
        matched, made = 0, set()
        for position, (test, change, makes) in enumerate(changes):
            done = collection.update_one(test, change, upsert=makes)
            made |= {position} if done.upserted_id is not None else set()
            matched += 1 if done.upserted_id is not None else done.matched_count
        return matched, frozenset(made)

    def _upsert_many(self, collection: Any, changes: Sequence[tuple[Mapping[str, Any], Any]]) -> list[int]:
        collided = []
        for position, (test, update) in enumerate(changes):
            try:
                collection.update_one(test, _unpacked(update), upsert=True)
            except DuplicateKeyError:
                collided.append(position)
        return collided
