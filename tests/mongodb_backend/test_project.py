"""A new project, made as docs/how-to/mongodb-backend.md says: its examples, migrations, admin and dashboard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from goscope_django.mongodb.embedded import Mongod
from tests.support.documents import ROOT, blocks

PAGE = "docs/how-to/mongodb-backend.md"
SETTINGS = """
SILENCED_SYSTEM_CHECKS = ["goscope.W016"]  # the server of these tests is as old as it is
SECRET_KEY = "only-for-tests-" + "x" * 50
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
STATIC_URL = "/static/"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
"""
URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""
AFTER = """
import contextlib

assert Order.objects.count() == 1
place(n=1)
assert Order.objects.count() == 1
with contextlib.suppress(KeyError), atomic():
    place(n=2)
    raise KeyError
assert Order.objects.count() == 1
assert place(n=2) == "order 2 placed" and Order.objects.count() == 2
assert sorted(Item.objects.values_list("left", flat=True)) == [2, 2]

from bson import ObjectId
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from goscope_django.locks import lock

names = set(Permission.objects.filter(content_type__app_label="goscope").values_list("codename", flat=True))
expected = {"view_dashboard", "release_lock", "change_circuit", "delete_checkpoint", "delete_idempotency"}
assert names == {*expected, "clear_cache"}, names

root = User.objects.create_superuser("root")
assert type(root.pk) is ObjectId
client = Client()
client.force_login(root)
assert client.get("/admin/").status_code == 200
page = client.get("/admin/goscope/dashboard/")
assert page.status_code == 200, page
state = client.get("/admin/goscope/dashboard/state.json")
assert state.status_code == 200

operator = User.objects.create_user("operator", is_staff=True)
client.force_login(operator)
assert client.get("/admin/goscope/dashboard/").status_code in (302, 403)
operator.user_permissions.add(*Permission.objects.filter(codename__in=["view_dashboard", "release_lock"]))
assert client.get("/admin/goscope/dashboard/").status_code == 200

handle = lock("warehouse").acquire()
"""
RELEASE = """
found = client.get("/admin/goscope/dashboard/").content.decode()
assert "warehouse" in found and handle.release()
"""


def run(folder: Path, *arguments: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))},
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, mongod: Mongod) -> Path:
    """The project of the page, on a database of its own."""
    app = tmp_path / "store"
    of_others = tmp_path / "mongo_migrations"
    for package in (app, of_others, *(of_others / name for name in ("admin", "auth", "contenttypes"))):
        package.mkdir()
        (package / "__init__.py").touch()
    settings, script = [SETTINGS], ["import django; django.setup()", "from store.models import Item, Order"]
    for name, code in blocks(PAGE):
        if name == "settings.py":
            settings.append(code)
        elif name:
            (app / name if name == "models.py" else tmp_path / name).write_text(code)
        else:
            script.append(f"exec(compile({code!r}, {PAGE!r}, 'exec'))")
    settings.append(f"DATABASES['default'].update(HOST={mongod.uri!r}, NAME='project_shop')")
    settings.append(f"GOSCOPE = {{'URL': {mongod.uri.replace('/?', '/project_goscope?')!r}}}")
    (tmp_path / "settings.py").write_text("\n".join(settings))
    (tmp_path / "urls.py").write_text(URLS)
    (tmp_path / "script.py").write_text("\n".join([*script, AFTER, RELEASE]))
    return tmp_path


def test_the_page_makes_a_project_that_works(project: Path, mongod: Mongod) -> None:
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        for name in ("project_shop", "project_goscope"):
            client.drop_database(name)
    run(project, "-m", "django", "makemigrations", "admin", "auth", "contenttypes", "store")
    run(project, "-m", "django", "migrate")
    assert "No changes" in run(project, "-m", "django", "makemigrations", "--check", "--dry-run")
    assert "no issues" in run(project, "-m", "django", "check", "--database", "default")
    run(project, "script.py")
