"""Other admin sites, other projects: one without the admin, one without a database of its own, one whose key is text.

Each in a process of its own: what is installed is decided once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
import django
from django.conf import settings
from django.urls import path

INSTALLED = [
    "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages",
    "django.contrib.staticfiles", "goscope_django",
]
OPTIONS = dict(
    SECRET_KEY="x" * 60,
    ROOT_URLCONF="__main__",
    ALLOWED_HOSTS=["testserver"],
    USE_TZ=True,
    STATIC_URL="/static/",
    GOSCOPE={"URL": "mongomock://"},
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]}}],
)
urlpatterns = []

def begin(**more):
    settings.configure(**{**OPTIONS, "INSTALLED_APPS": ["django.contrib.admin", *INSTALLED], **more})
    django.setup()

def visitor():
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client
    call_command("migrate", verbosity=0)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client

def works(client, root):
    page = root + "goscope/dashboard/"
    assert f'href="{page}"' in client.get(root).content.decode()
    from goscope_django import runtime
    runtime.adapter().lock.acquire("orders", ttl=60_000)
    answer = client.get(page)
    assert answer.status_code == 200
    text = answer.content.decode()
    assert f'formaction="{page}act/release_lock/"' in text
    assert f'data-live="{page}live/"' in text
    assert client.get(page + "live/").status_code == 200
    assert client.get(page + "state.json").json()["locks"]["total"] == 1
    (lock,) = client.get(page + "state.json").json()["locks"]["items"]
    import json
    seen = json.dumps([lock["key"], lock["token"], None, ""])
    question = client.get(page + "act/release_lock/", {"seen": seen})
    assert f'href="{page}"' in question.content.decode()
    answer = client.post(page + "act/release_lock/", {"seen": seen, "confirm": "yes"})
    assert answer.headers["Location"] == page
    assert "was released" in client.get(page).content.decode()
"""

CUSTOM_SITE = """
begin()
from django.contrib import admin
from goscope_django import dashboard

class Desk(admin.AdminSite):
    site_header = "The desk"

desk = Desk(name="desk")
dashboard.register(desk)
dashboard.register(desk)  # again does no harm
urlpatterns = [path("admin/", admin.site.urls), path("ops/desk/", desk.urls)]
client = visitor()
works(client, "/ops/desk/")
assert "The desk" in client.get("/ops/desk/goscope/dashboard/").content.decode()
assert '"/admin/' not in client.get("/ops/desk/goscope/dashboard/").content.decode()
works(client, "/admin/")
"""

CUSTOM_DEFAULT_SITE = """
import sys, types
module = types.ModuleType("project")
sys.modules["project"] = module
from django.contrib.admin.apps import AdminConfig

class DeskConfig(AdminConfig):
    default_site = "project.desk.Desk"
    default = False

module.DeskConfig = DeskConfig
DeskConfig.__module__ = "project"
desk = types.ModuleType("project.desk")
sys.modules["project.desk"] = desk
source = '''
from django.contrib import admin
class Desk(admin.AdminSite):
    site_header = "The desk"
'''
exec(source, desk.__dict__)
begin(INSTALLED_APPS=["project.DeskConfig", *INSTALLED])
from django.contrib import admin
urlpatterns = [path("desk/", admin.site.urls)]
client = visitor()
works(client, "/desk/")
assert "The desk" in client.get("/desk/goscope/dashboard/").content.decode()
"""

WITHOUT_ADMIN = """
begin(INSTALLED_APPS=["goscope_django"], MIDDLEWARE=[], DATABASES={}, TEMPLATES=[])
import sys
from django.core.management import call_command
assert not any(name.startswith("django.contrib.admin") for name in sys.modules)
call_command("check")
from goscope_django.locks import locking as locks
from goscope_django import operations
from django.core.cache import cache
with locks.lock("orders"):
    assert operations.state().locks.total == 1
cache.set("a", 1)
assert cache.get("a") == 1
call_command("goscope_status")
assert not any(name.startswith("django.contrib") for name in sys.modules)
"""

NO_TABLE = """
begin()
from django.contrib import admin
urlpatterns = [path("admin/", admin.site.urls)]
from django.db import connection
client = visitor()
assert not [name for name in connection.introspection.table_names() if "goscope" in name or "dashboard" in name]
from django.contrib.auth.models import Permission
found = Permission.objects.filter(content_type__app_label="goscope").values_list("codename", flat=True)
assert set(found) == {
    "view_dashboard", "release_lock", "change_circuit", "delete_checkpoint", "delete_idempotency", "clear_cache"
}, found
from goscope_django.models import Dashboard
from django.db.models import CharField
assert type(Dashboard._meta.pk) is CharField
assert Dashboard._meta.pk.attname == "id" and not Dashboard._meta.managed
from django.core.management import call_command
call_command("check", "--fail-level", "WARNING")
call_command("makemigrations", "--check", "--dry-run", verbosity=0)
works(client, "/admin/")
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(CUSTOM_SITE, id="custom site"),
        pytest.param(CUSTOM_DEFAULT_SITE, id="custom default site"),
        pytest.param(WITHOUT_ADMIN, id="without the admin"),
        pytest.param(NO_TABLE, id="no table"),
    ],
)
def test_a_project_of_this_kind(script: str) -> None:
    done = subprocess.run(
        # mongomock 4.3 asks for the time in a way that Python 3.12 warns of.
        [sys.executable, "-W", "error", "-W", "ignore:datetime.datetime.utcnow", "-c", SETTINGS + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
