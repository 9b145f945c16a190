"""Commands as a shell sees them: exit codes, one JSON document, messages on stderr, no question to nobody."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.driver import client as clients
from goscope_django.operations.meanwhile import FEATURES
from tests.support.long import also
from tests.support.manage import ROOT, Ended, environment, manage, script, start
from tests.support.mongod import process_exists

CTRL_C = "Ctrl-C"
AWAY = "mongodb://me:secret@127.0.0.1:1/x?serverSelectionTimeoutMS=60000"


@pytest.fixture
def adapter(mongo_url: str) -> Iterator[MongoDBAdapter]:
    """What the project under ``mongo_url`` sees, with its indexes, and emptied afterwards."""
    found = MongoDBAdapter.on(clients.store(mongo_url))
    found.ensure_indexes()
    yield found
    found.wipe()


def one_document(ended: Ended) -> dict[str, Any]:
    document = ended.document
    assert document["schema_version"] == 1
    return document


def test_status_is_a_probe(mongo_url: str, adapter: MongoDBAdapter) -> None:
    ended = manage(mongo_url, "goscope_status", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert one_document(ended)["server"]["indexes_ok"] is True

    database = adapter.store._sync().database  # type: ignore[misc]
    database["go_goscope_locks"].drop_index("key_1")
    ended = manage(mongo_url, "goscope_status", "--json")
    assert ended.code == 1
    assert one_document(ended)["server"]["indexes_ok"] is False
    assert "go_goscope_locks.key_1" in ended.err and "`manage.py goscope_indexes ensure`" in ended.err
    # To look is not to mend: it is still missing.
    ended = manage(mongo_url, "goscope_indexes", "check")
    assert ended.code == 1 and "missing" in ended.out

    database["go_goscope_locks"].create_index("key")
    ended = manage(mongo_url, "goscope_status")
    assert ended.code == 1
    assert "`manage.py goscope_indexes ensure --repair`" in ended.err
    ended = manage(mongo_url, "goscope_indexes", "ensure")
    assert ended.code == 1 and "ensure --repair" in ended.err
    ended = manage(mongo_url, "goscope_indexes", "ensure", "--repair")
    assert ended.code == 2 and "--no-input" in ended.err
    ended = manage(mongo_url, "goscope_indexes", "ensure", "--repair", "--no-input", "--json")
    assert ended.code == 0
    document = one_document(ended)
    assert document["ok"] is True and [one["target"] for one in document["done"]] == ["go_goscope_locks.key_1"]
    assert manage(mongo_url, "goscope_status").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("goscope_status",),
        also(("goscope_lock", "list")),
        ("goscope_lock", "show", "k"),
        ("goscope_idempotency", "delete", "k", "--no-input"),
        ("goscope_lock", "release", "k", "--no-input"),
        also(("goscope_circuit", "list")),
        also(("goscope_circuit", "reset", "c", "--no-input")),
        also(("goscope_checkpoint", "delete", "t", "--no-input")),
        ("goscope_cache", "clear", "--no-input"),
        also(("goscope_cache", "stats")),
        also(("goscope_indexes", "check")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_without_a_server_the_exit_code_is_2_and_the_message_says_what_to_do(arguments: tuple[str, ...]) -> None:
    ended = manage(AWAY, *arguments, "--json")
    assert ended.code == 2
    assert one_document(ended)["error"]
    assert "127.0.0.1:1" in ended.err
    assert "Is the server running" in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.out + ended.err


def test_fail_fast_does_not_keep_an_operator_out() -> None:
    ended = manage(AWAY, "goscope_status", goscope={"FAIL_FAST": True})
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "What each feature does meanwhile" in ended.out
    assert all(one.feature in ended.out and one.now[:20] in ended.out for one in FEATURES)
    told = ended.out.partition("meanwhile")[2]
    assert all(len(line) <= 80 for line in told.splitlines())


@pytest.mark.parametrize(
    ("url", "more", "named"),
    [
        ("bogus://me:secret@127.0.0.1/x", {}, "the scheme must be one of"),
        ("mongodb://127.0.0.1:1", {}, "a database is needed"),
        ("mongomock://", {"goscope": {"KEY_PREFIXX": "a"}}, "KEY_PREFIX"),
    ],
)
def test_settings_that_can_not_be_used_are_named(url: str, more: dict[str, Any], named: str) -> None:
    for arguments in (("goscope_status", "--json"), ("goscope_lock", "list", "--json")):
        ended = manage(url, *arguments, **more)
        assert ended.code == 2
        assert named in ended.err
        assert named in one_document(ended)["error"]["message"]
        assert "secret" not in ended.out + ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("goscope_lock",),
        also(("goscope_lock", "bogus")),
        also(("goscope_lock", "list", "--limit", "0")),
        ("goscope_lock", "list", "--limit", f"{2**63}"),
        also(("goscope_lock", "release", "k", "--token", "x")),
        ("goscope_lock", "release", "k", "--no-input", "--token", f"{2**63}"),
        ("goscope_checkpoint", "delete", "k", "--no-input", "--token", "9" * 5_000),
        also(("goscope_circuit", "reset", "k", "--no-input", "--generation", f"{2**63}")),
        also(("goscope_circuit", "list", "--state", "ajar")),
        ("goscope_status", "--watch", "0"),
        also(("goscope_status", "--watch", "1", "--json")),
        ("goscope_cache", "keys", "--alias", "nix"),
        ("goscope_cache", "keys", "--limit", f"{2**63}"),
        ("goscope_mongod", "status"),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    ended = manage("mongomock://", *arguments)
    assert ended.code == 2
    assert ended.err and "Traceback" not in ended.err


def test_a_lock_is_released_in_a_shell(mongo_url: str, adapter: MongoDBAdapter) -> None:
    handle = adapter.lock.acquire("k", 60_000, owner="worker")
    assert handle is not None
    listed = one_document(manage(mongo_url, "goscope_lock", "list", "--json"))["locks"]
    assert [(one["key"], one["owner"], one["token"]) for one in listed["items"]] == [("k", "worker", handle.token)]

    refused = manage(mongo_url, "goscope_lock", "release", "k")
    assert refused.code == 2 and "--no-input" in refused.err and handle.is_valid()
    changed = manage(mongo_url, "goscope_lock", "release", "k", "--token", "1", "--no-input", "--json")
    assert changed.code == 1 and one_document(changed)["error"]["type"] == "StateChanged" and handle.is_valid()
    done = manage(mongo_url, "goscope_lock", "release", "k", "--token", str(handle.token), "--no-input", "--json")
    assert done.code == 0 and one_document(done)["done"]["count"] == 1 and not handle.is_valid()
    gone = manage(mongo_url, "goscope_lock", "release", "k", "--no-input", "--json")
    assert gone.code == 1 and one_document(gone)["error"]["type"] == "NotFound"


def answered(url: str, arguments: tuple[str, ...], answer: str) -> tuple[int, str]:
    """Run a command on a terminal of its own, and type ``answer`` once it asks."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "django", *arguments],
        cwd=ROOT,
        env={**environment(url), "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    typed = False
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # its end of the terminal is closed
            break
        if not part:
            break
        shown += part
        if b"Type 'yes'" in shown and not typed:
            if answer == CTRL_C:
                process.send_signal(signal.SIGINT)
            else:
                os.write(master, f"{answer}\n".encode())
            typed = True
    os.close(master)
    return process.wait(30), shown.decode()


def test_on_a_terminal_it_asks_and_an_answer_other_than_yes_does_nothing(
    mongo_url: str, adapter: MongoDBAdapter
) -> None:
    handle = adapter.lock.acquire("k", 60_000)
    assert handle is not None
    for answer in ("no", CTRL_C):
        code, shown = answered(mongo_url, ("goscope_lock", "release", "k"), answer)
        assert code == 1 and "Nothing was done" in shown and "Traceback" not in shown and handle.is_valid()
    code, shown = answered(mongo_url, ("goscope_lock", "release", "k"), "yes")
    assert code == 0 and not handle.is_valid()


@pytest.mark.parametrize(
    "arguments",
    [
        ("goscope_lock", "list", "--limit", "2000"),
        also(("goscope_cache", "keys")),
        ("goscope_status", "--watch", "0.2"),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_no_error(
    mongo_url: str, adapter: MongoDBAdapter, arguments: tuple[str, ...]
) -> None:
    database = adapter.store._sync().database  # type: ignore[misc]
    keys = [f"lock:{number}" for number in range(1_000)]
    database["go_goscope_locks"].insert_many({"_id": key, "key": key, "owner": "o" * 100} for key in keys)
    keys = [f"cache::1:{number:0200}" for number in range(500)]
    database["go_goscope_cache"].insert_many({"_id": key, "key": key, "value": 1} for key in keys)
    process = start(mongo_url, *arguments)
    assert process.stdout is not None and process.stderr is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4_096)  # the output is larger: the writer waits for its reader
    assert process.stdout.read(20)
    process.stdout.close()
    with process.stderr:
        told = process.stderr.read()
    assert (process.wait(30), told) == (141, "")


def test_what_the_terminals_encoding_lacks_is_escaped(
    mongo_url: str, adapter: MongoDBAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert adapter.lock.acquire("ключ", 60_000)
    ended = manage(mongo_url, "goscope_lock", "list")
    assert (ended.code, ended.err) == (0, "")
    assert r"\u043a\u043b\u044e\u0447" in ended.out


def test_closed_streams_are_no_error(mongo_url: str, adapter: MongoDBAdapter) -> None:
    def ended(*arguments: str) -> int:
        shell = 'exec "$0" -W error -m django "$@" >&- 2>&-'
        command = ["sh", "-c", shell, sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment(mongo_url), timeout=60, check=False).returncode

    assert adapter.lock.acquire("k", 60_000)
    assert ended("goscope_status") == 0
    assert ended("goscope_lock", "release", "k", "--no-input", "--json") == 0
    assert ended("goscope_lock", "release", "k", "--no-input", "--json") == 1
    assert ended("goscope_lock", "release", "k") == 2


def test_colours_are_for_terminals(mongo_url: str, adapter: MongoDBAdapter) -> None:
    assert "\x1b" not in manage(mongo_url, "goscope_status").out
    code, shown = answered(mongo_url, ("goscope_status",), "")
    assert code == 0 and "\x1b[" in shown


def test_watch_shows_it_again_and_ends_with_ctrl_c(mongo_url: str, adapter: MongoDBAdapter) -> None:
    process = start(mongo_url, "goscope_status", "--watch", "0.2")
    assert process.stdout is not None
    try:
        seen = 0
        while seen < 3:
            line = process.stdout.readline()
            assert line, "it ended by itself"
            seen += "Ctrl-C ends" in line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    finally:
        process.kill()
        process.wait()


def test_the_private_server_is_started_stays_and_is_stopped(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/db"
    assert manage(url, "goscope_mongod", "status", "--json").code == 1
    assert not (tmp_path / "db").exists()
    try:
        first = manage(url, "goscope_mongod", "start", "--json")
        assert first.code == 0
        server = one_document(first)["mongod"]
        assert server["running"] and server["users"] == []
        again = one_document(manage(url, "goscope_mongod", "start", "--json"))["mongod"]
        assert again["pid"] == server["pid"]
        # Whoever comes and leaves meanwhile does not end it.
        assert manage(url, "goscope_indexes", "ensure").code == 0
        assert manage(url, "goscope_status").code == 0
        assert one_document(manage(url, "goscope_mongod", "status", "--json"))["mongod"]["pid"] == server["pid"]
    finally:
        stopped = manage(url, "goscope_mongod", "stop", "--json")
    assert stopped.code == 0 and one_document(stopped)["stopped"] is True
    assert not process_exists(server["pid"])
    again_stopped = manage(url, "goscope_mongod", "stop", "--json")
    assert again_stopped.code == 0 and one_document(again_stopped)["stopped"] is False
    assert manage(url, "goscope_mongod", "status").code == 1
    # Without having been started on purpose it ends with its last user, as ever.
    assert script(url, "from django.core.cache import cache; cache.set('a', 1)").code == 0
    assert manage(url, "goscope_mongod", "status").code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_ends_with_the_command(number: int, tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/db"
    process = start(url, "goscope_mongod", "start", "--foreground")
    assert process.stderr is not None
    try:
        assert "Ctrl-C ends" in process.stderr.readline()
        running = one_document(manage(url, "goscope_mongod", "status", "--json"))["mongod"]
        assert running["users"] == [process.pid]
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 0
        deadline = time.monotonic() + 20
        while process_exists(running["pid"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not process_exists(running["pid"])
    finally:
        process.kill()
        process.wait()
        manage(url, "goscope_mongod", "stop")


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = manage(f"embedded://{tmp_path}/file", "goscope_mongod", "start")
    assert ended.code == 2 and "it is not a folder" in ended.err
