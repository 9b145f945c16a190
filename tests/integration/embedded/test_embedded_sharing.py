"""The private ``mongod`` and its users: many processes and threads at once, killed, interrupted and forked ones."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from goscope_django.mongodb import embedded
from goscope_django.mongodb.embedded import file_lock as folder_lock
from goscope_django.mongodb.embedded import folder as mongod_folder
from tests.scripts.embedded_worker import Worker, insert_and_count
from tests.support.mongod import process_exists

pytestmark = pytest.mark.real


def user_files(directory: Path) -> list[str]:
    return [path.name for path in (directory / "users").iterdir()]


def starts_in_log(directory: Path) -> int:
    return (directory / "mongod.log").read_text().count('"msg":"MongoDB starting"')


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
        for descriptor, name in enumerate(("/dev/null", folder / "mongod.log", folder / "mongod.log")):
            assert str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()) == str(name)
        os.killpg(first.pid, signal.SIGINT)  # what a terminal does to all processes of the foreground
        first.process.wait(60)
        assert process_exists(pid)
        assert embedded.status(folder).users == (second.pid,)
        os.killpg(second.pid, signal.SIGINT)
        second.process.wait(60)
        assert not process_exists(pid), "the last user left in order, by KeyboardInterrupt"


def test_the_last_to_leave_waits_for_one_who_is_joining(folder: Path) -> None:
    with Worker(folder) as leaver:
        pid = int(leaver.do("start"))
        joiner = mongod_folder.Folder(folder)
        with joiner.locked(5):  # we found the server, and are not yet known as its user
            leaver.ask("release")
            assert not leaver.answers_within(1.5)
            joiner.join(pid)
        assert leaver.answer() == "released"
        assert process_exists(pid)
        assert embedded.status(folder).users == (os.getpid(),)
        joiner.leave(uses=None, timeout=10)
        assert not process_exists(pid)


def test_a_leaver_and_a_joiner_never_get_a_dead_server(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(3)]
        for _ in range(2):
            for worker in workers:
                worker.ask("rounds 3")
            for worker in workers:
                assert worker.answer() == "done"
            assert not embedded.status(folder).running
            assert user_files(folder) == []
        assert starts_in_log(folder) >= 2
        with embedded.start(folder) as mongod:
            assert insert_and_count(mongod.uri) == 2 * 3 * 3 + 1


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
