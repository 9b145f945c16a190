"""The private ``mongod`` in places and at moments that are against it: nothing is lost, and what is wrong is said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from goscope_django.exceptions import ConfigurationError, MongodError
from goscope_django.mongodb import embedded
from goscope_django.mongodb.embedded import process as mongod_process
from tests.integration.embedded.test_embedded_failures import install_wheel
from tests.scripts.embedded_worker import ROOT, Worker, insert_and_count

pytestmark = pytest.mark.real


def starts_in_log(directory: Path) -> int:
    return (directory / "mongod.log").read_text().count('"msg":"MongoDB starting"')


def everything_in(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


# ------------------------------------------------------------------------------------------------ moments


def test_a_server_whose_starter_was_killed_at_once_is_waited_for(folder: Path) -> None:
    """A second ``mongod`` over the folder would take the first one's socket away before it finds the data in use."""
    site = folder.parent / "site"
    install_wheel(site, f'touch {site}/begun; sleep 1; exec {mongod_process.find_mongod()} "$@"')
    starter = subprocess.Popen(
        [sys.executable, "-c", f"from goscope_django.mongodb import embedded; embedded.start({str(folder)!r})"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    while not (site / "begun").exists():
        assert starter.poll() is None
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    with embedded.start(folder) as mongod:
        assert insert_and_count(mongod.uri) == 1
        assert mongod.pid == embedded.status(folder).pid
    assert starts_in_log(folder) == 1


def test_many_start_it_while_half_of_them_are_killed(folder: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(folder)) for _ in range(12)]
        for worker in workers:
            worker.ask("start")
        for worker in workers[::2]:
            worker.kill(signal.SIGKILL)
        (pid,) = {worker.answer() for worker in workers[1::2]}
        for worker in workers[1::2]:
            worker.ask("insert")
        assert max(int(worker.answer()) for worker in workers[1::2]) == 6
        assert embedded.status(folder).pid == int(pid)
        assert starts_in_log(folder) == 1
        for worker in workers[1::2]:
            worker.leave()
        assert not embedded.status(folder).running


def test_a_full_disk_is_said_and_forgotten(tmp_path: Path) -> None:
    """A limit of the process stands for it: nothing can be written any more, by the server neither."""
    folder = tmp_path / ("x" * 120)  # so that where its socket is must be written down
    with embedded.start(folder) as mongod:
        assert insert_and_count(mongod.uri) == 1
    script = f"""
        import resource
        from goscope_django.exceptions import GoscopeError
        from goscope_django.mongodb import embedded
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            embedded.start({str(folder)!r}, timeout=10)
        except GoscopeError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert repr(str(folder)) in done.stdout or str(folder / "mongod.log") in done.stdout
    assert (folder / "socket").read_text().endswith("mongodb-27017.sock")
    with embedded.start(folder) as again:
        assert again.uri == mongod.uri
        assert insert_and_count(again.uri) == 2


def test_the_url_stays_whatever_the_folder_for_temporary_files(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with tempfile.TemporaryDirectory(dir="/tmp") as others, embedded.start(folder) as mongod:
        os.kill(mongod.pid, signal.SIGKILL)
        script = f"""
            from goscope_django.mongodb import embedded
            from tests.scripts.embedded_worker import insert_and_count
            with embedded.start({str(folder)!r}) as mongod:
                insert_and_count(mongod.uri)
                print(mongod.uri)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": others},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == mongod.uri


# ------------------------------------------------------------------------------------------------ places


def test_a_folder_where_ours_would_mix_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("manage.py", "users/models.py", "data/fixture.json", "keep", "socket"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = everything_in(tmp_path)
    for function in (embedded.start, embedded.launch):
        with pytest.raises(
            ConfigurationError, match=r"holds files of something else \(.*users/models\.py\), name a folder of its own"
        ):
            function(tmp_path)
    assert not embedded.stop(tmp_path)
    assert not embedded.status(tmp_path).running
    assert everything_in(tmp_path) == before


def test_files_that_are_not_ours_are_never_removed(folder: Path) -> None:
    folder.mkdir()
    for name in (".gitignore", "secret-key"):
        (folder / name).write_text(name)
    with embedded.start(folder):
        pass
    (folder / "users" / "models.py").write_text("class User: ...")
    (folder / "users" / "12.notes").write_text("kept")
    with embedded.start(folder):
        pass
    assert sorted(path.name for path in (folder / "users").iterdir()) == ["12.notes", "models.py"]


def test_data_that_no_mongod_made_are_refused(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "fixture.json").touch()
    with pytest.raises(ConfigurationError, match="holds files of something else"):
        embedded.start(folder)


def test_a_folder_for_everybody_is_refused_before_anything_is_made(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="all users of this machine may write to it"):
        embedded.start(folder)
    assert everything_in(folder) == {}


def test_links_to_a_folder_are_that_folder(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)  # which does not exist yet
    with embedded.start(link) as one, embedded.start(folder) as other:
        assert one.pid == other.pid
        assert embedded.status(link).users == (os.getpid(),)


OUR_FILES = (
    *("lock", "server", "socket", "socket.new", "keep", "stopped", "died", "revived"),
    *("mongod.log", "data/mongod.lock"),
)


def as_if_used_before(folder: Path) -> None:
    for name in ("", "data", "users"):
        (folder / name).mkdir(mode=0o700)
    for name in ("lock", "mongod.log"):
        (folder / name).touch()


@pytest.mark.parametrize("name", OUR_FILES)
@pytest.mark.parametrize("dangling", [True, False])
def test_no_link_of_ours_is_followed(folder: Path, tmp_path: Path, name: str, dangling: bool) -> None:
    """Such a link leads to a file of another program, which we would lock, empty, or fill with a log."""
    target = tmp_path / "target"
    as_if_used_before(folder)
    if not dangling:
        target.write_text("not ours")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    for function in (embedded.start, embedded.launch):
        with pytest.raises(ConfigurationError, match=rf"'{name}' in it is a link"):
            function(folder)
    for other in (embedded.stop, embedded.status, embedded.revive):
        with suppress(ConfigurationError, MongodError):  # whatever it says
            other(folder)
    assert target.read_text() == "not ours" if not dangling else not target.exists()
    (folder / name).unlink(missing_ok=True)


def test_links_that_are_not_ours_are_left_alone(folder: Path, tmp_path: Path) -> None:
    """The door is a link by design, and made anew. One among the users is nobody's."""
    as_if_used_before(folder)
    target = tmp_path / "target"
    target.write_text("not ours")
    for name in ("goscope.sock", "users/12.01234567", "users/models.py"):
        (folder / name).symlink_to(target)
    with Worker(folder) as user:
        pid = int(user.do("start"))
        assert user.do("insert") == "1"
        assert embedded.status(folder).users == (user.pid,)
        user.kill(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while embedded.status(folder).running:
        assert time.monotonic() < deadline, f"mongod {pid} outlived its last user"
        time.sleep(0.05)
    assert target.read_text() == "not ours"


@pytest.mark.parametrize("name", ["data", "users"])
def test_no_linked_folder_of_ours_is_used(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "target").mkdir()
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "target")
    with pytest.raises(ConfigurationError, match=rf"'{name}' in it is a link"):
        embedded.start(folder)
    assert everything_in(tmp_path / "target") == {}


@pytest.mark.parametrize("mode", [0o720, 0o770, 0o775, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("name", ["", "data", "users"])
def test_a_folder_to_which_others_may_write_is_refused(folder: Path, mode: int, name: str) -> None:
    folder.mkdir()
    (folder / name).mkdir(exist_ok=True)
    (folder / name).chmod(mode)
    who = "all users of this machine" if mode & 0o002 else "its group"
    for function in (embedded.start, embedded.launch):
        with pytest.raises(ConfigurationError, match=f"{who} may write to .*chmod [og]-w"):
            function(folder)
    assert everything_in(folder) == ({name: None} if name else {})


def test_a_folder_that_others_may_only_look_into_is_taken(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with embedded.start(folder):
        for path in folder.iterdir():
            assert path.is_symlink() or not path.lstat().st_mode & 0o077, f"{path} is not closed to others"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give something away")
@pytest.mark.parametrize("name", ["", "data", "users", "lock", "mongod.log"])
def test_what_belongs_to_another_user_is_refused(folder: Path, name: str) -> None:
    as_if_used_before(folder)
    folder.chmod(0o755)
    os.chown(folder / name, 65534, 65534)
    before = everything_in(folder)
    for function in (embedded.start, embedded.launch):
        with pytest.raises(ConfigurationError, match=r"belongs to user 65534, not to this one \(0\)"):
            function(folder)
    assert everything_in(folder) == before


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_the_folder_of_another_user_is_refused_though_it_may_be_read(folder: Path) -> None:
    as_if_used_before(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    above = [one for one in folder.parents if not one.stat().st_mode & 0o001]
    for one in above:
        one.chmod(one.stat().st_mode | 0o011)
    script = f"""
        import os
        from goscope_django.exceptions import ConfigurationError
        from goscope_django.mongodb import embedded
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            embedded.start({str(folder)!r})
        except ConfigurationError as error:
            print(error, flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "belongs to user 0, not to this one (65534)" in done.stdout, done.stdout + done.stderr


def test_it_needs_no_home(folder: Path) -> None:
    script = f"from goscope_django.mongodb import embedded\nwith embedded.start({str(folder)!r}) as m: print(m.pid)"
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="File name too long"):
        embedded.start(tmp_path / ("x" * 300))


def test_a_socket_that_was_removed_is_told_with_the_way_out(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        (folder / "mongodb-27017.sock").unlink()
        with pytest.raises(MongodError, match=r"mongodb-27017\.sock.*goscope_mongod stop"):
            embedded.start(folder, timeout=0.5)
        assert embedded.stop(folder)
        with embedded.start(folder) as again:
            assert insert_and_count(again.uri) == 1
        assert again.uri == mongod.uri


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount it read-only")
    script = f"""
        from goscope_django.exceptions import ConfigurationError
        from goscope_django.mongodb import embedded
        for function in (embedded.start, embedded.stop):
            try:
                print(function({str(tmp_path)!r}))
            except ConfigurationError as error:
                print(error)
    """
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec "
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount + '"$@"', "sh", sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert done.returncode == 0, done.stderr
    assert "Read-only file system" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "False"
