"""The page *Testing* is true: its examples are the tests of a new project, which each of its commands runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.support.documents import ROOT, blocks

PAGE = "docs/how-to/testing.md"
SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "only-for-tests-" + "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["goscope_django", "shop"]
"""
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
OPTIONS = "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\nasyncio_mode = auto\n"


def project(folder: Path, *, real: bool, conftest: bool) -> None:
    shop = folder / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    settings = [SETTINGS]
    for name, code in blocks(PAGE):
        assert name, f"a block that names no file is not run:\n{code}"
        if name == "settings.py":
            settings.append(code)
        elif name != "conftest.py" or conftest:
            (shop / name).write_text(code)
    assert len(settings) == 3, "the settings for mongomock, and those for a real server"
    (folder / "settings.py").write_text("\n".join(settings if real else settings[:2]))
    (folder / "manage.py").write_text(MANAGE)
    (folder / "pytest.ini").write_text(OPTIONS)


def run(folder: Path, *command: str, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("real", [False, True], ids=["mongomock", "server"])
def test_the_examples_pass_however_they_are_run(real: bool, tmp_path: Path, mongo_url: str) -> None:
    project(tmp_path, real=real, conftest=False)
    environ = {"TEST_URL": mongo_url} if real else {}
    assert "Ran 3 tests" in run(tmp_path, "manage.py", "test", **environ)
    assert "Ran 3 tests" in run(tmp_path, "manage.py", "test", "--parallel", "2", **environ)
    assert "6 passed" in run(tmp_path, "-m", "pytest", "shop/tests.py", "shop/test_shop.py", **environ)
    assert "6 passed" in run(tmp_path, "-m", "pytest", "-n", "2", "shop/tests.py", "shop/test_shop.py", **environ)


def test_other_prefixes_for_workers(tmp_path: Path, mongo_url: str) -> None:
    project(tmp_path, real=True, conftest=True)
    run(tmp_path, "-m", "pytest", "-n", "2", "shop/test_shop.py", TEST_URL=mongo_url)
    with MongoClient[dict[str, Any]](mongo_url) as client:
        keys = client.get_default_database().go_goscope_cache.distinct("key")
    assert [key for key in keys if key.startswith(("shop-gw0:", "shop-gw1:"))], keys
