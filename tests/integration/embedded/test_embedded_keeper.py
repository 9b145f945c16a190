"""The keeper of a private ``mongod``: the server ends with its last user, however that ends, and not before."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from goscope_django.mongodb import embedded
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.embedded import file_lock, keeper
from tests.integration.embedded.test_embedded_revival import (
    eventually,
    impatient,
    pid_over,
    starts_in_log,
    store,
    things,
)
from tests.scripts.embedded_worker import ROOT, Worker, insert_and_count
from tests.support.mongod import parent_of, process_exists

__all__ = ["impatient", "store"]  # fixtures

pytestmark = pytest.mark.real


def keeper_over(folder: Path) -> int:
    found = parent_of(pid_over(folder))
    assert str(keeper.__file__) in Path(f"/proc/{found}/cmdline").read_text().split("\0")
    return found


def opened(pid: int) -> list[str]:
    """What the process has open: files, and the kinds of the rest."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return sorted(found)


def all_gone(*pids: int) -> None:
    eventually(lambda: not any(map(process_exists, pids)))


# ------------------------------------------------------------------------------------------------ the last user


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGABRT])
def test_it_ends_when_the_last_user_was_killed(folder: Path, number: signal.Signals) -> None:
    with Worker(folder) as user:
        pid = int(user.do("start"))
        assert user.do("insert") == "1"
        kept_by = keeper_over(folder)
        user.kill(number)
    all_gone(pid, kept_by)
    assert not embedded.status(folder).running
    assert not list(folder.glob("*.sock")), "nobody is led to a server that is gone"
    with embedded.start(folder) as again:
        assert insert_and_count(again.uri) == 2


def test_a_user_that_is_left_keeps_it(folder: Path, tmp_path: Path) -> None:
    """Another server, whose only user is killed later, says when that would have been seen."""
    with Worker(folder) as killed, Worker(folder) as left, Worker(tmp_path / "other") as later:
        pid = int(killed.do("start"))
        left.do("start")
        other = int(later.do("start"))
        killed.kill(signal.SIGKILL)
        later.kill(signal.SIGKILL)
        all_gone(other)
        assert process_exists(pid)
        assert left.do("insert") == "1"
        left.kill(signal.SIGKILL)
    all_gone(pid)


def test_one_that_was_made_to_stay_stays_until_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    pid = embedded.launch(folder)
    kept_by = keeper_over(folder)
    with Worker(folder) as user, Worker(tmp_path / "other") as later:
        user.do("start")
        other = int(later.do("start"))
        user.kill(signal.SIGKILL)
        later.kill(signal.SIGKILL)
        all_gone(other)
    assert process_exists(pid)
    assert keeper_over(folder) == kept_by
    assert embedded.stop(folder)
    all_gone(pid, kept_by)


