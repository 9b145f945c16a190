"""Servers of other kinds: told by what their answers mean, whatever the code. A proxy makes one server all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.server_api import ServerApi

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import CredentialsRefused, MissingRights, ServerNotSupported, StaleFence
from goscope_django.fencing import afenced_update_one, fenced_update_one
from goscope_django.mongodb import MongoDBAdapter, overview
from goscope_django.mongodb.document import failures
from goscope_django.mongodb.driver import inspection
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy, Rewrite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running


@pytest.fixture
def proxy(server: ReplicaSet) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        yield proxy


@pytest.fixture
def before(server: ReplicaSet, proxy: Proxy, drive: Drive) -> Iterator[Callable[[Rewrite], MongoDBAdapter]]:
    """Makes an adapter before a server whose answers are rewritten."""
    with server.client() as client:
        client.drop_database("others")
    opened: list[Any] = []

    def make(rewrite: Rewrite, *listeners: Any) -> MongoDBAdapter:
        proxy.rewrite(rewrite)
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&serverSelectionTimeoutMS=3000"
        if drive._runner is None:
            client = MongoClient[dict[str, Any]](url, event_listeners=listeners)
            opened.append(client)
            executor = SyncExecutor(client["others"])
            return MongoDBAdapter.on(Store(lambda: executor, None))

        async def made() -> AsyncMongoClient[dict[str, Any]]:
            return AsyncMongoClient[dict[str, Any]](url, event_listeners=listeners)

        native = drive._runner.run(made())
        opened.append(native)
        aexecutor = AsyncExecutor(native["others"])
        return MongoDBAdapter.on(Store(None, lambda: aexecutor))

    yield make
    for one in opened:
        drive._runner.run(one.close()) if drive._runner is not None else one.close()


def refusing(code: int, *words: str) -> Rewrite:
    """The answers of a server that refuses, by ``code``, what has one of ``words`` in it: kept by the test itself."""

    def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
        if name in words:
            return {"ok": 0.0, "code": code, "errmsg": "refused", "codeName": "Refused"}
        return reply

    return rewrite


def recoded(codes: dict[int, int]) -> Rewrite:
    """The answers with other codes in them: of the command and of its statements."""

    def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
        for one in (reply, *reply.get("writeErrors", ())):
            one.update(code=codes.get(one["code"], one["code"])) if "code" in one else None
        return reply

    return rewrite


def of_wire(version: int) -> Rewrite:
    """The answers of a server with another wire version."""

    def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
        return {**reply, "maxWireVersion": version} if "maxWireVersion" in reply else reply

    return rewrite


CALLS: dict[str, Callable[[MongoDBAdapter, Drive], Any]] = {
    "acquire": lambda adapter, drive: drive(adapter.lock, "acquire", "a", 60_000),
    "get": lambda adapter, drive: drive(adapter.cache, "get", "k"),
    "set": lambda adapter, drive: drive(adapter.cache, "set", "k", 1),
    "record": lambda adapter, drive: drive(adapter.circuit_breaker, "record_failure", "c", 3),
    "begin": lambda adapter, drive: drive(adapter.idempotency, "begin", "i", 60_000),
    "save": lambda adapter, drive: drive(adapter.checkpoint, "save", Checkpoint("c", "t", 1, datetime.now(UTC))),
    "connect": lambda adapter, drive: drive(adapter, "connect"),
}
Before = Callable[..., MongoDBAdapter]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("wire", "named"), [(13, "MongoDB 5.0"), (9, "MongoDB 4.4"), (16, "MongoDB 5.3")])
def test_an_old_server_is_refused_by_name(
    wire: int, named: str, call: str, before: Before, drive: Drive, server: ReplicaSet
) -> None:
    adapter = before(of_wire(wire))
    for _ in range(2):
        with pytest.raises(ServerNotSupported, match=f"{named}.* 6.0 or later is needed"):
            CALLS[call](adapter, drive)
    with server.client() as client:
        assert client["others"].list_collection_names() == [], "nothing was written"


@pytest.mark.parametrize("code", sorted(failures.NOT_SUPPORTED))
@pytest.mark.parametrize("call", ["acquire", "set", "record", "begin"])
def test_a_server_that_only_speaks_the_protocol_is_refused_by_name(
    code: int, call: str, before: Before, drive: Drive
) -> None:
    adapter = before(refusing(code, "findAndModify", "update"))
    with pytest.raises(ServerNotSupported, match="updates by a pipeline"):
        CALLS[call](adapter, drive)


@pytest.mark.parametrize("wire", [17, 21, 25, 27])
def test_first_contact_sends_nothing_of_its_own(wire: int, before: Before, drive: Drive) -> None:
    recorder = Recorder()
    adapter = before(of_wire(wire), recorder)
    assert CALLS["acquire"](adapter, drive) is not None
    assert recorder.names == ["findAndModify"]
    recorder.clear()
    CALLS["get"](adapter, drive)
    assert recorder.names == ["find"]


@pytest.mark.parametrize("code", sorted(failures.DUPLICATE_KEY))
def test_a_duplicate_is_one_under_every_code(code: int, before: Before, drive: Drive, server: ReplicaSet) -> None:
    """Entries and locks of Node have an ``_id`` of their own, so what goes by ``_id`` collides with them."""
    adapter = before(recoded({11000: code}))
    drive(adapter, "connect")
    with server.client() as client:
        for name, key in (("cache", "cache:k"), ("locks", "lock:a")):
            client["others"][f"go_goscope_{name}"].insert_one({"key": key, "value": 1, "owner": "node"})
    drive(adapter.cache, "set", "k", 2)
    assert drive(adapter.cache, "get", "k") == 2
    assert drive(adapter.lock, "acquire", "a", 60_000) is None
    claim = drive(adapter.idempotency, "begin", "i", 60_000)
    with server.client() as client:
        client["others"]["go_goscope_idempotency"].insert_one({"key": "i", "value": "node's"})
    assert drive(adapter.idempotency, "complete", "i", claim.token, "ours") is False
    checkpoint = Checkpoint("c", "t", 1, datetime.now(UTC))
    drive(adapter.checkpoint, "save", checkpoint)
    with pytest.raises(Exception, match="exists"):
        drive(adapter.checkpoint, "save", checkpoint)


@pytest.mark.parametrize("code", sorted(failures.NO_CLUSTER_TIME))
def test_a_standalone_server_works_under_either_code(code: int, drive: Drive) -> None:
    """It refuses cluster time, and since MongoDB 8.2 under another code."""
    with replica_set(members=1, standalone=True) as alone, Proxy(alone.ports[0]) as proxy:
        refused = []

        def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
            if reply.get("code") == 51144:
                refused.append(name)
                reply["code"] = code
            return reply

        proxy.rewrite(rewrite)
        url = f"mongodb://127.0.0.1:{proxy.port}/"
        with MongoClient[dict[str, Any]](url) as client:
            native = AsyncMongoClient[dict[str, Any]](url)
            adapter = MongoDBAdapter(client["others"], async_db=native["others"])
            _uses_everything(adapter, drive)
            if drive._runner is not None:
                drive._runner.run(native.close())
        assert len(refused) <= 1, "it is learned at once"


def _uses_everything(adapter: MongoDBAdapter, drive: Drive) -> None:
    handle = drive(adapter.lock, "acquire", "a", 60_000)
    assert handle is not None and drive(handle, "extend", 60_000) is True and drive(handle, "release") is True
    again = drive(adapter.lock, "acquire", "a", 60_000)
    assert again is not None and again.token >= handle.token
    claim = drive(adapter.idempotency, "begin", "i", 60_000)
    assert claim.outcome == "started" and drive(adapter.idempotency, "complete", "i", claim.token, 1) is True
    assert drive(adapter.circuit_breaker, "record_failure", "c", 3) == 1
    drive(adapter.cache, "set", "k", 1)
    assert drive(adapter.cache, "get", "k") == 1
    drive(adapter.checkpoint, "save", Checkpoint("c", "t", 1, datetime.now(UTC)))
    assert drive(adapter.checkpoint, "load_latest", "t") is not None
    drive(adapter, "connect")


class TestStrictApi:
    """Everything that we send is in version 1 of the Stable API."""

    def test_everything_works(self, server: ReplicaSet, drive: Drive) -> None:
        api = ServerApi("1", strict=True, deprecation_errors=True)
        with MongoClient[dict[str, Any]](server.uri, server_api=api) as client:
            client.drop_database("strict")
            native = AsyncMongoClient[dict[str, Any]](server.uri, server_api=api)
            adapter = MongoDBAdapter(client["strict"], async_db=native["strict"])
            _uses_everything(adapter, drive)
            drive(adapter, "ensure_indexes", repair=True)
            assert drive(adapter.cache, "keys") == ["k"] and drive(adapter.cache, "clear") == 1
            assert drive(adapter.lock, "list") and drive(adapter.circuit_breaker, "list")
            assert drive(adapter.checkpoint, "tasks") == ["t"] and drive(adapter.checkpoint, "delete_all", "t") == 1
            if drive._runner is not None:
                drive._runner.run(native.close())


class TestOptions:
    """Options of the URL that once broke something."""

    @pytest.mark.parametrize("level", ["snapshot", "available", "majority", "linearizable"])
    def test_read_concerns_break_nothing(self, level: str, server: ReplicaSet, drive: Drive) -> None:
        url = server.uri + f"&readConcernLevel={level}"
        with MongoClient[dict[str, Any]](url) as client:
            client.drop_database("read")
            native = AsyncMongoClient[dict[str, Any]](url)
            adapter = MongoDBAdapter(client["read"], async_db=native["read"])
            _uses_everything(adapter, drive)
            assert adapter.store.run(overview.cache_size) == 1
            assert not [one for one in adapter.store.run(inspection.view, "read").findings if one.fatal]
            if drive._runner is not None:
                drive._runner.run(native.close())

    @pytest.mark.parametrize("upsert", [False, True])
    def test_a_fenced_update_is_confirmed_whatever_w_is(self, upsert: bool, server: ReplicaSet, drive: Drive) -> None:
        with MongoClient[dict[str, Any]](server.uri + "&w=0") as client:
            native = AsyncMongoClient[dict[str, Any]](server.uri + "&w=0")
            with server.client() as confirmed:
                confirmed["fence"]["things"].delete_many({})
                confirmed["fence"]["things"].insert_one({"_id": 1})

            def write(token: int) -> Any:
                change = {"$set": {"by": token}}
                if drive._runner is None:
                    return fenced_update_one(client["fence"]["things"], {"_id": 1}, change, token, upsert=upsert)

                async def there() -> Any:
                    things = native["fence"]["things"]
                    return await afenced_update_one(things, {"_id": 1}, change, token, upsert=upsert)

                return drive._runner.run(there())

            assert write(5).matched_count == 1
            with pytest.raises(StaleFence):
                write(4)
            assert write(6).modified_count == 1
            if drive._runner is not None:
                drive._runner.run(native.close())


def test_a_look_sends_a_known_number_of_commands(server: ReplicaSet) -> None:
    recorder = Recorder()
    with MongoClient[dict[str, Any]](server.uri, event_listeners=[recorder]) as client:
        client.drop_database("look")
        adapter = MongoDBAdapter(client["look"])
        adapter.connect()
        recorder.clear()
        seen = adapter.store.run(inspection.view, "look")
        first = [name for name in recorder.names if name != "listIndexes"]
        assert first == ["buildInfo", "connectionStatus", "aggregate", "explain"]
        assert [one.kind for one in seen.findings] == ["end of life"]
        recorder.clear()
        adapter.store.run(inspection.view, "look")
        assert [name for name in recorder.names if name != "listIndexes"] == ["buildInfo", "connectionStatus"]


def test_a_refused_write_quotes_no_value(before: Before, drive: Drive) -> None:
    """The server's message quotes the whole command."""

    def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
        if name in ("update", "findAndModify"):
            said = f'not authorized on others to execute command {{ {name}: "go_goscope_cache", u: "hunter2" }}'
            return {"ok": 0.0, "code": 13, "errmsg": said, "codeName": "Unauthorized"}
        return reply

    adapter = before(rewrite)
    with pytest.raises(
        MissingRights, match="find, insert and update in go_goscope_cache, in the database 'others'"
    ) as caught:
        drive(adapter.cache, "set", "k", "hunter2")
    assert "hunter2" not in str(caught.value) and "grantRolesToUser" in str(caught.value)


@pytest.mark.parametrize("code", sorted(failures.REFUSED_CREDENTIALS))
def test_refused_credentials_are_told_by_every_code(code: int, before: Before, drive: Drive) -> None:
    adapter = before(refusing(code, "find"))
    with pytest.raises(CredentialsRefused, match="refuses the user or the password"):
        drive(adapter.cache, "get", "k")
