"""The pytest plugin: a prefix for each worker, and an empty store for a test that asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from django.core.cache import cache

from goscope_django import conf, runtime
from goscope_django.mongodb import MongoDBAdapter

ROOT = Path(__file__).resolve().parents[2]


def test_a_project_may_put_a_prefix_of_its_own_in_place(goscope_worker_prefix: str) -> None:
    # Here conftest.py has none; the project below has the plugin's.
    assert goscope_worker_prefix == ""
    assert conf.current().key_prefix == goscope_worker_prefix
    assert runtime.adapter().key_prefix == goscope_worker_prefix


def test_the_fixture_gives_an_empty_store(goscope: MongoDBAdapter) -> None:
    assert goscope.cache.keys() == [] and goscope.lock.list() == []
    assert goscope is runtime.adapter()
    cache.set("k", 1)
    goscope.lock.acquire("left", 60_000)
    goscope.circuit_breaker.record_failure("c", 5)


def test_what_the_test_before_left_is_gone(goscope: MongoDBAdapter) -> None:
    assert cache.get("k") is None
    assert goscope.lock.list() == [] and goscope.circuit_breaker.list() == {}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "settings.py": """
            import os
            SECRET_KEY = "x" * 50
            INSTALLED_APPS = ["goscope_django"]
            GOSCOPE = {"URL": "mongodb://127.0.0.1:9/never", "TEST": {"URL": os.environ["TEST_URL"]}}
            CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}
            """,
        "test_workers.py": """
            import os, time
            import pytest
            from django.core.cache import cache

            @pytest.mark.parametrize("number", range(8))
            def test_workers_do_not_meet(number, goscope):
                worker = os.environ["PYTEST_XDIST_WORKER"]
                assert cache.get("mine") is None
                cache.set("mine", worker)
                with goscope.lock.acquire("one name for all", 60_000):
                    time.sleep(0.05)
                    assert cache.get("mine") == worker
            """,
        "plain/test_plain.py": "def test_it():\n    pass\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    left_out = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "DJANGO_SETTINGS_MODULE", "PYTEST_ADDOPTS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": f"{folder}:{ROOT}", **environ},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.slow
def test_workers_on_one_server_do_not_meet(project: Path, mongo_url: str) -> None:
    done = run(project, "-n", "3", "test_workers.py", DJANGO_SETTINGS_MODULE="settings", TEST_URL=mongo_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_a_project_without_django_is_left_alone(project: Path) -> None:
    """The plugin is loaded wherever the package is installed, so it must not need Django's settings."""
    done = run(project / "plain", "-p", "no:django", "test_plain.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
