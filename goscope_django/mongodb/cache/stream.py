"""One change stream over the cache's collection: who keeps entries in this process learns which of them have changed.

Rules of this file:

* It brings ``_id``, kind and time of each change, never a value. The server leaves out other prefixes. Entries of Node
  have an ObjectId, which says nothing of their prefix, so all of these come.
* ``proof`` is an instant (of ``tick``) up to which all changes that a majority has are known here: that at which the
  request was sent which was answered by an empty batch, or the server's time of the last change. That nothing came is
  none: the connection may hang. Nor is an empty batch one while the server's majority does not get on.
* A change is told before the proof moves on. Whoever looks at the proof first and then at what it keeps is right.
* A stream that breaks, ends, falls too far behind or comes from another primary begins anew, and what was kept until
  then is forgotten. It is never resumed: a write that was rolled back is told to nobody.
* It begins where the majority was when it was opened, so nothing that a later read on the primary sees is missing.
* The thread is a daemon. It begins at the first use and ends after ``IDLE`` seconds without one, with its client, or
  with the process. A forked child begins its own.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, Protocol

import pymongo
from bson.objectid import ObjectId
from bson.timestamp import Timestamp
from pymongo import ReadPreference
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError

from goscope_django.core.forking import at_fork
from goscope_django.core.ticks import tick
from goscope_django.exceptions import GoscopeError
from goscope_django.mongodb.codec import ENTRY_OPTIONS
from goscope_django.mongodb.document.expressions import prefix_range
from goscope_django.mongodb.document.failures import MISSING_RIGHTS, NO_CHANGE_STREAMS, NOT_SUPPORTED, means
from goscope_django.mongodb.driver import limits
from goscope_django.mongodb.driver.client import Connection
from goscope_django.mongodb.driver.direct import primary
from goscope_django.mongodb.driver.execute import CACHE, MockExecutor, SyncExecutor

logger = logging.getLogger("goscope.near")

IDLE: Final = 300.0
"""Seconds without a use after which the stream is closed."""

RETRY: Final = 300.0
"""Seconds after which a server without change streams is asked again: the user's rights may have changed."""

_LONGEST_WAIT: Final = 1.0
"""Seconds that one request waits at the server. It uses a connection of the pool for that long."""

_SHORTEST_WAIT: Final = 0.02
"""However small ``max_stale`` is, the server is not asked without end. Entries then serve less often, never longer."""

_PAUSES: Final = (0.05, 5.0)
"""Seconds between two attempts to open it: the first one, and the longest."""

_GATHER: Final = 0.008
"""Seconds between two requests while changes come one soon after the other. Each request costs this process and the
server more than ten changes do, so some are gathered. A change that comes alone is told at once."""

_SPARE: Final = 4
"""Connections that a pool must have at least for the stream to use one of them. From a smaller one it would take too
much, so it gets a client of its own."""

_STATED: Final = 2.0
"""Seconds for which a statement of the server's time is used."""

_FAREWELL: Final = 0.3
"""Seconds that closing it at the end of the process may take."""

CATCH_UP: Final = 0.25
"""Seconds that who keeps entries may take to read again what was changed, at most."""

_CHANGES: Final = ("insert", "update", "replace", "delete")
_NEVER: Final = float("-inf")
_ALWAYS: Final = float("inf")

Id = str | ObjectId


class Watcher(Protocol):
    """Who keeps entries. It is told on the stream's thread and never raises. It answers at once, unless said
    otherwise."""

    max_stale: float

    def changed(self, name: Id) -> None:
        """The document with this ``_id`` was made, changed or removed."""

    def emptied(self) -> None:
        """Any document may have changed."""

    def catch_up(self, executor: SyncExecutor) -> None:
        """All changes that have come were told. It may send a command, and takes the time of one."""


class _NoStreams(Exception):
    """The server has no change streams, or none for this user."""


class _Over(Exception):
    """The stream has to begin anew."""


