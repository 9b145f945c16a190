"""Commands past the driver's collection: what is sent again, under which number, and what counts as a success."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.errors import (
    AutoReconnect,
    DuplicateKeyError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from goscope_django.core.flow import Flow, Query
from goscope_django.mongodb.codec import ENTRY_OPTIONS
from goscope_django.mongodb.driver.direct import Direct, Sessions
from goscope_django.mongodb.driver.execute import CACHE, SyncExecutor
from goscope_django.mongodb.driver.limits import RANGE_LIMIT
from tests.support.commands import Recorder
from tests.support.mongod import temporary_mongod

DONE = {"ok": 1.0, "n": 1, "nModified": 1}
LABELLED = OperationFailure("stepping down", 189, {"errorLabels": ["RetryableWriteError"]})
LOST = AutoReconnect("connection closed")


class Client:
    """The part of a driver's client that is needed here."""

    def __init__(self, **options: bool) -> None:
        self.options = SimpleNamespace(**{"retry_reads": True, "retry_writes": True, **options})
        self.made = 0

    def start_session(self, **_: Any) -> Any:
        self.made += 1
        return SimpleNamespace(number=self.made)


class Script:
    """A server that answers as it was told to: with a reply, or with an error."""

    def __init__(self, *answers: Any, client: Client | None = None, w: Any = None) -> None:
        self.answers = list(answers)
        self.sent: list[dict[str, Any]] = []
        self.used: list[Any] = []
        self.preferences: list[Any] = []
        self.client = client or Client()
        self.sessions = Sessions(self.client)
        collection = SimpleNamespace(
            name="things",
            codec_options=ENTRY_OPTIONS,
            read_preference=ReadPreference.SECONDARY,
            read_concern=ReadConcern(),
            write_concern=WriteConcern(w) if w is not None else WriteConcern(),
        )
        self.direct = Direct(collection, self.sessions)

    def run(self, flow: Flow[Any]) -> Any:
        try:
            command = next(flow)
            while True:
                assert isinstance(command, Query)
                assert (command.collection, command.method) == ("", "command")
                self.sent.append(dict(command.args[0]))
                self.used.append(command.kwargs["session"].number)
                self.preferences.append(command.kwargs["read_preference"])
                answer = self.answers.pop(0)
                command = flow.throw(answer) if isinstance(answer, BaseException) else flow.send(answer)
        except StopIteration as stop:
            return stop.value

    def update(self) -> Any:
        return self.run(self.direct.update({"_id": 1}, {"$set": {"a": 1}}))

    @property
    def numbers(self) -> list[int | None]:
        return [command.get("txnNumber") for command in self.sent]


class TestNumbers:
    def test_each_write_has_the_next_number_of_its_session(self) -> None:
        server = Script(DONE, DONE, DONE)
        for _ in range(3):
            server.update()
        first = server.numbers[0]
        assert first is not None
        assert first > 2**32, "beyond what a driver may have counted to in this session"
        assert server.numbers == [first, first + 1, first + 2]
        assert server.client.made == 1, "one after the other they share one session"

    def test_two_at_once_never_share_a_session(self) -> None:
        server = Script(DONE, DONE)
        flows = [server.direct.delete({"_id": number}) for number in range(2)]
        sends = [next(flow) for flow in flows]
        assert len({command.kwargs["session"].number for command in sends if isinstance(command, Query)}) == 2
        for flow in flows:
            with pytest.raises(StopIteration):
                flow.send(DONE)
        server.update()
        assert server.client.made == 2, "and both are kept for later"

    def test_without_retryable_writes_there_are_none(self) -> None:
        server = Script(DONE, LOST, client=Client(retry_writes=False))
        server.update()
        with pytest.raises(AutoReconnect):
            server.update()
        assert server.numbers == [None, None], "and what failed was sent once"

    def test_a_server_that_refuses_them_is_asked_without(self) -> None:
        refusal = OperationFailure("Transaction numbers are only allowed on a replica set member or mongos", 20)
        server = Script(refusal, DONE, DONE, LOST)
        assert server.update() == DONE
        server.update()
        with pytest.raises(AutoReconnect):
            server.update()
        assert [number is None for number in server.numbers] == [False, True, True, True], "learned once"

    def test_another_illegal_operation_is_an_error(self) -> None:
        server = Script(OperationFailure("no", 20), DONE)
        with pytest.raises(OperationFailure):
            server.update()
        server.update()
        assert None not in server.numbers


