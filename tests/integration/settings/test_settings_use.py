"""Settings are read when they are used; tests never touch the settings' own database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.test import override_settings

from goscope_django import conf, runtime
from tests.support.commands import Recorder, on_server

ROOT = Path(__file__).resolve().parents[3]


class Trap:
    """Listens where the settings' database would be, and remembers who came."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.visits = 0
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        while True:
            try:
                visitor, _ = self.listener.accept()
            except OSError:
                return
            self.visits += 1
            visitor.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


@pytest.fixture
def project(tmp_path: Path, trap: Trap) -> Path:
    """A small project whose URL leads into the trap."""
    files = {
        "settings.py": f"""
            SECRET_KEY = "x" * 50
            INSTALLED_APPS = ["goscope_django", "app"]
            DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}}
            GOSCOPE = {{"URL": "mongodb://127.0.0.1:{trap.port}/production?serverSelectionTimeoutMS=1000"}}
            CACHES = {{"default": {{"BACKEND": "goscope_django.cache.MongoDBCache"}}}}
            SESSION_ENGINE = "django.contrib.sessions.backends.cache"
            DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
            """,
        "manage.py": """
            import os, sys
            os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
            from django.core.management import execute_from_command_line
            execute_from_command_line(sys.argv)
            """,
        "app/__init__.py": "",
        "app/tests.py": """
            from django.core.cache import cache
            from django.test import TestCase
            from goscope_django import runtime

            class Uses(TestCase):
                async def test_async(self):
                    await cache.aset("k", 1)
                    assert await cache.aget("k") == 1

                def test_it(self):
                    cache.set("k", 1)
                    assert cache.get("k") == 1
                    with runtime.adapter().lock.acquire("k", 5_000) as handle:
                        assert handle.is_valid()

            def test_pytest():
                cache.set("k", 1)
                assert cache.get("k") == 1
            """,
        "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npython_files = tests.py\npythonpath = .\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DJANGO_SETTINGS_MODULE", "PYTEST_XDIST_WORKER")
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [("manage.py", "test"), ("-m", "django", "test", "--settings=settings", "--pythonpath=."), ("-m", "pytest", "-q")],
    ids=" ".join,
)
def test_tests_never_touch_the_settings_database(command: tuple[str, ...], project: Path, trap: Trap) -> None:
    done = run(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tests" in done.stderr or "3 passed" in done.stdout
    assert trap.visits == 0


def test_the_trap_works(project: Path, trap: Trap) -> None:
    """Outside of tests the same project does go there."""
    done = run(
        project, "-c", "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'; import django; django.setup()"
    )
    assert done.returncode == 0
    assert "first use" in done.stderr
    assert trap.visits > 0


def test_nothing_is_opened_where_nothing_needs_it(project: Path, trap: Trap) -> None:
    """``ready()`` alone connects, and not even that where it is turned off; then the checks of databases do."""
    with (project / "settings.py").open("a") as stream:
        stream.write('\nGOSCOPE["CONNECT_ON_READY"] = False\n')
    for command in (
        ("check",),
        ("makemigrations", "--check", "--dry-run"),
        ("check", "--deploy"),
    ):
        done = run(project, "manage.py", *command)
        assert done.returncode == 0, done.stderr
        assert trap.visits == 0, command
    done = run(project, "manage.py", "check", "--database", "default")
    assert done.returncode == 0 and "goscope.W010" in done.stderr
    assert trap.visits > 0


def test_an_override_counts_at_once(mongo_url: str) -> None:
    cache.set("k", "before")
    with override_settings(GOSCOPE={"TEST": {"URL": "mongomock://elsewhere"}}):
        assert cache.get("k") is None
        cache.set("k", "elsewhere")
        with override_settings(GOSCOPE={"TEST": {"URL": mongo_url}}):
            assert cache.get("k") is None
            cache.set("k", "server")
            assert runtime.adapter().cache.get(":1:k") == "server"
        assert cache.get("k") == "elsewhere"
    assert cache.get("k") == "before"


def test_overrides_of_caches_count_at_once() -> None:
    backend = "goscope_django.cache.MongoDBCache"
    cache.set("k", 1)
    with override_settings(CACHES={"default": {"BACKEND": backend, "KEY_PREFIX": "p", "TIMEOUT": 20}}):
        assert cache.get("k") is None
        cache.set("k", 2)
        ours: Any = cache
        assert ours.ttl("k") == 20
    with override_settings(CACHES={"default": {"BACKEND": backend, "LOCATION": "mongomock://another"}}):
        assert cache.get("k") is None
    assert cache.get("k") == 1
    for mode in ("raise", "ignore"):
        with override_settings(GOSCOPE={"ON_ERROR": mode}):
            caches["default"].get("k")
            assert conf.current().on_error == mode


def test_a_change_in_place_is_noticed() -> None:
    given: dict[str, Any] = {"TEST": {"URL": "mongomock://one"}}
    with override_settings(GOSCOPE=given):
        cache.set("k", 1)
        given["TEST"]["URL"] = "mongomock://two"
        assert cache.get("k") is None
        given["TEST"]["URL"] = "mongomock://one"
        assert cache.get("k") == 1


def test_settings_are_not_judged_anew_at_each_use() -> None:
    """Also where they hold what is equal to nothing but itself, such as a listener."""
    with override_settings(GOSCOPE={"CLIENT_OPTIONS": {"event_listeners": [Recorder()]}}):
        assert conf.current() is conf.current()


def test_the_prefix_of_tests_and_the_default_lease(mongo_url: str) -> None:
    with on_server(mongo_url, TEST={"URL": mongo_url, "KEY_PREFIX": "t:"}, DEFAULT_LOCK_TIMEOUT=7):
        adapter = runtime.adapter()
        assert adapter.key_prefix.endswith("t:")
        handle = adapter.lock.acquire("k")
        info = adapter.lock.get("k")
        assert handle is not None and info is not None and info.created_at is not None and info.expires_at is not None
        assert (info.expires_at - info.created_at).total_seconds() == 7


def test_settings_show_no_password() -> None:
    assert "secret" not in repr(conf.current())
    with override_settings(GOSCOPE={"TEST": {"URL": "mongodb://user:hunter2@127.0.0.1:9/x"}}):
        assert "hunter2" not in repr(conf.current()) + repr(runtime.connection()) + str(runtime.connection().target)
