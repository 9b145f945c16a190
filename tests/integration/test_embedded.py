"""The private ``mongod``: who shares it, how long it lives, and what it listens on. Everything with real processes."""

from __future__ import annotations

import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from goscope_django.exceptions import MongodError
from goscope_django.mongodb import embedded, folder_lock
from tests.integration.embedded_worker import Worker
from tests.support.mongod import process_exists, replica_set, temporary_mongod

pytestmark = pytest.mark.real


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not exist yet, whose server is gone after the test."""
    directory = tmp_path / "db"
    yield directory
    embedded.stop(directory, timeout=0)


def insert_and_count(uri: str) -> int:
    with MongoClient[dict[str, Any]](uri) as client:
        client.test.things.insert_one({})
        return client.test.things.count_documents({})


def user_files(directory: Path) -> list[str]:
    return [path.name for path in (directory / "users").iterdir()]


def starts_in_log(directory: Path) -> int:
    return (directory / "mongod.log").read_text().count('"msg":"MongoDB starting"')


# ------------------------------------------------------------------------------------------------ the server


async def test_it_does_all_that_a_replica_set_does_for_both_clients(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            assert client.admin.command("hello")["setName"] == "goscope"
            client.test.things.insert_one({"_id": 1})  # a retryable write
            with client.start_session() as session, session.start_transaction():
                client.test.things.update_one({"_id": 1}, {"$set": {"by": "transaction"}}, session=session)
            with client.test.things.watch() as stream:
                client.test.things.insert_one({"_id": 2})
                assert stream.next()["documentKey"] == {"_id": 2}
        async with AsyncMongoClient[dict[str, Any]](mongod.uri) as asynchronous:
            assert await asynchronous.test.things.find_one({"_id": 1}) == {"_id": 1, "by": "transaction"}
            async with asynchronous.start_session() as held, await held.start_transaction():
                await asynchronous.test.things.delete_one({"_id": 2}, session=held)
            assert await asynchronous.test.things.count_documents({}) == 1


def test_it_listens_on_no_network(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        links = [str(path.readlink()) for path in Path(f"/proc/{mongod.pid}/fd").iterdir() if path.is_symlink()]
        inodes = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
        listening = set()
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for row in Path(f"/proc/{mongod.pid}/net/{table}").read_text().splitlines()[1:]:
                columns = row.split()
                if columns[9] in inodes:
                    listening.add((table, columns[1], columns[3]))
        unix = [row.split() for row in Path(f"/proc/{mongod.pid}/net/unix").read_text().splitlines()[1:]]
        accepting = [row[7] for row in unix if row[6] in inodes and row[3] == "00010000"]
        assert listening == set()
        assert accepting == [str(folder / "mongodb-27017.sock")]


def test_only_its_user_gets_in(folder: Path) -> None:
    with embedded.start(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "mongodb-27017.sock").stat().st_mode) == 0o700


def test_the_data_survive_a_restart_a_stop_and_a_crash(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        assert insert_and_count(mongod.uri) == 1
    with embedded.start(folder) as mongod:
        assert insert_and_count(mongod.uri) == 2
        os.kill(mongod.pid, signal.SIGKILL)
        again = embedded.start(folder)
        assert again.pid != mongod.pid
        assert again.uri == mongod.uri
        assert insert_and_count(again.uri) == 3
        again.release()
        assert process_exists(again.pid), "the first use has not ended, whichever server it began with"
    assert not process_exists(again.pid)


def test_a_folder_can_be_moved(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        insert_and_count(mongod.uri)
    moved = folder.rename(folder.with_name("moved"))
    with embedded.start(moved) as mongod:
        assert insert_and_count(mongod.uri) == 2


@pytest.mark.parametrize("name", ["x" * 120, "with space, comma: % and ümlaut", "Upper"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    with embedded.start(directory) as mongod:
        assert insert_and_count(mongod.uri) == 1
        place = Path((directory / "socket").read_text()).parent
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert embedded.status(directory).uri == mongod.uri
    assert place == directory or not place.exists()


# ------------------------------------------------------------------------------------------------ sharing


def test_eight_processes_that_start_it_at_once_share_one(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(8)]
        for worker in workers:
            worker.ask("start")
        (pid,) = {worker.answer() for worker in workers}
        assert starts_in_log(folder) == 1
        for worker in workers:
            worker.ask("insert")
        assert max(int(worker.answer()) for worker in workers) == 8
        found = embedded.status(folder)
        assert found.running
        assert found.pid == int(pid)
        assert found.users == tuple(sorted(worker.pid for worker in workers))
        for worker in workers[:-1]:
            worker.ask("quit")
        for worker in workers[:-1]:
            assert worker.end() == ""
        assert process_exists(int(pid))
        assert workers[-1].leave() == ""
        assert not process_exists(int(pid))
        assert user_files(folder) == []


def test_threads_share_it_and_the_last_use_ends_it(folder: Path) -> None:
    uses: list[embedded.Mongod] = []
    threads = [threading.Thread(target=lambda: uses.append(embedded.start(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (pid,) = {use.pid for use in uses}
    assert embedded.status(folder).users == (os.getpid(),)
    for use in uses[:-1]:
        use.release()
        use.release()  # the second time does nothing
    assert process_exists(pid)
    uses[-1].release()
    assert not process_exists(pid)


def test_it_survives_the_kill_of_its_starter_who_is_then_no_user(folder: Path) -> None:
    with Worker(folder) as starter, Worker(folder) as other:
        pid = int(starter.do("start"))
        assert starter.do("insert") == "1"
        starter.kill(signal.SIGKILL)
        assert process_exists(pid)
        assert embedded.status(folder).users == ()
        assert int(other.do("start")) == pid
        assert other.do("insert") == "2"
        assert embedded.status(folder).users == (other.pid,)
        other.leave()
        assert not process_exists(pid)


def test_a_killed_user_does_not_keep_it_alive(folder: Path) -> None:
    with Worker(folder) as killed, Worker(folder) as orderly:
        pid = int(killed.do("start"))
        orderly.do("start")
        killed.kill(signal.SIGKILL)
        assert orderly.do("release") == "released"
        assert not process_exists(pid)


def test_ctrl_c_ends_the_worker_but_not_the_server_that_others_use(folder: Path) -> None:
    with Worker(folder) as first, Worker(folder) as second:
        pid = int(first.do("start"))
        second.do("start")
        assert os.getsid(pid) not in {os.getsid(0), os.getsid(first.pid)}
        for descriptor in (0, 1, 2):
            assert str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()) == "/dev/null"
        os.killpg(first.pid, signal.SIGINT)  # what a terminal does to all processes of the foreground
        first.process.wait(60)
        assert process_exists(pid)
        assert embedded.status(folder).users == (second.pid,)
        os.killpg(second.pid, signal.SIGINT)
        second.process.wait(60)
        assert not process_exists(pid), "the last user left in order, by KeyboardInterrupt"


def test_a_leaver_and_a_joiner_never_get_a_dead_server(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(3)]
        for _ in range(2):
            for worker in workers:
                worker.ask("rounds 4")
            for worker in workers:
                assert worker.answer() == "done"
            assert not embedded.status(folder).running
            assert user_files(folder) == []
        assert starts_in_log(folder) >= 2
        with embedded.start(folder) as mongod:
            assert insert_and_count(mongod.uri) == 2 * 3 * 4 + 1


# ------------------------------------------------------------------------------------------------ fork


def test_a_child_that_ends_changes_nothing(folder: Path) -> None:
    with Worker(folder) as parent:
        pid = int(parent.do("start"))
        assert parent.do("fork_and_exit") == "0"
        assert process_exists(pid)
        assert embedded.status(folder).users == (parent.pid,)
        assert parent.do("insert") == "1"


def test_a_child_is_no_user_and_holds_no_place_for_its_parent(folder: Path) -> None:
    with Worker(folder) as parent, Worker(folder) as other:
        pid = int(parent.do("start"))
        child = int(parent.do("fork"))
        try:
            parent.kill(signal.SIGKILL)
            assert process_exists(child)
            assert embedded.status(folder).users == ()
            other.do("start")
            other.leave()
            assert not process_exists(pid)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_starts_it_is_a_user_of_its_own(folder: Path) -> None:
    with Worker(folder) as parent:
        pid = int(parent.do("start"))
        child = int(parent.do("fork_and_start"))
        try:
            assert embedded.status(folder).users == tuple(sorted((parent.pid, child)))
            parent.ask("quit")
            assert parent.process.wait(60) == 0
            assert process_exists(pid), "the child still uses it"
        finally:
            os.kill(child, signal.SIGKILL)
        assert embedded.stop(folder)


def test_a_fork_does_not_prolong_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    descriptor = folder_lock.acquire(path, timeout=1)
    assert descriptor is not None
    assert folder_lock.is_held(path)
    assert folder_lock.acquire(path, timeout=0) is None
    path.unlink()  # whoever comes now locks the new file, not the one that nobody finds any more
    second = folder_lock.acquire(path, timeout=1)
    assert second is not None
    folder_lock.release(descriptor)
    assert folder_lock.is_held(path)
    folder_lock.release(second)
    assert not folder_lock.is_held(path)


# ------------------------------------------------------------------------------------------------ stop and status


def test_stop_ends_it_whoever_uses_it(folder: Path) -> None:
    with Worker(folder) as user:
        pid = int(user.do("start"))
        assert embedded.stop(folder)
        assert not process_exists(pid)
        assert not embedded.stop(folder)
        assert user.do("start") != str(pid)  # one who needs it gets a new one
        assert user.do("insert") == "1"


def test_stop_ends_one_that_hangs_and_start_does_not_wait_for_it_forever(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        assert insert_and_count(mongod.uri) == 1
        os.kill(mongod.pid, signal.SIGSTOP)
        with pytest.raises(MongodError, match="accepts no writes"):
            embedded.start(folder, timeout=1)
        assert embedded.status(folder).version is None
        assert embedded.stop(folder, timeout=0.5)
        assert not process_exists(mongod.pid)
        with embedded.start(folder) as again:
            assert insert_and_count(again.uri) == 2


def test_status_tells_what_there_is(folder: Path) -> None:
    nothing = embedded.status(folder)
    assert not folder.exists(), "asking makes nothing"
    assert nothing == embedded.Status(folder, False, None, None, None, (), folder / "mongod.log")
    assert not embedded.stop(folder)
    with embedded.start(folder) as mongod:
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            version = client.server_info()["version"]
        assert embedded.status(folder) == embedded.Status(
            folder, True, mongod.pid, mongod.uri, version, (os.getpid(),), mongod.log_path
        )
    assert embedded.status(folder) == nothing


def test_stale_files_endanger_nobody(folder: Path, tmp_path: Path) -> None:
    with embedded.start(folder):
        pass
    with temporary_mongod() as bystander:
        for innocent in (os.getpid(), bystander.pid, 999_999_999):
            (folder / "data" / "mongod.lock").write_text(f"{innocent}\n")
            (folder / "users" / f"{innocent}.00000000").touch()
            assert not embedded.status(folder).running
            assert embedded.status(folder).users == ()
            assert not embedded.stop(folder)
            with embedded.start(folder) as mongod:
                assert mongod.pid != innocent
                assert embedded.status(folder).users == (os.getpid(),)
        assert insert_and_count(bystander.uri) == 1


def test_a_folder_that_was_removed_takes_its_server_along(folder: Path, tmp_path: Path) -> None:
    mongod = embedded.start(folder)
    folder.rename(tmp_path / "removed")  # as good as removed, and mongod can't write new files in between
    mongod.release()
    assert not process_exists(mongod.pid)

    mongod = embedded.start(folder)
    folder.rename(tmp_path / "removed too")
    with embedded.start(folder) as anew:
        assert not process_exists(mongod.pid)
        assert insert_and_count(anew.uri) == 1
    assert process_exists(anew.pid), "the first use still counts"
    mongod.release()
    assert not process_exists(anew.pid)


# ------------------------------------------------------------------------------------------------ the helpers


def test_a_temporary_server_leaves_nothing_behind() -> None:
    with temporary_mongod(standalone=True) as mongod:
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            assert "setName" not in client.admin.command("hello")
        with pytest.raises(MongodError, match="as a standalone server: stop it first"):
            embedded.start(mongod.directory)
    assert not process_exists(mongod.pid)
    assert not mongod.directory.parent.exists()


def test_a_replica_set_elects_another_primary() -> None:
    with replica_set() as running, running.client() as client:
        client.test.things.insert_one({"_id": 1})
        killed = running.kill_primary()
        client.test.things.insert_one({"_id": 2})
        assert running.primary_port() != killed
        running.resume(killed)
        before = running.primary_port()
        running.step_down()
        assert running.primary_port() != before
        assert client.test.things.count_documents({}) == 2
        pids = running.pids.values()
        assert len(pids) == 3
    assert not any(map(process_exists, pids))
