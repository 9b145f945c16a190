"""Runs of tests in a project of its own: which store they use, and that parallel workers don't share data."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "settings.py": """
        SECRET_KEY = "x" * 50
        USE_TZ = True
        INSTALLED_APPS = ["goscope_django", "app"]
        DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}}
        GOSCOPE = {{"URL": {url!r}, "TEST": {{"URL": {test!r}}}}}
        CACHES = {{"default": {{"BACKEND": "goscope_django.cache.MongoDBCache"}}}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
        """,
    "manage.py": """
        import multiprocessing, os, sys

        if __name__ == "__main__":
            os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
            if method := os.environ.get("START_METHOD"):
                multiprocessing.set_start_method(method)
            from django.core.management import execute_from_command_line
            execute_from_command_line(sys.argv)
        """,
    "app/__init__.py": "",
    "app/tests.py": """
        import time
        from pathlib import Path

        from django.core.cache import cache
        from django.test import TestCase
        from goscope_django.locks import lock

        FOLDER = Path(__file__).parent

        def meet(name):
            \"\"\"Go on when both tests run: then they run in two processes.\"\"\"
            (FOLDER / name).touch()
            end = time.monotonic() + 60
            while len(list(FOLDER.glob("*.here"))) < 2:
                assert time.monotonic() < end, "the other worker never came"
                time.sleep(0.01)

        class Apart:
            def test_apart(self):
                with lock("the same", blocking=False):
                    cache.set("k", self.name)
                    meet(f"{{self.name}}.here")
                    self.assertEqual(cache.get("k"), self.name)

        class One(Apart, TestCase):
            name = "one"

        class Two(Apart, TestCase):
            name = "two"
        """,
    "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npython_files = tests.py\npythonpath = .\n",
}


def project(folder: Path, *, url: str = "mongodb://127.0.0.1:1/never", test: str = "mongomock://") -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text.format(url=url, test=test)))
    return folder


def run(project: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DJANGO_SETTINGS_MODULE", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS")
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def database(mongo_url: str) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](mongo_url) as client:
        client.drop_database(client.get_default_database().name)
        yield client.get_default_database()


@pytest.mark.parametrize(
    ("command", "method", "prefixes"),
    [
        (("manage.py", "test", "--parallel", "2"), "fork", ("worker1:", "worker2:")),
        (("manage.py", "test", "--parallel", "2"), "spawn", ("worker1:", "worker2:")),
        (("-m", "pytest", "-q", "-n", "2", "--dist", "each", "-k", "One"), "", ("gw0:", "gw1:")),
    ],
    ids=("fork", "spawn", "xdist"),
)
def test_workers_on_one_server_do_not_share_data(
    command: tuple[str, ...], method: str, prefixes: tuple[str, ...], database: Any, mongo_url: str, tmp_path: Path
) -> None:
    folder = project(tmp_path, test=mongo_url)
    if "pytest" in command:  # each worker runs the same test; the name of its file must differ, not that of its key
        text = (folder / "app" / "tests.py").read_text()
        (folder / "app" / "tests.py").write_text(text.replace('meet(f"{self.name}', 'import os; meet(f"{os.getpid()}'))
    done = run(folder, *command, START_METHOD=method)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one["key"] for one in database.go_goscope_cache.find()} == {f"{prefix}cache::1:k" for prefix in prefixes}


def test_without_mongomock_the_run_says_what_to_install_before_the_first_test(tmp_path: Path) -> None:
    folder = project(tmp_path)
    hidden = "import sys; sys.modules['mongomock'] = None; sys.argv = ['manage.py', 'test']; import runpy; "
    hidden += "runpy.run_path('manage.py', run_name='__main__')"
    done = run(folder, "-c", hidden)
    assert done.returncode == 1
    assert "goscope.E003" in done.stderr and "pip install mongomock" in done.stderr
    assert "GOSCOPE['TEST']['URL']" in done.stderr and "Ran " not in done.stderr
    done = run(folder, "-c", "import sys; sys.modules['mongomock'] = None; import pytest; sys.exit(pytest.main())")
    assert done.returncode == 4
    assert "pip install mongomock" in done.stdout and "passed" not in done.stdout and "failed" not in done.stdout


PRODUCTION = """
import django
django.setup()
from django.core import mail
from django.core.cache import cache
from goscope_django import conf, operations, runtime

assert runtime.adapter().lock.acquire("charge") is not None
mail.send_mail("Receipt", "Paid", "shop@example.net", ["you@example.net"])
assert mail.outbox, "the locmem backend leaves an outbox"
import pytest, _pytest.main, pytest_django.plugin, app.tests  # as a project's helpers may
assert runtime.adapter().lock.acquire("charge") is None, "the charge would run twice"
cache.set("k", 1)
state = operations.state()
assert not state.under_test and state.chosen_by == "GOSCOPE['URL']", state
print(state.url)
"""


def test_an_email_in_production_swaps_nothing(database: Any, mongo_url: str, tmp_path: Path) -> None:
    folder = project(tmp_path, url=mongo_url)
    environ = {"DJANGO_SETTINGS_MODULE": "settings", "PYTEST_XDIST_WORKER": "gw0", "PYTEST_CURRENT_TEST": "x"}
    done = run(folder, "-c", PRODUCTION, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == mongo_url
    assert [one["key"] for one in database.go_goscope_cache.find()] == ["cache::1:k"]


def test_a_subprocess_of_a_test_is_not_under_test(database: Any, mongo_url: str, tmp_path: Path) -> None:
    """It is started with all the variables of the run, and still uses the project's own store."""
    folder = project(tmp_path, url=mongo_url)
    (folder / "app" / "tests.py").write_text(
        "import subprocess, sys\n"
        "from django.test import SimpleTestCase\n"
        "class Starts(SimpleTestCase):\n"
        "    def test_it(self):\n"
        "        code = 'import django; django.setup(); from django.core.cache import cache; cache.set(1, 1)'\n"
        "        subprocess.run([sys.executable, '-c', code], check=True)\n"
    )
    for command in (("manage.py", "test"), ("-m", "pytest", "-q")):
        database.go_goscope_cache.delete_many({})
        done = run(folder, *command, DJANGO_SETTINGS_MODULE="settings")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [one["key"] for one in database.go_goscope_cache.find()] == ["cache::1:1"]