class TestRetries:
    @pytest.mark.parametrize("error", [LOST, NetworkTimeout("timed out"), LABELLED], ids=lambda one: type(one).__name__)
    def test_a_write_goes_out_again_once_under_its_number(self, error: PyMongoError) -> None:
        server = Script(error, DONE)
        assert server.update() == DONE
        assert server.numbers[0] == server.numbers[1]
        assert server.used == [1, 1], "in the session in which it has that number"
        assert server.sent[0] == server.sent[1]

    def test_a_write_that_was_not_confirmed_goes_out_again(self) -> None:
        unconfirmed = {**DONE, "writeConcernError": {"code": 91}, "errorLabels": ["RetryableWriteError"]}
        server = Script(unconfirmed, DONE)
        assert server.update() == DONE
        assert server.numbers[0] == server.numbers[1]

    @pytest.mark.parametrize("error", [LOST, LABELLED], ids=["lost", "labelled"])
    def test_it_goes_out_twice_at_most(self, error: PyMongoError) -> None:
        server = Script(error, error, DONE)
        with pytest.raises(type(error)):
            server.update()
        assert len(server.sent) == 2

    @pytest.mark.parametrize(
        "error",
        [
            ServerSelectionTimeoutError("none"),
            WaitQueueTimeoutError("full"),
            NotPrimaryError("not primary"),
            OperationFailure("bad value", 2),
        ],
        ids=lambda one: type(one).__name__,
    )
    def test_what_another_attempt_does_not_mend_is_raised(self, error: PyMongoError) -> None:
        server = Script(error, DONE)
        with pytest.raises(type(error)):
            server.update()
        assert len(server.sent) == 1

    @pytest.mark.parametrize("unsent", [ServerSelectionTimeoutError("none"), WaitQueueTimeoutError("full")], ids=str)
    def test_where_the_second_attempt_is_never_sent_the_first_ones_error_is_raised(self, unsent: PyMongoError) -> None:
        server = Script(LOST, unsent)
        with pytest.raises(AutoReconnect, match="connection closed"):
            server.update()  # "no server was found" would mean that nothing was sent
        unconfirmed = {**DONE, "writeConcernError": {"code": 91}, "errorLabels": ["RetryableWriteError"]}
        server = Script(unconfirmed, unsent)
        with pytest.raises(WriteConcernError):
            server.update()

    def test_an_unconfirmed_write_goes_out_twice_at_most(self) -> None:
        unconfirmed = {**DONE, "writeConcernError": {"code": 91}, "errorLabels": ["RetryableWriteError"]}
        server = Script(unconfirmed, unconfirmed, DONE)
        with pytest.raises(WriteConcernError):
            server.update()
        server = Script(unconfirmed, LOST, DONE)
        with pytest.raises(AutoReconnect):
            server.update()
        assert len(server.sent) == 2

    def test_after_a_broken_connection_the_session_is_left_alone(self) -> None:
        server = Script(LOST, LOST, DONE)
        with pytest.raises(AutoReconnect):
            server.update()
        server.update()
        assert server.used == [1, 1, 2]

    def test_after_a_refusal_the_session_is_kept(self) -> None:
        server = Script(OperationFailure("overflow", 2), DONE)
        with pytest.raises(OperationFailure):
            server.update()
        server.update()
        assert server.used == [1, 1]
        assert server.numbers[0] != server.numbers[1]

    def test_after_a_cancellation_the_session_is_left_alone(self) -> None:
        server = Script(KeyboardInterrupt(), DONE)
        with pytest.raises(KeyboardInterrupt):
            server.update()
        server.update()
        assert server.used == [1, 2]

    def test_the_time_is_the_primarys(self) -> None:
        now = datetime(2031, 5, 6, 7, 8, 9)  # noqa: DTZ001  as the driver gives it
        server = Script(LOST, {"ok": 1.0, "localTime": now})
        assert server.run(server.direct.time()) == now
        assert server.preferences == [ReadPreference.PRIMARY] * 2
        server = Script({"ok": 1.0})
        assert server.run(server.direct.time()) is None

    def test_a_read_goes_out_again_once(self) -> None:
        found = {"cursor": {"id": 0, "firstBatch": [{"a": 1}]}}
        server = Script(LOST, found)
        assert server.run(server.direct.point({"_id": 1})) == {"a": 1}
        server = Script(LOST, client=Client(retry_reads=False))
        with pytest.raises(AutoReconnect):
            server.run(server.direct.point({"_id": 1}))
        server = Script(OperationFailure("bad value", 2), found)
        with pytest.raises(OperationFailure):
            server.run(server.direct.point({"_id": 1}))


