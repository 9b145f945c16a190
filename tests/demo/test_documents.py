"""The examples of README, tutorial and explanation are run as they stand there, in a new project."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import JsonResponse
from django.views.decorators.http import require_POST

from goscope_django import conf
from tests.support.documents import ROOT, blocks, read

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "only-for-tests-" + "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = []
"""
# What a reader would do next with the examples.
AFTER_README = """
from django.test import RequestFactory

assert cache.get("greeting") == "hello" and cache.get("visits") == 1 and cache.get("figures") == 499999500000
assert price("P1") == "the price of P1" and 0 < cache.ttl("greeting") <= 60
item = Item.objects.create(left=3)
count(item, 5)
item.refresh_from_db()
assert item.left == 5 and item.fence > 0
assert report(RequestFactory().get("/"))["X-Single-Flight"] == "leader"
once = lambda: pay(RequestFactory().post("/pay/", headers={"Idempotency-Key": "k"}))
assert once().status_code == 201 and once()["Idempotent-Replayed"] == "true"
with checkpointed("import:2026-01-31") as task:
    assert task.completed
"""
AFTER_TUTORIAL = """
assert cache.get("greeting") == "hello from another process" and 0 < cache.ttl("greeting") <= 300
assert handle.release()
with lock("warehouse", blocking_timeout=2) as second:
    assert second.token > handle.token
"""


def project(folder: Path, document: str, mongo_url: str, after: str) -> subprocess.CompletedProcess[str]:
    """Run a document's blocks in a new project: those that name a file lie in it, the others are one script."""
    app = folder / "store"
    app.mkdir()
    (app / "__init__.py").touch()
    settings, script = [SETTINGS], ["import django; django.setup()"]
    for name, code in blocks(document):
        if name == "settings.py" or code.lstrip().startswith("INSTALLED_APPS +="):
            settings.append(code)
        elif name == "models.py":
            (app / "models.py").write_text(code)
            script.append("from django.core.management import call_command")
            script.append("call_command('migrate', run_syncdb=True, verbosity=0)")
            script.append("from store.models import Item")
        else:
            script.append(f"exec(compile({code!r}, {document!r}, 'exec'))")
    settings.append(f'INSTALLED_APPS = [*INSTALLED_APPS, "store"]\nGOSCOPE = {{"URL": {mongo_url!r}}}')
    (folder / "settings.py").write_text("\n".join(settings))
    (folder / "script.py").write_text("\n".join([*script, after]))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "error", "script.py"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("document", "after"), [("README.md", AFTER_README), ("docs/tutorial/first-steps.md", AFTER_TUTORIAL)]
)
def test_examples_do_what_they_say(tmp_path: Path, mongo_url: str, document: str, after: str) -> None:
    done = project(tmp_path, document, mongo_url, after)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_explanation_of_flows_runs() -> None:
    namespace: dict[str, object] = {}
    for _, code in blocks("docs/explanation/flows.md"):
        exec(compile(code, "flows.md", "exec"), namespace)
    assert "take" in namespace


def test_the_order_of_decorators_and_rest_framework_run_as_the_pages_say(goscope: object) -> None:
    from django.test import RequestFactory
    from rest_framework.test import APIRequestFactory

    from goscope_django.decorators import single_flight

    ordered = next(code for _, code in blocks("docs/how-to/single-flight.md") if "login_required" in code)
    namespace: dict[str, Any] = {"__name__": "page", "single_flight": single_flight, "JsonResponse": JsonResponse}
    exec(compile(ordered, "single-flight.md", "exec"), namespace)
    request: Any = RequestFactory().get("/", headers={"X-Part": "a"})
    request.user = User(pk=1, username="ann")
    assert namespace["part"](request).content == b'{"part": "a"}'

    for _, code in blocks("docs/how-to/rest-framework.md"):
        exec(compile(code, "rest-framework.md", "exec"), namespace)
    api: Any = APIRequestFactory()
    assert namespace["prices"](api.get("/")).data == {"tea": 3}
    assert namespace["Report"].as_view()(api.get("/")).data == {"of": ""}
    paid = [namespace["Payments"].as_view()(api.post("/", headers={"Idempotency-Key": "k"})) for _ in range(2)]
    assert [one.status_code for one in paid] == [201, 201]
    assert paid[1]["Idempotent-Replayed"] == "true"


def test_the_webhook_recipe_books_an_event_once(goscope: object) -> None:
    from django.test import RequestFactory

    from goscope_django.decorators import idempotent

    booked: list[Any] = []
    namespace: dict[str, Any] = {
        "__name__": "page",
        "idempotent": idempotent,
        "require_POST": require_POST,
        "JsonResponse": JsonResponse,
        "signature_is_valid": lambda request: request.headers.get("X-Signature", "").startswith("valid"),
        "book": booked.append,
    }
    recipe = next(code for _, code in blocks("docs/how-to/idempotency.md") if "webhook" in code)
    exec(compile(recipe, "idempotency.md", "exec"), namespace)

    def deliver(signature: str, number: int) -> Any:
        body = {"id": "evt_1", "attempt": number}
        headers = {"X-Signature": signature}
        return namespace["webhook"](RequestFactory().post("/", body, "application/json", headers=headers))

    assert [deliver(f"valid {number}", number).status_code for number in range(3)] == [200] * 3
    assert len(booked) == 1
    with pytest.raises(PermissionDenied):
        deliver("forged", 4)


def test_the_reference_names_every_setting_with_its_default_and_every_check() -> None:
    page = read("docs/reference/settings.md")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert {key: ast.literal_eval(default) for key, default in rows.items()} == conf.DEFAULTS
    source = read("goscope_django/checks.py")
    assert set(re.findall(r"goscope\.[EW]\d+", page)) == set(re.findall(r"goscope\.[EW]\d+", source))
