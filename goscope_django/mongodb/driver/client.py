"""PyMongo's clients: one for each process and URL, and an asynchronous one for each event loop.

Rules of this file:

* Clients are made on first use and closed here, never by their users (Django makes a cache object for each thread and
  task). A process's clients are closed when it ends, an event loop's when that loop ends.
* After a fork the child starts without clients. It never uses or closes its parent's. It keeps a reference to them, so
  that the garbage collector does not close them either.
* Options of the URL and ``CLIENT_OPTIONS`` go before our defaults, which only limit how long to wait for a server.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pymongo
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import InvalidURI, PyMongoError

from goscope_django.core.forking import at_fork
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb import embedded
from goscope_django.mongodb.document.indexes import IndexState, ensure
from goscope_django.mongodb.driver import loops
from goscope_django.mongodb.driver.execute import AsyncExecutor, MockExecutor, SyncExecutor
from goscope_django.mongodb.driver.inspection import ServerView, mock_view, view
from goscope_django.mongodb.driver.reach import Reach
from goscope_django.mongodb.driver.revival import Revival
from goscope_django.mongodb.driver.store import Sink, Store
from goscope_django.mongodb.driver.urls import Hidden, Options, Target, parse, without_secrets

C = TypeVar("C")

DEFAULTS: Final[Mapping[str, Any]] = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 20_000,
    "maxConnecting": 4,
    "appname": "goscope_django",
}


class Connection:
    """The executors of one URL and its options in this process: a synchronous one and one for each event loop."""

    def __init__(self, target: Target, options: Mapping[str, Any]) -> None:
        self.target = target
        self._options = options
        self._seen = (f"{target.place}:{target.arguments.get('port', '')}", target.database)
        self._lock = threading.RLock()
        self._executor: SyncExecutor | MockExecutor | None = None
        self._client: MongoClient[Any] | None = None
        self._revival: Revival | None = None
        self._loops = loops.LoopClients(lambda: self._new(AsyncMongoClient), target.database, target.place)

    def __repr__(self) -> str:
        return f"<connection to {self.target.shown}>"

    def _arguments(self, defaults: Mapping[str, Any]) -> tuple[str, Options]:
        given = {name.lower() for name in self._options} | self.target.options
        options = Options((name, value) for name, value in defaults.items() if name.lower() not in given)
        said = {name.lower() for name in self._options}
        options.update({name: value for name, value in self.target.arguments.items() if name.lower() not in said})
        options.update(self._options)
        place = self.target.place
        if self.target.scheme == "embedded":
            self._revival = _private_server(place)
            place = self._revival.mongod.uri
            options["event_listeners"] = [*(options.get("event_listeners") or ()), self._revival]
        if place.startswith("mongodb+srv:"):
            # So a name server that can't be reached is an error at each use, as a server is, and not here.
            options.setdefault("connect", False)
        return place, options

    def client(self, **more: Any) -> MongoClient[Any]:
        """A new synchronous client that the caller closes."""
        return self._new(MongoClient, {**DEFAULTS, **more})

    def _new(self, kind: Callable[..., C], defaults: Mapping[str, Any] = DEFAULTS) -> C:
        made = self._made(kind, defaults)
        if isinstance(made, ConfigurationError):
            raise made
        return made

    def _made(self, kind: Callable[..., C], defaults: Mapping[str, Any]) -> C | ConfigurationError:
        place, options = self._arguments(defaults)
        try:
            return kind(place, **options)
        except (InvalidURI, DriverConfigurationError, TypeError, ValueError, OSError) as error:
            # Returned: the driver's functions, through which this error went, hold the password.
            return self._refused(error)

    def check(self) -> None:
        """Raise ``ConfigurationError`` for ``CLIENT_OPTIONS`` that the driver refuses. Opens nothing."""
        if self.target.scheme == "mongodb" and not self.target.place.startswith("mongodb+srv:"):
            self.client(connect=False).close()

    def _refused(self, error: Exception) -> ConfigurationError:
        text = without_secrets(str(error), self.target.place)
        for name, value in {**self.target.arguments, **self._options}.items():
            if "pass" in name.lower() and str(value) in text:
                text = f"{name} can't be used"
        return ConfigurationError(f"{self.target.shown}: PyMongo refuses this URL or CLIENT_OPTIONS: {text[:300]}")

    def sync(self) -> SyncExecutor | MockExecutor:
        """The executor of this process. Raises ``StoreUnavailable`` for a private server that can't be started."""
        if self._revival is not None:
            self._revival.complain()
        executor = self._executor
        if executor is None:
            with self._lock:
                executor = self._executor
                if executor is None:
                    if self.target.scheme == "mongomock":
                        executor = self._mock()
                    else:
                        self._client = self.client()
                        executor = SyncExecutor(self._client[self.target.database])
                    self._executor = executor
        return executor

    def _mock(self) -> MockExecutor:
        try:
            import mongomock
        except ImportError as error:
            raise ConfigurationError(
                f"{self.target.shown}: mongomock is not installed; pip install mongomock (for tests only)"
            ) from error
        executor = MockExecutor(mongomock.MongoClient()[self.target.database])
        if not self.pending:  # what was made before went with the client that had it
            Store(lambda: executor, None).run(ensure)
        return executor

    @property
    def opened(self) -> bool:
        """Whether this process has a synchronous client already."""
        return self._executor is not None

    def reaches(self) -> list[Reach]:
        """What this process's clients know of the server, each that is open."""
        found = [one.reach for one in self._loops.executors()]
        return found if self._executor is None or self._executor.reach is None else [self._executor.reach, *found]

    def asynchronous(self) -> AsyncExecutor | MockExecutor:
        """The executor of the running event loop. Raises as ``sync`` does."""
        if self._revival is not None:
            self._revival.complain()
        if self.target.scheme == "mongomock":
            executor = self.sync()
            assert isinstance(executor, MockExecutor)
            return executor
        return self._loops.current()

    @property
    def pending(self) -> bool:
        """Whether neither this process nor the one it was forked from has made the indexes yet."""
        return self._seen not in _prepared

    def prepared(self) -> None:
        """Note that the indexes need not be made any more."""
        _prepared.add(self._seen)

    def prepare(self, seconds: float) -> list[IndexState]:
        """Connect, make missing indexes, and disconnect again: no client and no thread is left.

        Takes at most ``seconds`` if the server can't be reached, then raises ``StoreUnavailable``. Raises
        ``IndexConflict``.
        """
        with self.briefly(seconds) as store:
            states = store.run(ensure)
        self.prepared()
        return states

    def inspect(self, seconds: float) -> ServerView:
        """Connect, ask what the server is, and disconnect again; errors as for ``prepare``. Changes nothing."""
        with self.briefly(seconds) as store:
            seen = mock_view if self.target.scheme == "mongomock" else view
            return store.run(seen, self.target.database)

    @contextmanager
    def briefly(self, seconds: float) -> Iterator[Store]:
        """A store on a client of its own that is closed afterwards; all of it takes at most ``seconds``."""
        if self.target.scheme == "mongomock":
            yield Store(self.sync, None)
            return
        seconds *= 0.8  # the rest is for disconnecting from a server that hangs
        milliseconds, before = int(seconds * 900), frozenset(threading.enumerate())
        client = self.client(serverSelectionTimeoutMS=milliseconds, connectTimeoutMS=milliseconds)
        try:
            executor = SyncExecutor(client[self.target.database], limit=seconds)
            with pymongo.timeout(seconds):
                yield Store(lambda: executor, None)
        finally:
            close(client)
            _leaving.extend(one for one in threading.enumerate() if one not in before and "pymongo" in one.name)

    def close(self) -> None:
        """Close the synchronous client. The next use opens a new one."""
        with self._lock:
            client, self._client, self._executor = self._client, None, None
        if client is not None:
            close(client)

    async def aclose(self) -> None:
        """Close the running event loop's client."""
        await self._loops.aclose()

    def abandoned(self) -> list[object]:
        """What a forked child must keep from the collector, the client first."""
        return [self._client, self._executor, self._loops]