class TestReplies:
    @pytest.mark.parametrize(
        ("reply", "error"),
        [
            ({"writeErrors": [{"index": 0, "code": 11000, "errmsg": "E11000"}]}, DuplicateKeyError),
            ({"writeErrors": [{"index": 0, "code": 17419, "errmsg": "too large"}]}, WriteError),
            ({"writeConcernError": {"code": 64, "errmsg": "waited", "errInfo": {"wtimeout": True}}}, WTimeoutError),
            ({"writeConcernError": {"code": 100, "errmsg": "not enough nodes"}}, WriteConcernError),
        ],
    )
    def test_a_reply_with_an_error_in_it_is_no_success(self, reply: dict[str, Any], error: type[PyMongoError]) -> None:
        for method in ("update", "delete", "modify"):
            server = Script({**DONE, "value": {"a": 1}, **reply})
            args: list[Any] = [{"_id": 1}, {"$set": {}}, {}][: {"update": 2, "delete": 1, "modify": 3}[method]]
            with pytest.raises(error) as caught:
                server.run(getattr(server.direct, method)(*args))
            assert type(caught.value) is error

    def test_positions_of_what_collided(self) -> None:
        collided = {"n": 1, "writeErrors": [{"index": 1, "code": 11000}, {"index": 3, "code": 11000}]}
        server = Script(collided)
        assert server.run(server.direct.upsert_many([({"_id": n}, {}) for n in range(4)])) == [1, 3]

    @pytest.mark.parametrize(
        "more",
        [{"writeErrors": [{"index": 0, "code": 11000}, {"index": 1, "code": 2}]}, {"writeConcernError": {"code": 64}}],
    )
    def test_anything_else_that_went_wrong_among_many_is_an_error(self, more: dict[str, Any]) -> None:
        server = Script({"n": 1, **more})
        with pytest.raises(PyMongoError):
            server.run(server.direct.upsert_many([({"_id": n}, {}) for n in range(4)]))

    @pytest.mark.parametrize(("w", "stated"), [(None, None), (1, {"w": 1}), ("majority", {"w": "majority"})])
    def test_the_concern_is_stated(self, w: Any, stated: Any) -> None:
        server = Script(DONE, w=w)
        server.update()
        assert server.sent[0].get("writeConcern") == stated


@pytest.fixture(scope="module", params=[False, True], ids=["replica set", "standalone"])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with temporary_mongod(standalone=request.param) as server:
        yield server.uri


class TestOnAServer:
    def test_the_drivers_own_writes_are_not_disturbed(self, server_url: str) -> None:
        with MongoClient[dict[str, Any]](server_url) as client:
            executor = SyncExecutor(client["direct"])
            for number in range(3):
                client["direct"]["other"].update_one({"_id": 1}, {"$set": {"a": number}}, upsert=True)
                executor(Query(CACHE, "update", {"_id": "k"}, {"$set": {"a": number}}, upsert=True))
            assert client["direct"][CACHE].find_one({}) == {"_id": "k", "a": 2}
            assert client["direct"]["other"].find_one({}) == {"_id": 1, "a": 2}

    @pytest.mark.parametrize("milliseconds", [5_000, None])
    def test_both_attempts_together_have_the_clients_time_limit(
        self, server_url: str, monkeypatch: pytest.MonkeyPatch, milliseconds: int | None
    ) -> None:
        limits: list[float] = []
        within = pymongo.timeout

        def told(seconds: float) -> Any:
            limits.append(seconds)
            return within(seconds)

        monkeypatch.setattr(pymongo, "timeout", told)
        with MongoClient[dict[str, Any]](server_url, timeoutMS=milliseconds) as client:
            executor = SyncExecutor(client["limits"])
            executor(Query("", "command", "ping"))  # at first contact there is one more limit around all
            limits.clear()
            executor(Query(CACHE, "point", {"_id": 1}))
            executor(Query(CACHE, "update", {"_id": 1}, {"$set": {"a": 1}}))
            assert limits == ([5.0, 5.0] if milliseconds else [])
            executor(Query(CACHE, "delete_many", {"_id": {"$gt": 5}}))
            assert limits == ([5.0, 5.0] if milliseconds else [RANGE_LIMIT]), "the driver sees to what is sent once"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:MongoClient opened before fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_and_its_parent_share_no_session(self, server_url: str) -> None:
        """Of a client that somebody else owns and forks with: one of the two writes would be taken for a repetition."""
        with MongoClient[dict[str, Any]](server_url) as client:
            executor, collection = SyncExecutor(client["forks"]), client["forks"][CACHE]
            collection.delete_many({})

            def write(name: str) -> None:
                executor(Query(CACHE, "update", {"_id": name}, {"$set": {"a": 1}}, upsert=True))

            write("before")
            child = multiprocessing.get_context("fork").Process(target=write, args=("child",))
            child.start()
            child.join(20)
            assert child.exitcode == 0
            write("parent")
            assert sorted(collection.distinct("_id")) == ["before", "child", "parent"]

    def test_threads_together_lose_nothing_and_keep_few_sessions(self, server_url: str) -> None:
        recorder = Recorder()
        with MongoClient[dict[str, Any]](server_url, event_listeners=[recorder]) as client:
            executor = SyncExecutor(client["direct"])
            client["direct"][CACHE].insert_one({"_id": "n", "value": 0})

            def count() -> None:
                for _ in range(50):
                    executor(Query(CACHE, "modify", {"_id": "n"}, {"$inc": {"value": 1}}, {"value": True}))

            threads = [threading.Thread(target=count) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = executor(Query(CACHE, "point", {"_id": "n"}))
            assert found["value"] == 400
            sessions = {str(event["lsid"]) for event in recorder.commands if "findAndModify" in event}
            assert 1 <= len(sessions) <= 9
