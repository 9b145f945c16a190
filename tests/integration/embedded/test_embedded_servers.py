"""The private ``mongod`` under gunicorn, and under many users at once of whom some are killed with it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from goscope_django.mongodb import embedded
from tests.integration.process.test_processes import gunicorn
from tests.scripts.embedded_worker import ROOT
from tests.support.manage import start
from tests.support.mongod import children_of

pytestmark = [pytest.mark.real, pytest.mark.fleet]


def kill_and_wait(folder: Path) -> None:
    """Kill the server and wait until its users have started it again."""
    killed = embedded.status(folder).pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while embedded.status(folder).pid in {None, killed}:
        assert time.monotonic() < deadline, "nobody started it again"
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", [("--preload",), ()], ids=" ".join)
def test_gunicorn_serves_on_when_it_was_killed_and_ends_it(
    arguments: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    def ask(address: str) -> dict[str, Any]:
        with urllib.request.urlopen(address, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found

    with gunicorn(f"embedded://{folder}", tmp_path, *arguments) as (address, log):
        first = [ask(address) for _ in range(6)]
        kill_and_wait(folder)
        again = [ask(address) for _ in range(6)]
        counts = [answer["count"] for answer in (*first, *again)]
        assert counts == sorted(set(counts))
        users = embedded.status(folder).users
        assert {answer["pid"] for answer in again} <= set(users)
        complaints = log.read_text()
    assert not embedded.status(folder).running, "the last that left ended it"
    for word in ("Warning", "Error", "Traceback", "Exception"):
        assert word not in complaints


USER = """
    import asyncio, sys, threading, time
    from goscope_django.mongodb.driver import client as clients
    store = clients.connection("embedded://" + sys.argv[1], {"serverSelectionTimeoutMS": 120_000})
    failures, done, over = [], 0, threading.Event()

    def insert():
        global done
        store.sync().database.things.insert_one({})
        done += 1

    async def ainsert():
        global done
        await store.asynchronous().database.things.insert_one({})
        done += 1

    def work():
        while not over.wait(0.02):
            try:
                insert()
            except Exception as error:
                failures.append(repr(error))

    async def awork():
        while not over.is_set():
            try:
                await ainsert()
            except Exception as error:
                failures.append(repr(error))
            await asyncio.sleep(0.02)

    insert()
    threads = [threading.Thread(target=work), threading.Thread(target=lambda: asyncio.run(awork()))]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    insert()
    print(failures, flush=True)
"""


def test_users_of_both_colours_go_on_writing_while_it_and_some_of_them_are_killed(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(USER), str(folder)]
    users = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    try:
        for user in users:
            assert user.stdout is not None
            assert user.stdout.readline() == "begun\n"
        for victim in (users[0], users[1]):
            victim.kill()
            kill_and_wait(folder)
            time.sleep(embedded.RETRY_AFTER + random.random())
        for user in users[2:]:
            assert user.communicate("", timeout=240)[0] == "[]\n"
            assert user.returncode == 0
        assert not embedded.status(folder).running, "the last that left ended it"
    finally:
        for user in users:
            user.kill()
            user.wait()
            for stream in (user.stdin, user.stdout):
                if stream is not None:
                    stream.close()


def served(program: str, folder: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """The demo's site under a server that forks, or one that ends itself by the signal that it got."""
    commands = {
        "gunicorn": ["testproject.wsgi", "--bind=127.0.0.1:0", "--workers=2"],
        "gunicorn --preload": ["testproject.wsgi", "--bind=127.0.0.1:0", "--workers=2", "--preload"],
        "uvicorn": ["testproject.asgi:application", "--port=0", "--lifespan=off"],
        "uvicorn --workers": ["testproject.asgi:application", "--port=0", "--lifespan=off", "--workers=2"],
    }
    more = {
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
        "GOSCOPE_URL": f"embedded://{folder}",
        "DATABASE_URL": f"sqlite:///{tmp_path}/shop.sqlite3",
        "SECRET_KEY": "only-for-tests-" + "x" * 50,
    }
    return subprocess.Popen(
        [sys.executable, "-m", program.split(maxsplit=1)[0], *commands[program]],
        cwd=ROOT,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.parametrize("program", ["gunicorn", "gunicorn --preload", "uvicorn", "uvicorn --workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_is_left_whatever_serves_and_however_it_ends(
    program: str, number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    process = served(program, folder, tmp_path)
    wanted = 1 if program in ("uvicorn", "gunicorn --preload") else 2
    try:
        deadline = time.monotonic() + 120
        while len(embedded.status(folder).users) < wanted:
            assert process.poll() is None and time.monotonic() < deadline, "it did not start"
            time.sleep(0.1)
        workers = children_of(process.pid)
        process.send_signal(number)
        process.wait(60)
        if number == signal.SIGKILL and program == "uvicorn --workers":
            for one in workers:  # they serve on without their parent
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while embedded.status(folder).running:
            assert time.monotonic() < deadline, f"mongod is left, with users {embedded.status(folder).users}"
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("killed", [False, True])
def test_who_stays_with_it_in_the_foreground_ends_when_it_is_gone(folder: Path, killed: bool) -> None:
    url = f"embedded://{folder}"
    process = start(url, "goscope_mongod", "start", "--foreground")
    assert process.stderr is not None
    try:
        assert "Ctrl-C ends" in process.stderr.readline()
        pid = embedded.status(folder).pid
        assert pid is not None
        if killed:
            os.kill(pid, signal.SIGKILL)
        else:
            assert embedded.stop(folder)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "does not run any more" in err
    finally:
        process.kill()
        process.communicate()