class ChangeStream:
    """The stream of one connection and one prefix of stored keys in this process.

    ``generation`` is that of the stream that is open, 0 while none is. ``alone``: there are no change streams, so who
    keeps entries has to go by time alone; ``proof`` is then always new enough. ``served`` is the primary that it comes
    from.
    """

    def __init__(self, connection: Callable[[], Connection], prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self._generations = 0
        self._watchers: tuple[Watcher, ...] = ()
        self.alone = False
        self.events = 0
        """Changes that were told, since the process began."""
        self.breaks = 0
        """How often it began anew."""
        self.begin_anew()
        _all.append(self)

    def begin_anew(self) -> None:
        """In a forked child, which has no thread yet."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._running = False
        self._following: _Following | None = None
        self._used = tick()
        self._again = _NEVER
        self.served: object = None
        self._shut()

    def _shut(self) -> None:
        self.proof = _ALWAYS if self.alone else _NEVER
        self.generation = 0

    # For who keeps entries

    def watch(self, watcher: Watcher) -> None:
        """From now on tell ``watcher``."""
        self._watchers = (*self._watchers, watcher)

    def used(self) -> None:
        """Somebody wants to keep an entry: see to it that the stream is open, or soon will be. Waits for nothing."""
        self._used = tick()
        if not self._running and self._used >= self._again:
            self._start()

    @property
    def last_used(self) -> float:
        """When (by ``tick``) somebody last wanted to keep an entry."""
        return self._used

    @property
    def wait(self) -> float:
        """Seconds that one request may wait at the server: a third of the least ``max_stale``, so that a proof is at
        most two thirds old when the next one comes; ``_SHORTEST_WAIT`` at least."""
        least = min((one.max_stale for one in self._watchers), default=1.0)
        return max(_SHORTEST_WAIT, min(_LONGEST_WAIT, least / 3))

    def _start(self) -> None:
        with self._lock:
            if self._running or self._stopping.is_set() or sys.is_finalizing():
                return
            self._running = True
            thread = threading.Thread(target=self._work, name="goscope-near", daemon=True)
            with suppress(RuntimeError):  # the interpreter ends
                thread.start()
                return
            self._running = False

    def stop(self) -> None:
        """Close it and let its thread end. Takes at most ``_FAREWELL`` seconds. The next use opens it again."""
        with self._lock:
            stopping, self._stopping = self._stopping, threading.Event()
            self._running = False
            stopping.set()
        following = self._following
        self._shut()
        self._tell_emptied()
        if following is not None:
            following.kill()

    # The thread

    def _work(self) -> None:
        stopping = self._stopping
        try:
            self._go_on(stopping)
        finally:
            with self._lock:
                if not stopping.is_set():
                    self._running = False
            if not stopping.is_set():
                self._break()

    def _go_on(self, stopping: threading.Event) -> None:
        """Follow one stream after the other until nobody uses them, or there are none."""
        pause = _PAUSES[0]
        while not stopping.is_set():
            opened = self._generations
            try:
                self._follow(stopping)
                break
            except _NoStreams as error:
                if not stopping.is_set():
                    self._go_alone(str(error))
                break
            except InvalidOperation:  # somebody has closed the client: the next use opens another one
                break
            except (PyMongoError, GoscopeError, _Over, OSError) as error:
                if not stopping.is_set():
                    logger.debug("the change stream of the near cache begins anew: %s", type(error).__name__)
            except Exception:
                if stopping.is_set() or sys.is_finalizing():
                    return
                logger.exception("the change stream of the near cache begins anew")
            if stopping.is_set():
                return
            self._break()
            pause = _PAUSES[0] if self._generations != opened else min(_PAUSES[1], pause * 2)
            stopping.wait(pause)

    def _break(self) -> None:
        """What was kept until now can't be trusted any more."""
        was_open = self.generation
        self._shut()
        if was_open:
            self.breaks += 1
        self._tell_emptied()

    def _tell_emptied(self) -> None:
        for one in self._watchers:
            one.emptied()

    def _go_alone(self, why: str) -> None:
        if not self.alone:
            logger.warning("the near cache goes by time alone: %s", why)
        self.alone, self._again = True, tick() + RETRY

    def _follow(self, stopping: threading.Event) -> None:
        """Open a stream and tell what it brings, until nobody has used it for long. Raises whatever ends it."""
        with self._opened(stopping) as (following, executor):
            while not stopping.is_set():
                if tick() - self._used > IDLE:
                    return
                if following.wait != self.wait:
                    raise _Over  # somebody who may lag less has come
                following.step()
                if not following.brought_all():
                    continue
                with limits.within(min(CATCH_UP, following.wait / 2)):  # meanwhile nothing is proved
                    for one in self._watchers:
                        one.catch_up(executor)
                if (pause := following.pause()) > 0:
                    stopping.wait(pause)

    @contextmanager
    def _opened(self, stopping: threading.Event) -> Iterator[tuple[_Following, SyncExecutor]]:
        connection = self._connection()
        executor = connection.sync()
        if isinstance(executor, MockExecutor):
            raise _NoStreams("mongomock has no change streams")
        own = None
        size = executor.database.client.options.pool_options.max_pool_size
        if size and size < _SPARE:
            own = connection.client(maxPoolSize=1)
        database = executor.database if own is None else own[executor.database.name]
        try:
            following = _Following(self, database)
            try:
                with self._lock:
                    if stopping.is_set():
                        return
                    self.alone, self.served, self._following = False, following.served, following
                    # What was kept by time alone may not serve by a proof.
                    self._shut()
                    self._tell_emptied()
                    # Before anything can be proved, and after the stream's beginning: what is read from now on may be
                    # kept.
                    self._generations += 1
                    self.generation = following.generation = self._generations
                yield following, executor
            finally:
                if self._following is following:
                    self._following = None
                following.close()
        finally:
            if own is not None:
                own.close()

    def told(self, name: Id) -> None:
        """A change has come."""
        self.events += 1
        for one in self._watchers:
            one.changed(name)

    def proved(self, generation: int, instant: float) -> None:
        """All changes up to ``instant`` were told by the stream of this generation."""
        if generation == self.generation:
            self.proof = instant

    @property
    def prefix(self) -> str:
        """What the stored keys begin with that it tells of."""
        return self._prefix


class _Following:
    """A stream that is open."""

    def __init__(self, stream: ChangeStream, database: Any) -> None:
        self.generation = 0
        self._stream = stream
        self._database = database
        self._client = database.client
        self.wait = stream.wait
        self._session = self._client.start_session(causal_consistency=False)
        self._sharded = False
        self._stated: tuple[float, datetime] | None = None
        self._uncommitted: tuple[Timestamp, float] | None = None
        self._late_since: float | None = None
        self._brought = False
        self._emptied_at = _NEVER
        try:
            self._cursor = self._open()
        except OperationFailure as error:
            self.close()
            if means(error, NO_CHANGE_STREAMS) or means(error, NOT_SUPPORTED):
                raise _NoStreams("the server has no change streams") from error
            if means(error, MISSING_RIGHTS):
                raise _NoStreams("the user may not open a change stream") from error
            raise
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        # From where the majority is. The server's own choice is its last operation, behind which an earlier one may
        # still become visible.
        seen = self._command({"find": CACHE, "limit": 1, "projection": {"_id": True}, "singleBatch": True})
        begin = seen.get("operationTime")
        self.served = primary(self._client)
        kinds = {one.server_type_name for one in self._client.topology_description.server_descriptions().values()}
        self._sharded = "Mongos" in kinds
        if begin is None:
            raise _NoStreams("a standalone server has no change streams")
        limits = [
            one for one in (self._client.options.pool_options.socket_timeout, self._client.options.timeout) if one
        ]
        wait = min([self.wait, *(limit / 2 for limit in limits)])
        cursor = self._database.cursor_command(
            {"aggregate": CACHE, "pipeline": _pipeline(self._stream.prefix, begin), "cursor": {"batchSize": 0}},
            read_preference=ReadPreference.PRIMARY,
            codec_options=ENTRY_OPTIONS,
            session=self._session,
            max_await_time_ms=max(1, int(wait * 1_000)),
        )
        if not cursor.alive:  # a router has no cursor for a database that is not there yet
            raise _Over
        self._sure_primary()
        return cursor

    def _command(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._database.command(
            {**command, "readConcern": {"level": "majority"}},
            read_preference=ReadPreference.PRIMARY,
            codec_options=ENTRY_OPTIONS,
            session=self._session,
        )
        return found

    def _sure_primary(self) -> None:
        if primary(self._client) != self.served:
            raise _Over

    def step(self) -> None:
        """Take the next change, or wait for one; then say what is proved."""
        stream, sent = self._stream, tick()
        event = self._cursor.try_next()
        if event is None:
            if not self._cursor.alive:
                raise _Over
            self._sure_primary()
            self._late_since = None
            if self._committed(sent):
                stream.proved(self.generation, sent)
            return
        if event.get("operationType") not in _CHANGES:
            raise _Over  # dropped or renamed
        stream.told(event["documentKey"]["_id"])
        self._brought = True
        proved = self._instant_of(event.get("wallTime"))
        if proved is not None:
            proved = min(proved, sent)
            self._not_too_late(proved, sent)
            if proved > stream.proof:
                self._sure_primary()
                stream.proved(self.generation, proved)

    def brought_all(self) -> bool:
        """Whether changes have come since this was asked, and all that have come were told."""
        # A driver that keeps what it has fetched elsewhere is never waited for.
        if not self._brought or getattr(self._cursor, "_data", True):
            return False
        self._brought = False
        return True

    def pause(self) -> float:
        """For how many seconds to wait before the next request, so that changes which come one soon after the other
        are brought together. It is asked when all that have come were told."""
        before, self._emptied_at = self._emptied_at, tick()
        gather = min(_GATHER, self.wait / 4)
        return gather if self._emptied_at - before < 2 * gather else 0.0

    def _committed(self, sent: float) -> bool:
        """Whether the majority has got on in the last ``max_stale`` seconds: with an arbiter and too few members with
        data a primary takes writes, and its stream shows none of them."""
        if self._sharded:  # a router's times are those of several sets
            return True
        cluster, done = self._session.cluster_time, self._session.operation_time
        newest = cluster and cluster.get("clusterTime")
        if newest is None or done is None:
            return True
        if self._uncommitted is None or done >= self._uncommitted[0]:
            self._uncommitted = None if done >= newest else (newest, sent)
        return self._uncommitted is None or sent - self._uncommitted[1] < 3 * self.wait

    def _instant_of(self, written: Any) -> float | None:
        """When, by our ``tick``, the server's clock showed ``written``, or somewhat earlier."""
        if self._sharded or not isinstance(written, datetime):  # the shards' clocks may differ
            return None
        sent = tick()
        if self._stated is None or sent - self._stated[0] > _STATED:
            if sent - self._stream.proof < self.wait:
                return None  # there is a proof that is new enough, and another one will come
            now = self._command_time()
            if not isinstance(now, datetime):
                return None
            self._stated = sent, now
        return self._stated[0] - (self._stated[1] - written).total_seconds()

    def _command_time(self) -> Any:
        return self._database.command(
            {"hello": 1}, read_preference=ReadPreference.PRIMARY, codec_options=ENTRY_OPTIONS
        ).get("localTime")

    def _not_too_late(self, proved: float, sent: float) -> None:
        """To begin anew is cheaper than to go through very many changes, while nothing that is kept may serve."""
        late = 6 * self.wait
        if sent - proved < late:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = sent
        elif sent - self._late_since > late:
            raise _Over

    def close(self) -> None:
        """Close the cursor, if the server can be reached."""
        cursor = getattr(self, "_cursor", None)
        with suppress(Exception), pymongo.timeout(_FAREWELL):
            if cursor is not None and primary(self._client) == self.served:
                cursor.close()
            elif cursor is not None:
                # Only a mark: else the driver would try to close it at a server that is gone, and warn of that.
                setattr(cursor, "_killed", True)  # noqa: B010
        with suppress(Exception):
            self._session.end_session()

    def kill(self) -> None:
        """Let the server end it, from another thread, so that a request that waits there is answered."""
        name = self._cursor.cursor_id
        if not name or primary(self._client) is None:
            return
        with suppress(Exception), pymongo.timeout(_FAREWELL):
            self._database.command({"killCursors": CACHE, "cursors": [name]})


def _pipeline(prefix: str, begin: Timestamp) -> list[Mapping[str, Any]]:
    ours = [{"documentKey._id": prefix_range(prefix)}, {"documentKey._id": {"$type": "objectId"}}]
    return [
        {"$changeStream": {"startAtOperationTime": begin}},
        {"$match": {"$or": [{"operationType": {"$nin": list(_CHANGES)}}, *ours]}},
        {"$project": {"operationType": True, "documentKey._id": True, "wallTime": True}},
    ]


_all: Final[list[ChangeStream]] = []
_found: Final[dict[tuple[str, str], ChangeStream]] = {}


def stream(place: str, prefix: str, connection: Callable[[], Connection]) -> ChangeStream:
    """This process's stream for the stored keys that begin with ``prefix`` at ``place`` (a URL). Opens nothing yet."""
    found = _found.get((place, prefix))
    return found if found is not None else _found.setdefault((place, prefix), ChangeStream(connection, prefix))


def stop_all() -> None:
    """Close all streams of this process. The next use opens them again."""
    for one in _all:
        one.stop()


def _after_fork() -> None:
    for one in _all:
        one.begin_anew()


at_fork(child=_after_fork)
atexit.register(stop_all)
