"""A private ``mongod`` that dies under the processes that use it comes back; one that was stopped stays away."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import monitoring
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError
from pymongo.server_type import SERVER_TYPE

from goscope_django.exceptions import MongodError, StoreUnavailable
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.embedded import (
    folder as mongod_folder,
)
from goscope_django.mongodb.embedded import (
    launching as embedded,
)
from goscope_django.mongodb.embedded import (
    process as mongod_process,
)
from goscope_django.mongodb.embedded import (
    wire as mongod_wire,
)
from tests.integration.embedded.test_embedded_failures import install_wheel
from tests.scripts.embedded_worker import PATIENT, Worker
from tests.support.mongod import process_exists

pytestmark = pytest.mark.real


@contextmanager
def used(folder: Path, **options: Any) -> Iterator[clients.Connection]:
    """This process's connection to the server over the folder, which it uses like any user of the URL."""
    options = {"serverSelectionTimeoutMS": PATIENT, **options}
    connection = clients.connection(f"embedded://{folder}", options)
    try:
        yield connection
    finally:
        connection.close()
        server = clients._servers.pop(str(folder), None)
        if server is not None:
            server.mongod.release()


@pytest.fixture
def store(folder: Path) -> Iterator[clients.Connection]:
    with used(folder) as connection:
        yield connection


def pid_over(folder: Path) -> int:
    pid = embedded.status(folder).pid
    assert pid is not None
    return pid


def starts_in_log(directory: Path) -> int:
    return (directory / "mongod.log").read_text().count('"msg":"MongoDB starting"')


def eventually(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


def things(store: clients.Connection) -> Any:
    return store.sync().database["things"]


def kill(folder: Path) -> int:
    pid = pid_over(folder)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not process_exists(pid))
    return pid


# ------------------------------------------------------------------------------------------------ it comes back


def test_the_next_operation_of_one_that_uses_it_finds_it_again(folder: Path, store: clients.Connection) -> None:
    client = things(store).database.client
    things(store).insert_one({"_id": 1})
    before = embedded.status(folder)
    killed = kill(folder)
    things(store).insert_one({"_id": 2})  # no error: the driver waits for it
    after = embedded.status(folder)
    assert after.pid != killed
    assert after.uri == before.uri
    assert after.users == (os.getpid(),)
    assert things(store).count_documents({}) == 2
    assert things(store).database.client is client


def test_it_comes_back_as_often_as_it_dies_and_ends_with_its_last_user(
    folder: Path, store: clients.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "RETRY_AFTER", 0.1)
    for number in range(3):
        things(store).insert_one({"_id": number})
        kill(folder)
    assert things(store).count_documents({}) == 3
    assert starts_in_log(folder) == 4
    last = pid_over(folder)
    store.close()
    clients._servers.pop(str(folder)).mongod.release()
    assert not process_exists(last)


async def test_an_event_loop_is_not_held_up_meanwhile(folder: Path, store: clients.Connection) -> None:
    collection = store.asynchronous().database["things"]
    await collection.insert_one({"_id": 1})
    killed = pid_over(folder)
    original = mongod_process.launch
    where: list[int] = []

    def launch(*arguments: Any, **options: Any) -> None:
        where.append(threading.get_ident())
        original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mongod_process, "launch", launch)
        os.kill(killed, signal.SIGKILL)
        await collection.insert_one({"_id": 2})
    assert len(where) == 1
    assert where[0] != threading.get_ident()
    assert pid_over(folder) != killed
    assert await collection.count_documents({}) == 2
    await store.aclose()


class Heartbeats(monitoring.ServerHeartbeatListener):
    """How often the driver has looked for the server, and what kinds of server it has seen."""

    def __init__(self) -> None:
        self.failures = 0
        self.seen: set[str] = set()

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        pass

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        self.seen.add(SERVER_TYPE._fields[event.reply.server_type])

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        self.failures += 1


SLOW_TO_BECOME_PRIMARY = """
    exec {mongod} "$@" --setParameter enableTestCommands=1 \\
        --setParameter 'failpoint.hangBeforeRSTLOnDrainComplete={{"mode": "alwaysOn"}}'
"""