def close(client: MongoClient[Any]) -> None:
    """Close ``client`` within a second, whether or not its server can be reached."""
    try:
        with pymongo.timeout(loops.CLOSING_TIME):
            client.close()
    except PyMongoError:
        pass


def _see_off() -> None:
    """Before a fork: wait for the threads of clients that were just closed. They take up to half a second to end."""
    deadline = time.monotonic() + loops.CLOSING_TIME
    while _leaving:
        _leaving.pop().join(max(0.0, deadline - time.monotonic()))


def _private_server(folder: str) -> Revival:
    """The private server over ``folder``, which this process starts or joins once, and leaves at its exit."""
    with _lock:
        found = _servers.get(folder)
        if found is None:
            found = _servers[folder] = Revival(embedded.start(folder))
        return found


_servers: dict[str, Revival] = {}
_epoch = 0
_prepared: set[tuple[str, str]] = set()
_connections: dict[tuple[str, str], Connection] = {}
_abandoned: list[object] = []
_leaving: list[threading.Thread] = []
_lock = threading.RLock()


def connection(
    url: str | Target, options: Mapping[str, Any] | None = None, *, what: str = "URL", base: Path | None = None
) -> Connection:
    """This process's connection for ``url`` and ``options`` (keyword arguments of ``MongoClient``). Opens nothing yet.

    ``url`` may be a target that is known already. Raises ``ConfigurationError`` for a URL that is not allowed.
    """
    url = url if isinstance(url, Target) else Hidden(url)
    given = Options(options or {})
    more = url.arguments if isinstance(url, Target) else {}
    if isinstance(url, Target):
        name = Hidden(f"{url.shown}|{url.place}|{url.database}")
    else:
        name = Hidden(f"{url}|{base}") if url.startswith("embedded:") else url
    key = (name, Hidden(repr((sorted(given.items()), sorted(more.items())))) if given or more else "")
    found = _connections.get(key)
    if found is None:
        target = url if isinstance(url, Target) else parse(url, what, base=base)
        with _lock:
            found = _connections.setdefault(key, Connection(target, given))
    return found


