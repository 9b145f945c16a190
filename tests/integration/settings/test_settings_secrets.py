"""Passwords in no message, log or check, with a server that asks for them."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from pymongo import MongoClient

from goscope_django import checks, runtime
from goscope_django.exceptions import StoreError
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.mongod import ReplicaSet, replica_set

RIGHT, WRONG = "hunter2-right", "hunter2-wrong"
pytestmark = pytest.mark.slow


class Guarded:
    """A server with access control and one user."""

    def __init__(self, server: ReplicaSet) -> None:
        self.server = server

    def url(self, password: str, name: str = "me") -> str:
        return (
            f"mongodb://{name}:{password}@127.0.0.1:{self.server.ports[0]}/guarded"
            "?authSource=admin&directConnection=true&serverSelectionTimeoutMS=2000"
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    key = tmp_path_factory.mktemp("auth") / "key"
    key.write_text("0123456789abcdef" * 4)
    key.chmod(0o600)
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as server:
        with server.client() as client:
            client.admin.command("createUser", "me", pwd=RIGHT, roles=["root"])
            client.admin.command("createUser", "writer", pwd=RIGHT, roles=[{"role": "readWrite", "db": "guarded"}])
            client.admin.command("createUser", "reader", pwd=RIGHT, roles=[{"role": "read", "db": "guarded"}])
        port = server.kill_primary()
        server._extra_args = ("--auth", "--keyFile", str(key))
        server.resume(port)
        guarded = Guarded(server)
        with MongoClient[dict[str, Any]](guarded.url(RIGHT).replace("2000", "20000")) as client:
            while not client.admin.command("hello")["isWritablePrimary"]:
                pass
        yield guarded


def test_the_right_password_works(guarded: Guarded, drive: Drive) -> None:
    with on_server(guarded.url(RIGHT)):
        drive(cache, "set", "k", 1)
        assert drive(cache, "get", "k") == 1


def test_rights_to_read_and_write_suffice(guarded: Guarded, drive: Drive) -> None:
    with on_server(guarded.url(RIGHT, "writer")):
        adapter = runtime.adapter()
        adapter.ensure_indexes()
        drive(cache, "set", "k", 1)
        drive(cache, "clear")
        handle = drive(adapter.lock, "acquire", "k", 60_000)
        assert handle is not None and drive(handle, "release") is True
        assert drive(adapter.circuit_breaker, "record_failure", "c", 5) >= 1
        found = checks.check_stores(databases=["default"])
        assert {one.id for one in found} <= {"goscope.W016"}, "the version's age has nothing to do with rights"


def test_a_wrong_password_is_an_error_that_does_not_show_it(
    guarded: Guarded, drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), on_server(guarded.url(WRONG)):
        for subject, method, args in ((cache, "get", ("k",)), (runtime.adapter().lock, "acquire", ("k",))):
            with pytest.raises(StoreError, match="refuses the user or the password") as caught:
                drive(subject, method, *args)
            assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        found = checks.check_stores(databases=["default"])
        assert [one.id for one in found] == ["goscope.W010"]
        assert "hunter2" not in str(found)
        runtime.prepare()
    assert "hunter2" not in caplog.text


def test_missing_rights_are_an_error_that_says_so(
    guarded: Guarded, drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), on_server(guarded.url(RIGHT, "reader")):
        assert drive(cache, "get", "nothing") is None
        with pytest.raises(StoreError, match="lacks the right") as caught:
            drive(cache, "set", "k", 1)
        with pytest.raises(StoreError, match="lacks the right"):
            drive(runtime.adapter().lock, "acquire", "k")
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in caplog.text


def test_a_whole_process_with_a_wrong_password_shows_none(guarded: Guarded, tmp_path: Path) -> None:
    """Start-up, a check and a failed use, with everything that is logged and every traceback."""
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, sys\nlogging.basicConfig(level=logging.DEBUG)\n"
        "from django.conf import settings\nimport django\nfrom django.core.management import call_command\n"
        "settings.configure(GOSCOPE={'URL': sys.argv[1]}, INSTALLED_APPS=['goscope_django'], SECRET_KEY='x' * 50,\n"
        "    CACHES={'default': {'BACKEND': 'goscope_django.cache.MongoDBCache'}})\n"
        "django.setup()\ncall_command('check', databases=['default'])\n"
        "from django.core.cache import cache\ncache.set('k', 1)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), guarded.url(WRONG)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).resolve().parents[3],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "PATH": ""},
    )
    assert done.returncode == 1
    assert "CredentialsRefused" in done.stderr and "W010" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