def _go_on(folder: Path) -> None:
    point = {"configureFailPoint": "hangBeforeRSTLOnDrainComplete", "mode": "off"}
    assert mongod_wire.command(folder / "mongodb-27017.sock", point, timeout=10)["ok"]


def _is_secondary(folder: Path) -> bool:
    try:
        return bool(mongod_wire.command(folder / "mongodb-27017.sock", {"hello": 1}, timeout=10).get("secondary"))
    except OSError:
        return False


@pytest.mark.parametrize("starter_died", [False, True])
def test_nobody_gets_at_it_before_it_accepts_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, starter_died: bool
) -> None:
    """With a direct connection the driver takes any server for the right one, and retries a write only once."""
    heartbeats = Heartbeats()
    site = folder.parent / "site"
    install_wheel(site, SLOW_TO_BECOME_PRIMARY.format(mongod=mongod_process.find_mongod()))
    with used(folder, event_listeners=[heartbeats]) as connection, ThreadPoolExecutor(1) as pool:
        things(connection).insert_one({"_id": 1})
        monkeypatch.syspath_prepend(str(site))
        if starter_died:  # between the launch and its end: the server runs, and nobody waits for it
            killed_starter = mongod_folder.Folder(folder)
            with killed_starter.locked(5):
                kill(folder)
                killed_starter.find_or_launch(time.monotonic() + 30, extra_args=(), standalone=False)
        else:
            kill(folder)
        inserted = pool.submit(things(connection).insert_one, {"_id": 2})
        eventually(lambda: _is_secondary(folder))
        before = heartbeats.failures
        eventually(lambda: inserted.done() or heartbeats.failures >= before + 2)
        assert not inserted.done()
        _go_on(folder)
        assert inserted.result().acknowledged
        assert heartbeats.seen == {"RSPrimary"}
        assert things(connection).count_documents({}) == 2


def test_of_many_processes_and_threads_that_notice_one_starts_it(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(6)]
        for worker in workers:
            worker.ask("write 4")
        assert {worker.answer() for worker in workers} == {"4"}
        for _ in range(2):
            time.sleep(embedded.RETRY_AFTER)  # after a start, the next one is made this much later
            before = starts_in_log(folder)
            kill(folder)
            for worker in workers:
                worker.ask("write 4")
            assert {worker.answer() for worker in workers} == {"4"}
            assert starts_in_log(folder) == before + 1
            assert embedded.status(folder).users == tuple(sorted(worker.pid for worker in workers))
        last = pid_over(folder)
        for worker in workers:
            worker.leave()
        assert not process_exists(last)


def test_one_that_was_to_stay_stays_again(folder: Path, store: clients.Connection) -> None:
    embedded.launch(folder)
    things(store).insert_one({})
    kill(folder)
    things(store).insert_one({})
    again = pid_over(folder)
    store.close()
    clients._servers.pop(str(folder)).mongod.release()
    assert process_exists(again)


def test_listeners_of_the_user_hear_it_too(folder: Path) -> None:
    heard = Heartbeats()
    with used(folder, event_listeners=[heard]) as connection:
        things(connection).insert_one({})
        kill(folder)
        things(connection).insert_one({})
        assert heard.failures > 0


# ------------------------------------------------------------------------------------------------ it stays away


@pytest.fixture
def impatient(folder: Path) -> Iterator[clients.Connection]:
    """Like ``store``, with operations that wait for the server for a second only."""
    with used(folder, serverSelectionTimeoutMS=1_000) as connection:
        yield connection


@pytest.mark.parametrize("hung", [False, True])
def test_one_that_was_stopped_stays_away_until_somebody_starts_it(
    folder: Path, impatient: clients.Connection, caplog: pytest.LogCaptureFixture, hung: bool
) -> None:
    things(impatient).insert_one({})
    if hung:
        os.kill(pid_over(folder), signal.SIGSTOP)
    assert embedded.stop(folder, timeout=0.5 if hung else 20)
    for _ in range(3):
        with pytest.raises(PyMongoError, match=r"goscope\.sock"):
            things(impatient).insert_one({})
    assert not embedded.status(folder).running
    eventually(lambda: "stopped on purpose" in caplog.text)
    assert caplog.text.count("stopped on purpose") == 1
    with Worker(folder) as other:
        other.do("start")
        eventually(lambda: _works(impatient))
        assert embedded.status(folder).users == tuple(sorted((os.getpid(), other.pid)))
        killed = kill(folder)  # and from then on it is brought back again
        eventually(lambda: embedded.status(folder).pid not in {None, killed})


