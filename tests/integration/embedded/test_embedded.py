"""The private ``mongod`` itself: what it can do, what it listens on, how it is stopped and what survives."""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from goscope_django.exceptions import MongodError
from goscope_django.mongodb import embedded
from goscope_django.mongodb.driver.urls import parse
from tests.scripts.embedded_worker import Worker, insert_and_count
from tests.support.documents import blocks
from tests.support.mongod import process_exists, replica_set, temporary_mongod

pytestmark = pytest.mark.real


# ------------------------------------------------------------------------------------------------ the server


async def test_it_does_all_that_a_replica_set_does_for_both_clients() -> None:
    with temporary_mongod() as mongod:
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


def test_it_listens_on_no_network() -> None:
    with temporary_mongod() as mongod:
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
        assert accepting == [str(mongod.directory / "mongodb-27017.sock")]


def test_only_its_user_gets_in() -> None:
    with temporary_mongod() as mongod:
        for path in (mongod.directory, mongod.directory / "data", mongod.directory / "mongodb-27017.sock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_it_leaves_no_thread_and_may_be_forked_at_once(folder: Path) -> None:
    with Worker(folder) as alone:  # here, threads of other tests' clients come and go
        alone.do("start")
        assert alone.do("threads") == "MainThread"
        assert alone.do("fork_and_exit") == "0"
        assert alone.leave() == ""


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
        for innocent in (os.getpid(), bystander.pid):
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


def test_the_page_about_it_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, settings), (_, example) = blocks("docs/how-to/embedded.md")
    assert name == "settings.py"
    found: dict[str, Any] = {}
    exec(compile(settings, "settings.py", "exec"), found)
    assert parse(found["GOSCOPE"]["URL"], base=tmp_path).place == str(tmp_path / "mongo-data")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "embedded.md", "exec"), found)
    assert not embedded.status("mongo-data").running
    with embedded.start("mongo-data") as mongod, MongoClient[dict[str, Any]](mongod.uri) as client:
        assert client.shop.items.count_documents({"left": 3}) == 1
