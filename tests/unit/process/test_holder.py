"""Who holds something: this process, the thread or task, and what it runs. Never a path, a query or an argument."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path, re_path

from goscope_django import locks
from goscope_django.decorators import locked
from goscope_django.locks import lock
from goscope_django.process import holder
from tests.support.locks import settings_for

HERE = f"{socket.gethostname()}:{os.getpid()}"
seen: list[str] = []


def note(request: HttpRequest, **_: Any) -> HttpResponse:
    seen.append(holder.describe())
    with lock("noted") as handle:
        seen.append(handle.owner)
    return HttpResponse()


async def anote(request: HttpRequest, **_: Any) -> HttpResponse:
    seen.append(holder.describe())
    async with lock("anoted") as handle:
        seen.append(handle.owner)
    return HttpResponse()


urlpatterns = [
    path("orders/<int:pk>/", note),
    path("aorders/<int:pk>/", anote),
    re_path(r"^files/(?P<name>\w{2,9})/$", note),
    path("decorated/<str:token>/", locked("decorated")(note)),
]
OURS = "goscope_django.middleware.CircuitOpenMiddleware"


@pytest.fixture(autouse=True)
def anew() -> None:
    seen.clear()


def test_a_thread_is_named() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(holder.describe()), name="import,\nworker")
    thread.start()
    thread.join()
    assert found == [f"{HERE}, import??worker"]


async def test_a_task_is_named() -> None:
    async def named() -> str:
        return holder.describe()

    assert await asyncio.create_task(named(), name="courier") == f"{HERE}, courier"


@pytest.mark.parametrize("url", ["/orders/17/?token=secret", "/aorders/17/?token=secret"])
def test_a_request_is_its_method_and_route(url: str) -> None:
    with settings_for("mongomock://"), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        Client().post(url)
    route = url.partition("17")[0] + "<int:pk>/"
    assert len(seen) == 2
    for text in seen:
        assert re.fullmatch(rf"{re.escape(HERE)}, [^,]+, POST {route}(, [0-9a-f]{{16}})?", text)
    assert seen[1].rpartition(", ")[0] == seen[0], "the owner of a lock is that and random text"
    assert "POST" not in holder.describe(), "the request is over"


async def test_a_request_in_an_async_stack() -> None:
    with settings_for("mongomock://"), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        await AsyncClient().get("/aorders/17/?token=secret")
    assert all("GET /aorders/<int:pk>/" in text and "secret" not in text for text in seen) and len(seen) == 2


def test_a_decorator_is_enough_and_a_secret_in_the_path_is_not_told() -> None:
    with settings_for("mongomock://"), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]):
        Client().get("/decorated/hunter2/")
        assert all("GET /decorated/<str:token>/" in text and "hunter2" not in text for text in seen) and seen
        seen.clear()
        Client().get("/orders/17/")
        assert all("GET" not in text for text in seen), "nobody saw the request"


def test_a_regular_expression_is_one_piece() -> None:
    with settings_for("mongomock://"), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        Client().get("/files/abc/")
    assert seen[0].count(", ") == 2


def test_no_request_is_kept_alive() -> None:
    request = HttpRequest()
    request.method = "GET"
    token = holder.begin(request)
    assert holder.work() == "GET"
    del request
    gc.collect()
    assert holder.work() != "GET"
    holder.end(token)


def test_a_celery_task(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(name="shop.send", request=SimpleNamespace(id="4f1c", args=["secret"]))
    state = ModuleType("celery._state")
    state.get_current_task = lambda: task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "celery._state", state)
    assert holder.work() == "celery shop.send 4f1c"


def test_a_task_of_django_tasks() -> None:
    outer = SimpleNamespace(task=SimpleNamespace(module_path="shop.outer"), id="1")
    inner = SimpleNamespace(task=SimpleNamespace(module_path="shop.inner"), id="2")
    before = holder.work()
    holder.task_began(task_result=outer)
    holder.task_began(task_result=inner)
    assert holder.work() == "task shop.inner 2"
    holder.task_ended(task_result=inner)
    assert holder.work() == "task shop.outer 1"
    holder.task_ended(task_result=outer)
    assert holder.work() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/srv/shop/manage.py", "import_rows", "--token=secret"], "manage.py import_rows"),
        (["/usr/bin/django-admin", "migrate"], "manage.py migrate"),
        (["/lib/django/__main__.py", "migrate"], "manage.py migrate"),
        (["manage.py", "--token=secret"], ""),
        (["manage.py"], ""),
        (["/usr/bin/gunicorn", "shop.wsgi"], ""),
        ([], ""),
    ],
)
def test_a_management_command(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert holder.work() == expected


def test_it_can_be_turned_off() -> None:
    with settings_for("mongomock://", DESCRIBE_HOLDERS=False):
        assert holder.describe() == HERE
        with lock("stock") as handle:
            assert re.fullmatch(rf"{re.escape(HERE)}, [0-9a-f]{{16}}", handle.owner)


def test_each_acquisition_has_an_owner_of_its_own() -> None:
    with settings_for("mongomock://"):
        owners = set()
        for _ in range(3):
            with lock("stock") as handle:
                owners.add(handle.owner)
                found = locks.backend().get("stock")
                assert found and found.owner == handle.owner
        with lock("stock", owner="me") as handle:
            assert handle.owner == "me"
    assert len(owners) == 3


def test_it_is_bounded_and_in_one_line() -> None:
    request = HttpRequest()
    request.method = "GET\r\nX: 1"
    request.resolver_match = SimpleNamespace(route="x" * 5_000)  # type: ignore[assignment]
    with holder.serving(request):
        text = holder.describe()
    assert text.isprintable() and len(text) <= holder.HOST + holder.NAME + holder.WORK + 20
