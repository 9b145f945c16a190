"""The examples of docs/explanation/exactly-once.md are run as they stand there, in a new project on MongoDB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.documents import ROOT, blocks

pytest.importorskip("django_mongodb_backend", reason="django-mongodb-backend is not installed")
PAGE = "docs/explanation/exactly-once.md"
AFTER = """
from goscope_django import runtime
assert sorted(Order.objects.values_list("number", flat=True)) == [1, 2, 3, 4, 5]
assert place(2) == "order 2 placed" and Order.objects.count() == 5
assert sorted(one.state for one in runtime.adapter().idempotency.list()) == ["completed", "completed"]
"""


def test_the_examples_do_what_they_say(tmp_path: Path, mongo_url: str) -> None:
    app = tmp_path / "store"
    app.mkdir()
    (app / "__init__.py").touch()
    settings, script = ['SECRET_KEY = "x" * 50', "USE_TZ = True"], ["import django; django.setup()"]
    for name, code in blocks(PAGE):
        if name == "settings.py":
            parts = urlsplit(mongo_url)
            server = urlunsplit(parts._replace(path="/"))
            settings.append(code.replace("mongodb://127.0.0.1:27017", server).replace('"shop"', f'"{parts.path[1:]}"'))
        elif name == "models.py":
            (app / "models.py").write_text(code)
        else:
            script.append(code)
    settings.append('INSTALLED_APPS = ["goscope_django", "store"]')
    (tmp_path / "settings.py").write_text("\n".join(settings))
    (tmp_path / "script.py").write_text("\n".join([*script, AFTER]))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
