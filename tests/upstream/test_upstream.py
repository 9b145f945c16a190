"""Our cache backend passes Django's own test classes for caches and for sessions in caches, unchanged.

They are only in Django's source distribution, which is fetched from the package index and kept in pytest's cache. None
of it is committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import django
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def django_tests(pytestconfig: pytest.Config) -> Path:
    """The folder with Django's ``tests/cache`` and ``tests/sessions_tests`` for the version that is installed."""
    version = django.get_version()
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"django-{version}")
    if not (folder / "tests" / "sessions_tests" / "tests.py").exists():
        fetched = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-binary",
                "Django",
                "--no-deps",
                "--no-build-isolation",
                "-d",
                str(folder),
                f"Django=={version}",
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
        )
        archives = list(folder.glob("[dD]jango-*.tar.gz"))
        if not archives:
            refuse = pytest.fail if os.environ.get("CI") else pytest.skip
            refuse(f"Django's source distribution could not be fetched: {fetched.stderr[-500:]}")
        with tarfile.open(archives[0]) as archive:
            parts = ("/tests/cache/", "/tests/sessions_tests/")
            wanted = [one for one in archive.getmembers() if any(part in one.name for part in parts)]
            for one in wanted:
                one.name = one.name.partition("/")[2]
            safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2 has none yet
            archive.extractall(folder, members=wanted, **safely)
    return folder / "tests"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("store", ["mongod", "mongomock"])
def test_djangos_own_cache_tests(store: str, django_tests: Path, request: pytest.FixtureRequest) -> None:
    url = "mongomock://" if store == "mongomock" else request.getfixturevalue("mongo_url")
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::ResourceWarning",
            str(Path(__file__).with_name("run_suite.py")),
            str(django_tests),
            url,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=220,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": ""},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "\nOK" in done.stderr
    # More than four hundred in every supported version: an empty run must not pass.
    ran = next(line for line in done.stderr.splitlines() if line.startswith("Ran "))
    assert int(ran.split()[1]) > 400, ran
    assert "Unclosed" not in done.stderr
