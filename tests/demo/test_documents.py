"""The examples of README, tutorial and explanation are run as they stand there, in a new project."""

from __future__ import annotations

import ast
import hashlib
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
from django.test import override_settings
from django.views.decorators.http import require_POST

from goscope_django import checks, conf
from goscope_django.mongodb.driver import capabilities
from tests.conftest import with_database
from tests.support.documents import ROOT, blocks, read

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "only-for-tests-" + "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = []
MIDDLEWARE = []
ALLOWED_HOSTS = ["127.0.0.1"]
"""
TUTORIAL = "docs/tutorial/first-steps.md"
OF_STARTPROJECT = """
INSTALLED_APPS = [f"django.contrib.{one}" for one in ("admin", "auth", "contenttypes", "sessions", "messages")]
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
from django.test import RequestFactory
from goscope_django.checkpoints import get_task
requests = RequestFactory(SERVER_NAME="127.0.0.1")
first = report(requests.get("/report/"))
began = time.monotonic()
assert report(requests.get("/report/")).content == first.content and time.monotonic() - began < 2
assert first.content.startswith(b"made at ") and [one.pattern._route for one in urlpatterns] == ["admin/", "report/"]
done = get_task("numbers")
assert done.status == "completed" and done.progress == 100 and done.total == 100
"""


AFTER_SESSIONS = """
from django.core.management import call_command
from django.contrib.sessions.backends.base import UpdateError
from goscope_django.sessions import SessionStore, count_sessions
call_command("check", "--fail-level", "WARNING")
session = SessionStore()
session["user"] = 1
session.save()
assert SessionStore(session.session_key)["user"] == 1 and count_sessions() == 1
SessionStore(session.session_key).flush()
assert count_sessions() == 0
"""
AFTER_OUTAGE = """
from django.core.management import call_command
from django.test import override_settings
from goscope_django.conf import current
call_command("check", "--fail-level", "WARNING")
assert cache.get("figures", "not known") == "not known" and recount() == "counted"
options = {"serverSelectionTimeoutMS": 100}
with override_settings(GOSCOPE={"URL": "mongodb://127.0.0.1:9/x", "ON_ERROR": "ignore", "CLIENT_OPTIONS": options}):
    assert cache.get("figures", "not known") == "not known" and recount() == "later"
"""
AFTER_NODE = """
from goscope_django import runtime
assert runtime.adapter().cache.get("greeting") == {"text": "hello"}
"""


def project(folder: Path, document: str, mongo_url: str, after: str) -> subprocess.CompletedProcess[str]:
    """Run a document's blocks in a new project: those that name a file lie in it, the others are one script."""
    app = folder / "store"
    app.mkdir()
    (app / "__init__.py").touch()
    settings, script = [SETTINGS], ["import django; django.setup()"]
    if document == TUTORIAL:
        settings.append(OF_STARTPROJECT)
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
    # A database of its own: two documents may use one key.
    url = with_database(mongo_url, f"t_{hashlib.blake2s(str(folder).encode(), digest_size=8).hexdigest()}")
    settings.append(f'INSTALLED_APPS = [*INSTALLED_APPS, "store"]\nGOSCOPE = {{"URL": {url!r}}}')
    (folder / "settings.py").write_text("\n".join(settings))
    (folder / "script.py").write_text("\n".join([*script, after]))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "error", "script.py"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("document", "after"),
    [
        ("README.md", AFTER_README),
        (TUTORIAL, AFTER_TUTORIAL),
        ("docs/how-to/sessions.md", AFTER_SESSIONS),
        ("docs/how-to/when-mongodb-is-down.md", AFTER_OUTAGE),
        ("docs/how-to/from-django-redis.md", ""),
        ("docs/how-to/from-redis-locks.md", ""),
        ("docs/how-to/from-node.md", AFTER_NODE),
    ],
)
def test_examples_do_what_they_say(tmp_path: Path, mongo_url: str, document: str, after: str) -> None:
    done = project(tmp_path, document, mongo_url, after)
    assert done.returncode == 0, done.stdout + done.stderr


DJANGO_REDIS = frozenset(
    re.findall(
        r"\w+",
        """
        add clear client close connect decode decr delete delete_many delete_pattern disconnect do_close_clients encode
        expire expire_at get get_client get_client_with_index get_many get_next_client_index has_key hdel hexists hkeys
        hlen hset incr incr_version iter_keys keys lock make_key make_pattern persist pexpire pexpire_at pttl sadd scard
        sdiff sdiffstore set set_many sinter sinterstore sismember smembers smismember smove spop srandmember srem sscan
        sscan_iter sunion sunionstore touch ttl
        CLIENT_CLASS CLOSE_CONNECTION COMPRESSOR CONNECTION_FACTORY CONNECTION_POOL_CLASS CONNECTION_POOL_KWARGS
        DJANGO_REDIS_CLOSE_CONNECTION DJANGO_REDIS_CONNECTION_FACTORY DJANGO_REDIS_IGNORE_EXCEPTIONS DJANGO_REDIS_LOGGER
        DJANGO_REDIS_LOG_IGNORED_EXCEPTIONS DJANGO_REDIS_SCAN_ITERSIZE IGNORE_EXCEPTIONS KEY_PREFIX LOCATION
        PARSER_CLASS PASSWORD PICKLE_VERSION REDIS_CLIENT_CLASS REDIS_CLIENT_KWARGS REPLICA_READ_ONLY
        REVERSE_KEY_FUNCTION SENTINELS SENTINEL_KWARGS SERIALIZER SOCKET_CONNECT_TIMEOUT SOCKET_TIMEOUT TIMEOUT USERNAME
        """,
    )
)
"""The public methods of django-redis 7.0's cache and default client, and the settings that its code reads."""


def test_the_guide_from_django_redis_names_every_method_and_setting() -> None:
    tables = "".join(line for line in read("docs/how-to/from-django-redis.md").splitlines() if line.startswith("|"))
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", tables))))
    assert named >= DJANGO_REDIS, DJANGO_REDIS - named


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


def test_the_page_on_outages_says_what_the_shop_is_tested_for() -> None:
    from tests.fleet.test_shop_outage import DURING

    rows = re.findall(r"^\|.*\| (`/[^|]*`) \| (\d+) \|$", read("docs/how-to/when-mongodb-is-down.md"), re.MULTILINE)
    said = {path: int(status) for paths, status in rows for path in re.findall(r"`([^`]+)`", paths)}
    assert said == {path.partition("?")[0]: status for path, status in DURING.items()}


def test_the_reference_names_every_setting_with_its_default_and_every_check() -> None:
    page = read("docs/reference/settings.md")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert {key: ast.literal_eval(default) for key, default in rows.items()} == conf.DEFAULTS
    source = read("goscope_django/checks.py")
    assert set(re.findall(r"goscope\.[EW]\d+", page)) == set(re.findall(r"goscope\.[EW]\d+", source))


def test_the_least_rights_are_those_that_the_status_looks_for() -> None:
    (actions,) = re.findall(r"actions: \[([^\]]*)\]", read("docs/how-to/servers.md"))
    assert tuple(re.findall(r'"(\w+)"', actions)) == (*capabilities.DATA, *capabilities.INDEX)


def test_the_settings_for_the_stable_api_are_allowed() -> None:
    ((_, code),) = blocks("docs/how-to/servers.md")
    namespace: dict[str, dict[str, object]] = {}
    exec(compile(code, "servers.md", "exec"), namespace)
    with override_settings(GOSCOPE={**namespace["GOSCOPE"], "TEST": {"URL": namespace["GOSCOPE"]["URL"]}}):
        assert checks.check_settings() == []
