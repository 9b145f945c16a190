"""Forks, start-up and servers that fork: nothing warns, nothing hangs, nobody touches its parent's sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.support.mongod import replica_set

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SCRIPTS = ROOT / "tests" / "scripts"
AWAY = "mongodb://user:hunter2@127.0.0.1:9/goscope"  # the port "discard", on which nobody listens


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def program(name: str, url: str) -> list[str]:
    return [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        str(SCRIPTS / "process_scripts.py"),
        name,
        url,
    ]


def run(name: str, url: str, timeout: float = 60) -> dict[str, Any]:
    """What the program found; whatever it said on stderr fails the test, a hang as well."""
    done = subprocess.run(
        program(name, url), capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment(), check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["fork_os", "fork_multiprocessing", "fork_in_a_loop"])
def test_a_forked_child_starts_with_nothing_of_its_parents(name: str, mongo_url: str) -> None:
    found = run(name, mongo_url)
    assert found["same connection"] and found["same sockets"], "the parent goes on undisturbed"
    seen = {tuple(found["own"])}
    for number, child in enumerate(found["children"]):
        assert child["found"] == ["parent", "parent"]
        assert child["released"]
        assert child["inherited"] > 0 and child["kept"], "it does not even close what it inherited"
        assert tuple(child["connection"]) not in seen, "it has connections of its own"
        seen.add(tuple(child["connection"]))
        assert found["found"][number] == str(number)


def test_event_loops_one_after_the_other_leave_nothing_open(mongo_url: str) -> None:
    assert run("many_loops", mongo_url) == {"right": True, "left open": 0}


def test_ready_connects_makes_the_indexes_and_lets_go_again(mongo_url: str) -> None:
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        database.drop_collection("go_goscope_locks")
        found = run("ready", mongo_url)
        assert (found["threads"], found["sockets"], found["clients"], found["heard"]) == (0, 0, 0, [])
        assert set(database.go_goscope_locks.index_information()) == {"_id_", "key_1", "expiresAt_1"}


def test_ready_does_not_wait_for_a_server_that_is_away() -> None:
    found = run("ready", AWAY)
    assert (found["threads"], found["sockets"], found["clients"]) == (0, 0, 0)
    assert len(found["heard"]) == 1, "one warning"
    assert "GOSCOPE['URL']" in found["heard"][0] and "first use" in found["heard"][0]
    assert "hunter2" not in found["heard"][0]
    assert found["seconds"] < 10, "it gives up by itself (after two seconds; the rest is room for slow machines)"


def test_ready_does_not_hang_on_a_server_that_accepts_and_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = run("ready", f"mongodb://127.0.0.1:{silent.getsockname()[1]}/goscope")
    assert len(found["heard"]) == 1
    # The thread that waits for the answer ends with its time limit; a fork does not wait for it as long as that.
    assert (found["threads in the end"], found["sockets"]) == (0, 0)
    assert found["seconds"] < 10


def test_fail_fast_is_an_error() -> None:
    found = run("fail_fast", AWAY)
    assert "no server was reached" in found["raised"]
    assert "hunter2" not in found["raised"]


@pytest.mark.slow
def test_a_server_that_comes_later_gets_its_indexes_on_first_use() -> None:
    with replica_set(members=1) as server:
        port = server.kill_primary()
        url = f"mongodb://127.0.0.1:{port}/later?directConnection=true"
        with subprocess.Popen(
            program("later", url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "away\n"
            server.resume(port)
            server.primary_port()
            out, complaints = process.communicate("there\n", timeout=60)
        assert complaints == ""
        found = json.loads(out.splitlines()[-1])
        assert found["found"] == 1
        assert found["indexes"] == ["present"]
        assert len(found["heard"]) == 1, "it was said once that it was away"


@contextmanager
def gunicorn(url: str, folder: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """Serve ``gunicorn_app`` with warnings as errors; yields its address and where its complaints are written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "gunicorn.log"
    # From 3.12 on Python warns of any fork of a process with threads; an open client of PyMongo has some.
    strict = "error,ignore:This process:DeprecationWarning"
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, *arguments, "tests.scripts.gunicorn_app:application"],
            stdout=stream,
            stderr=stream,
            cwd=ROOT,
            env=environment(GOSCOPE_TEST_URL=url, PYTHONWARNINGS=strict),
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/", log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise AssertionError("gunicorn did not end: something hangs at its exit") from None
    assert code == 0, log.read_text()


@pytest.mark.fleet
@pytest.mark.parametrize("arguments", [("--preload",), (), ("--preload", "--threads", "4")], ids=" ".join)
def test_under_gunicorn_nothing_warns_and_nothing_hangs(
    arguments: tuple[str, ...], mongo_url: str, tmp_path: Path
) -> None:
    answers: list[dict[str, Any]] = []

    def ask(address: str, times: int) -> None:
        for _ in range(times):
            with urllib.request.urlopen(address, timeout=30) as response:
                answers.append(json.load(response))

    with gunicorn(mongo_url, tmp_path, *arguments) as (address, log):
        deadline = time.monotonic() + 30
        while len({answer["pid"] for answer in answers}) < 2 and time.monotonic() < deadline:
            clients = [threading.Thread(target=ask, args=(address, 5)) for _ in range(4)]
            for one in clients:
                one.start()
            for one in clients:
                one.join()
        complaints = log.read_text()
    assert len({answer["pid"] for answer in answers}) == 2, "both workers answered"
    assert len({answer["count"] for answer in answers}) == len(answers), "no count was given out twice"
    assert all(answer["released"] and answer["loaded-by"] and answer["asynchronously"] for answer in answers)
    if "--preload" in arguments:
        (loader,) = {answer["loaded-by"] for answer in answers} | {answer["asynchronously"] for answer in answers}
        assert loader not in {answer["pid"] for answer in answers}
    for word in ("Warning", "Error", "Traceback", "Exception"):
        assert word not in complaints