def test_a_child_that_ends_without_its_interpreter_is_no_user_any_more(folder: Path) -> None:
    """As the children of ``multiprocessing`` and of prefork pools end."""
    script = f"""
        import os
        from goscope_django.mongodb import embedded
        print(embedded.start({str(folder)!r}).pid, flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # It returned: so neither the server nor its keeper has the pipe.
    pid = int(done.stdout)
    assert process_exists(pid)
    assert done.stderr == ""
    all_gone(pid)


def test_twenty_start_it_at_once_and_are_all_killed(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(20)]
        for worker in workers:
            worker.ask("start")
        (pid,) = {int(worker.answer()) for worker in workers}
        kept_by = keeper_over(folder)
        assert starts_in_log(folder) == 1
        assert embedded.status(folder).users == tuple(sorted(worker.pid for worker in workers))
        for worker in workers:
            worker.process.kill()
        all_gone(pid, kept_by)


def test_who_joins_while_it_ends_gets_a_new_one(folder: Path) -> None:
    with Worker(folder) as user:
        pid = int(user.do("start"))
        user.do("insert")
        os.kill(pid, signal.SIGSTOP)  # so its end takes as long as we like
        user.kill(signal.SIGKILL)
    eventually(lambda: file_lock.is_held(folder / "lock"))  # by the keeper, which ends it
    uses: list[embedded.Mongod] = []
    joiner = threading.Thread(target=lambda: uses.append(embedded.start(folder, timeout=120)))
    joiner.start()
    assert process_exists(pid)
    os.kill(pid, signal.SIGCONT)
    joiner.join()
    (joined,) = uses
    assert joined.pid != pid
    assert not process_exists(pid)
    assert insert_and_count(joined.uri) == 2
    joined.release()


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_was_moved_or_removed_takes_it_along(folder: Path, tmp_path: Path, moved: bool) -> None:
    with Worker(folder) as user:
        pid = int(user.do("start"))
        kept_by = keeper_over(folder)
        folder.rename(tmp_path / "moved")
        if not moved:
            shutil.rmtree(tmp_path / "moved", ignore_errors=True)
        with embedded.start(folder) as other:  # in its place; it is not touched
            user.kill(signal.SIGKILL)
            all_gone(pid, kept_by)
            assert insert_and_count(other.uri) == 1


# ------------------------------------------------------------------------------------------------ the keeper's own end


def test_a_keeper_that_is_killed_takes_it_along_and_both_come_back(folder: Path, store: clients.Connection) -> None:
    collection = things(store)
    collection.insert_one({"_id": 1})
    pid, kept_by = pid_over(folder), keeper_over(folder)
    os.kill(kept_by, signal.SIGKILL)
    eventually(lambda: not process_exists(pid))
    collection.insert_one({"_id": 2})
    assert collection.count_documents({}) == 2
    assert pid_over(folder) != pid
    assert keeper_over(folder) != kept_by


def test_a_keeper_that_is_asked_to_end_ends_it_in_order(folder: Path, impatient: clients.Connection) -> None:
    collection = things(impatient)
    collection.insert_one({"_id": 1})
    pid, kept_by = pid_over(folder), keeper_over(folder)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(kept_by, number)  # not for it
    os.kill(kept_by, signal.SIGTERM)
    all_gone(pid, kept_by)
    assert '"attr":{"exitCode":0}' in (folder / "mongod.log").read_text()
    assert not embedded.status(folder).running
    with embedded.start(folder) as again:
        assert insert_and_count(again.uri) == 1


def test_one_that_was_killed_takes_its_keeper_along(folder: Path) -> None:
    with Worker(folder) as user:
        pid = int(user.do("start"))
        kept_by = keeper_over(folder)
        os.kill(pid, signal.SIGKILL)
        all_gone(pid, kept_by)
        assert user.do("start") != str(pid)


def test_nothing_waits_for_process_1_to_reap(folder: Path) -> None:
    """In a container whose first process reaps nothing, what was killed stays as a zombie."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a process 1 of its own")
    script = f"""
        import os, signal, time
        from pathlib import Path
        from goscope_django.mongodb import embedded
        seen = []
        for _ in range(2):
            with embedded.start({str(folder)!r}) as mongod:
                seen.append(mongod.pid)
                parent = int(Path(f"/proc/{{mongod.pid}}/stat").read_text().rpartition(")")[2].split()[1])
                os.kill(parent, signal.SIGKILL)
                while embedded.status(mongod.directory).running:
                    time.sleep(0.02)
        seen.append(embedded.launch({str(folder)!r}))
        states = [Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] for pid in seen]
        print(states, len(set(seen)), embedded.stop({str(folder)!r}), embedded.status({str(folder)!r}).running)
    """
    first = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", first, textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("namespaces are not allowed here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['Z', 'Z', 'S'] 3 True False\n"


# ------------------------------------------------------------------------------------------------ what it is


def test_it_has_nothing_of_its_starter(folder: Path) -> None:
    with Worker(folder) as user, (folder.parent / "a file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        user.do("start")
        with embedded.start(folder):
            pid, kept_by = pid_over(folder), keeper_over(folder)
            assert [re.sub(r"\d+", "N", one) for one in opened(kept_by)] == ["/dev/null"] * 3 + ["pipe:[N]"] * 3
            mine = set(opened(os.getpid())) | set(opened(user.pid))
            assert not {one for one in opened(kept_by) if one.startswith(("pipe", "socket"))} & mine
            inside = {one for one in opened(pid) if one.startswith(str(folder)) and not re.search("/data(/|$)", one)}
            assert inside == {str(folder / "server"), str(folder / "mongod.log")}
            assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
            assert Path(f"/proc/{kept_by}/cwd").readlink() == folder
            assert len({os.getsid(one) for one in (0, user.pid, kept_by)}) == 3
            assert os.getsid(pid) == os.getsid(kept_by)


def test_it_is_small() -> None:
    """Of the standard library it imports what is there anyway, or costs next to nothing."""
    source = ast.parse(Path(keeper.__file__).read_text())
    names = {
        name
        for node in ast.walk(source)
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names == {"__future__", "os", "select", "signal", "sys", "time", "fcntl", "socket", "ctypes"}