def store(url: str, options: Mapping[str, Any] | None = None, *, sink: Sink | None = None, **more: Any) -> Store:
    """A store on ``url`` whose clients are this registry's."""
    return Store(
        lambda: connection(url, options, **more).sync(),
        lambda: connection(url, options, **more).asynchronous(),
        sink=sink,
    )


def close_all() -> None:
    """Close all synchronous clients of this process and leave its private servers. The next use opens new ones."""
    for one in list(_connections.values()):
        one.close()
    with _lock:
        servers = list(_servers.values())
        _servers.clear()
    for server in servers:
        server.mongod.release()


def epoch() -> int:
    """A number that changes in a forked child. Who keeps a connection compares it: the parent's can't be used there."""
    return _epoch


def _forget_parent() -> None:
    global _lock, _epoch
    _epoch += 1
    _lock = threading.RLock()
    for one in _connections.values():
        left = one.abandoned()
        _abandoned.append(left)
        client = left[0]
        if client is not None:
            # Only a mark: else the driver would warn, at the end of the child, of a client that was not closed.
            setattr(client, "_opened", False)  # noqa: B010
    _abandoned.append(dict(_connections))
    left_behind = loops.abandon()
    for loop_client in left_behind:
        setattr(loop_client.client, "_opened", False)  # noqa: B010
    _abandoned.append(left_behind)
    _connections.clear()
    _servers.clear()
    # A reference that is never given back: else the child's end would finalize its parent's clients, with warnings.
    with suppress(Exception):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_abandoned))


def _close_all_at_exit() -> None:
    with suppress(GoscopeError):  # embedded tries again to leave the server, and logs if it can't
        close_all()


at_fork(before=_see_off, child=_forget_parent)
atexit.register(_close_all_at_exit)
