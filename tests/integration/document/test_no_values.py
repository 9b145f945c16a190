"""No error's text holds a stored value, nor does the driver's error that is chained to it, whatever the server says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from goscope_django.contracts import Checkpoint, CircuitBreakerState
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.document import failures
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.testing.conformance.base import Drive
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy
from tests.support.quoting import CANARY, OURS, VALUE, quoting
from tests.support.texts import chain, texts

pytestmark = pytest.mark.slow

NAME = "valued"


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as running:
        yield running


@pytest.fixture
def database(server: ReplicaSet) -> Iterator[Any]:
    """The database, not through the proxy; new."""
    with server.client() as client:
        client.drop_database(NAME)
        yield client[NAME]
        client.admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture
def proxy(server: ReplicaSet) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        yield proxy


@pytest.fixture
def adapter(proxy: Proxy, drive: Drive, database: Any) -> Iterator[MongoDBAdapter]:
    url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&serverSelectionTimeoutMS=500&appname=valued"
    if drive._runner is None:
        with MongoClient[dict[str, Any]](url) as client:
            executor = SyncExecutor(client[NAME], limit=0.5)
            yield MongoDBAdapter.on(Store(lambda: executor, None))
        return

    async def made() -> AsyncMongoClient[dict[str, Any]]:
        return AsyncMongoClient[dict[str, Any]](url)

    native = drive._runner.run(made())
    aexecutor = AsyncExecutor(native[NAME], limit=0.5)
    yield MongoDBAdapter.on(Store(None, lambda: aexecutor))
    drive._runner.run(native.close())


def _saved(adapter: MongoDBAdapter, drive: Drive) -> Any:
    return drive(adapter.checkpoint, "save", Checkpoint("c", "t", 1, datetime.now(UTC), data=VALUE))


def _completed(adapter: MongoDBAdapter, drive: Drive) -> Any:
    claim = drive(adapter.idempotency, "begin", "i", 60_000, CANARY)
    return drive(adapter.idempotency, "complete", "i", claim.token, VALUE)


CALLS: dict[str, Callable[[MongoDBAdapter, Drive], Any]] = {
    "lock": lambda adapter, drive: drive(adapter.lock, "acquire", "a", 60_000),
    "cache get": lambda adapter, drive: drive(adapter.cache, "get", "k"),
    "cache set": lambda adapter, drive: drive(adapter.cache, "set", "k", VALUE),
    "cache delete": lambda adapter, drive: drive(adapter.cache, "delete", "k"),
    "circuit": lambda adapter, drive: drive(adapter.circuit_breaker, "record_failure", "c", 3),
    "circuit state": lambda adapter, drive: drive(adapter.circuit_breaker, "set_state", "c", CircuitBreakerState()),
    "idempotency": _completed,
    "idempotency set": lambda adapter, drive: drive(adapter.idempotency, "set", "i", VALUE),
    "checkpoint": _saved,
    "checkpoint load": lambda adapter, drive: drive(adapter.checkpoint, "load_latest", "t"),
}


def failure(call: str, adapter: MongoDBAdapter, drive: Drive) -> Exception | None:
    """What a call raises, whatever it is."""
    try:
        CALLS[call](adapter, drive)
    except Exception as error:
        return error
    return None


QUOTES = [
    f'not authorized on {NAME} to execute command {{ update: "go_goscope_cache", u: {{ value: "{CANARY}" }} }}',
    f"Plan executor error during findAndModify :: caused by :: $add only supports numeric types, not {CANARY}",
    f'E11000 duplicate key error collection: {NAME}.go_goscope_cache index: key_1 dup key: {{ key: "{CANARY}" }}',
    f'Cannot increment with non-numeric argument: {{value: "{CANARY}"}}',
    f"Document failed validation {CANARY}",
    CANARY,
]
CODES = sorted({1, 2, 9, 14, 50, 112, 121, 12345, 13, 18, 10334, 17419} | failures.DUPLICATE_KEY)
STEPPED_DOWN = (91, 189, 10107, 11602)
"""After these the driver looks for another server, and takes its time."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", ["command", "statement", "concern"])
def test_a_quoting_server(
    form: str, call: str, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "goscope")
    raised = []
    for code in CODES:
        for text in QUOTES if code in (1, 13, 11000) else QUOTES[-1:]:
            proxy.rewrite(quoting(code, text, form))
            error = failure(call, adapter, drive)
            if error is not None:
                raised.append(error)
                assert CANARY not in texts(error), f"{code}: {text}"
    assert CANARY not in caplog.text
    if form == "command":
        assert len(raised) > len(CODES) / 2, "the test would prove nothing"
        causes = [one for error in raised for one in chain(error) if isinstance(one, OperationFailure)]
        assert {one.code for one in causes} & set(CODES), "the driver's errors are chained, with their codes"


@pytest.mark.parametrize("call", ["cache get", "cache set", "lock", "checkpoint", "idempotency set"])
@pytest.mark.parametrize("code", STEPPED_DOWN)
def test_a_quoting_server_that_steps_down(
    code: int, call: str, adapter: MongoDBAdapter, drive: Drive, proxy: Proxy
) -> None:
    proxy.rewrite(quoting(code, CANARY, "command", "RetryableWriteError"))
    with pytest.raises(Exception, match=r".") as raised:
        CALLS[call](adapter, drive)
    assert CANARY not in texts(raised.value)


def test_class_code_and_labels_of_what_is_chained_stay(adapter: MongoDBAdapter, drive: Drive, proxy: Proxy) -> None:
    proxy.rewrite(quoting(112, CANARY, "command", "TransientTransactionError"))
    with pytest.raises(Exception, match="cache") as raised:
        CALLS["cache set"](adapter, drive)
    cause = raised.value.__cause__
    assert isinstance(cause, PyMongoError) and cause.has_error_label("TransientTransactionError")
    assert cause.details["code"] == 112  # type: ignore[attr-defined]
    assert cause.__traceback__ is not None


@pytest.mark.parametrize("call", ["cache set", "idempotency", "checkpoint", "circuit", "lock"])
def test_a_validator(call: str, adapter: MongoDBAdapter, drive: Drive, database: Any) -> None:
    drive(adapter, "connect")
    for name in database.list_collection_names():
        database.command("collMod", name, validator={"value": -1, "data": -1, "state": -1, "owner": -1})
    with pytest.raises(Exception, match="validation") as raised:
        CALLS[call](adapter, drive)
    assert CANARY not in texts(raised.value)


@pytest.mark.parametrize("call", ["cache set", "idempotency set", "checkpoint"])
def test_a_value_that_is_too_large(
    call: str, adapter: MongoDBAdapter, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(adapter, "connect")
    monkeypatch.setitem(VALUE, "much", CANARY * 1_000_000)
    with pytest.raises(Exception, match=r"16|large|fit") as raised:
        CALLS[call](adapter, drive)
    assert CANARY not in texts(raised.value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [1, 13, 91, 11602])
def test_a_fail_point(call: str, code: int, adapter: MongoDBAdapter, drive: Drive, database: Any) -> None:
    client = database.client
    concern = {"code": 64, "codeName": "WriteConcernTimeout", "errmsg": CANARY, "errInfo": {"x": CANARY}}
    for data in ({"errorCode": code}, {"writeConcernError": concern}):
        client.admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={"failCommands": list(OURS), "appName": "valued", **data},
        )
        error = failure(call, adapter, drive)
        assert error is not None or "writeConcernError" in data or code == 91, "a read is sent again"
        assert error is None or CANARY not in texts(error)