def test_one_that_was_ended_by_sigterm_stays_away(folder: Path, impatient: clients.Connection) -> None:
    things(impatient).insert_one({})
    pid = pid_over(folder)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not process_exists(pid))
    with pytest.raises(PyMongoError, match=r"goscope\.sock"):
        things(impatient).insert_one({})
    assert starts_in_log(folder) == 1


def test_a_folder_that_was_removed_is_not_made_again(
    folder: Path, impatient: clients.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    things(impatient).insert_one({})
    pid = pid_over(folder)
    os.kill(pid, signal.SIGSTOP)  # or else it makes files while they are removed
    shutil.rmtree(folder)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PyMongoError, match=r"goscope\.sock"):
        things(impatient).insert_one({})
    eventually(lambda: "its folder was removed" in caplog.text)
    assert not folder.exists()


def test_one_that_only_hangs_is_left_alone(folder: Path, impatient: clients.Connection) -> None:
    things(impatient).insert_one({})
    pid = pid_over(folder)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert embedded.revive(folder) == ""
        assert pid_over(folder) == pid
    finally:
        os.kill(pid, signal.SIGCONT)
    things(impatient).insert_one({})


def test_who_is_no_user_brings_nothing_back(folder: Path) -> None:
    with Worker(folder) as user:
        user.do("start")
        kill(folder)
        assert embedded.revive(folder) == ""
        assert not embedded.status(folder).running


# ------------------------------------------------------------------------------------------------ it can't be started


async def test_why_it_can_not_be_started_is_told_at_once_and_tried_now_and_then(
    folder: Path, impatient: clients.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    collection = things(impatient)
    collection.insert_one({})
    monkeypatch.setattr(embedded, "RETRY_AFTER", 60.0)
    tries: list[float] = []

    def missing() -> Path:
        tries.append(time.monotonic())
        raise MongodError("No mongod was found, said the test.")

    monkeypatch.setattr(mongod_process, "find_mongod", missing)
    kill(folder)
    eventually(lambda: clients._servers[str(folder)].trouble is not None)
    with pytest.raises(StoreUnavailable, match=r"can't be started again: No mongod was found") as caught:
        impatient.sync()
    assert isinstance(caught.value.__cause__, MongodError)
    with pytest.raises(StoreUnavailable, match=r"can't be started again"):
        impatient.asynchronous()
    for _ in range(2):
        with pytest.raises(PyMongoError, match=r"goscope\.sock"):
            collection.insert_one({})  # past that answer; the driver looks for the server all the time
    assert len(tries) == 1, "it is not tried again so soon"
    monkeypatch.setattr(embedded, "RETRY_AFTER", 1.0)
    clients._servers[str(folder)].trouble = None  # as if those 60 seconds had passed
    eventually(lambda: not _works(impatient) and len(tries) >= 3)
    assert caplog.text.count("can't be started again") == 1
    monkeypatch.undo()
    eventually(lambda: _works(impatient))
    assert impatient.sync() is not None


def test_a_start_that_mongod_itself_gives_up_is_tried_again(
    folder: Path, impatient: clients.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "RETRY_AFTER", 0.5)
    things(impatient).insert_one({"_id": 1})
    metadata = folder / "data" / "storage.bson"
    kept = metadata.read_bytes()
    metadata.write_bytes(b"no BSON")  # it is read at the start only
    kill(folder)
    eventually(lambda: "can't be started again: mongod did not start" in _trouble(impatient))
    tried = starts_in_log(folder)
    eventually(lambda: not _works(impatient) and starts_in_log(folder) >= tried + 2)
    assert "Unable to read the storage engine metadata file" in str(clients._servers[str(folder)].trouble)
    metadata.write_bytes(kept)
    eventually(lambda: _works(impatient))


def _trouble(store: clients.Connection) -> str:
    try:
        store.sync()
    except StoreUnavailable as error:
        return str(error)
    return ""


def _works(store: clients.Connection) -> bool:
    try:
        things(store).insert_one({})
    except (StoreUnavailable, ServerSelectionTimeoutError):
        return False
    return True
