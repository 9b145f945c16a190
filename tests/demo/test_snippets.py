"""Every Python snippet of README and docs can be compiled, and each page is run by a test: here, or where it says."""

from __future__ import annotations

import ast
import asyncio
import inspect
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from django.apps import AppConfig
from django.contrib.admin import AdminSite
from django.contrib.auth.models import User
from django.db import transaction
from django.test import override_settings

from goscope_django import checks, circuits
from goscope_django.decorators import circuit_breaker
from goscope_django.mongodb import MongoDBAdapter
from tests.support.documents import DOCUMENTS, ROOT, blocks

PAGES = [one for one in DOCUMENTS if blocks(one)]
ELSEWHERE = {
    "README.md": "tests/demo/test_documents.py",
    "docs/explanation/exactly-once.md": "tests/demo/test_exactly_once_page.py",
    "docs/explanation/flows.md": "tests/demo/test_documents.py",
    "docs/how-to/celery.md": "tests/demo/test_celery_page.py",
    "docs/how-to/deploying.md": "tests/demo/test_deploying_page.py",
    "docs/how-to/from-django-redis.md": "tests/demo/test_documents.py",
    "docs/how-to/from-node.md": "tests/demo/test_documents.py",
    "docs/how-to/from-redis-locks.md": "tests/demo/test_documents.py",
    "docs/how-to/idempotency.md": "tests/demo/test_documents.py",
    "docs/how-to/mongodb-backend.md": "tests/mongodb_backend/test_project.py",
    "docs/how-to/rest-framework.md": "tests/demo/test_documents.py",
    "docs/how-to/servers.md": "tests/demo/test_documents.py",
    "docs/how-to/sessions.md": "tests/demo/test_documents.py",
    "docs/how-to/single-flight.md": "tests/demo/test_documents.py",
    "docs/how-to/testing.md": "tests/demo/test_testing_page.py",
    "docs/how-to/troubleshooting.md": "tests/demo/test_troubleshooting_page.py",
    "docs/how-to/when-mongodb-is-down.md": "tests/demo/test_documents.py",
    "docs/tutorial/first-steps.md": "tests/demo/test_documents.py",
    **{one: "tests/demo/test_recipes.py" for one in PAGES if one.startswith("docs/recipes/")},
}
ONLY_COMPILED = {
    "FencedModel": "a model needs an app; the README's is made and used by tests/demo/test_documents.py",
    "fenced_update_one": "needs a server; tests/integration/fencing",
    "fenced_transaction": "needs a server; tests/integration/fencing",
    "atomic=True": "needs django-mongodb-backend; tests/integration/checkpoints",
    "PymongoInstrumentor": "a package that is not installed here",
    "embedded": "starts a server; tests/integration/embedded",
    "HealthCheckView": "tests/integration/integrations",
    "prometheus.register": "registers for good; tests/integration/integrations",
}


def compiled(code: str, page: str) -> Any:
    return compile(code, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run(page: str, **names: Any) -> dict[str, Any]:
    """Run the page's blocks one after another, as one program in which ``names`` are known."""
    namespace: dict[str, Any] = {"__name__": "page", **names}
    for _, code in blocks(page):
        if any(sign in code for sign in ONLY_COMPILED):
            continue
        program = compiled(code, page)
        if program.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(program, namespace))
        else:
            exec(program, namespace)
        check(namespace)
    return namespace


def check(namespace: dict[str, Any]) -> None:
    """The settings of a block are allowed."""
    named = {name: namespace.pop(name) for name in ("GOSCOPE", "CACHES") if name in namespace}
    if "GOSCOPE" in named:
        named["GOSCOPE"] = {**named["GOSCOPE"], "TEST": {"URL": named["GOSCOPE"]["URL"]}}
    with override_settings(**named):
        assert checks.check_settings() == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_compiled(page: str) -> None:
    for _, code in blocks(page):
        compiled(code, page)


def test_every_page_is_run_by_some_test() -> None:
    here = (ROOT / "tests/demo/test_snippets.py").read_text(encoding="utf-8").partition("def compiled")[2]
    for page in PAGES:
        if page in ELSEWHERE:
            named = (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")
            ways = (page, page.rpartition("/")[2], "docs/recipes", "recipes")
            assert any(way in named for way in ways), page
        else:
            assert f'"{page}"' in here, f"{page} is run by no test"


def test_cache(goscope: MongoDBAdapter) -> None:
    names = run("docs/how-to/cache.md", count_sales=lambda: 3)
    assert names["bestsellers"]() == 3
    assert [asyncio.run(names["hits"]("/")) for _ in range(2)] == [1, 2]


def test_make_it_fast_and_secrets() -> None:
    run("docs/how-to/make-it-fast.md")
    names = run("docs/how-to/secrets.md")
    assert names["DEFAULT_EXCEPTION_REPORTER_FILTER"]


def test_stale_values_and_tags(goscope: MongoDBAdapter) -> None:
    names = run(
        "docs/how-to/stale-values-and-tags.md",
        count_sales=lambda: 3,
        html="<p>",
        prices=lambda: [1],
        timedelta=timedelta,
    )
    assert names["bestsellers"]() == 3
    assert names["cache"].get("product:7:page") is None and names["cache"].get("shop:2:prices") is None


@pytest.mark.django_db
def test_checkpoints(goscope: MongoDBAdapter) -> None:
    User.objects.create(username="tea")
    imported: list[Any] = []
    names = run(
        "docs/how-to/checkpoints.md",
        Product=User,
        import_product=imported.append,
        first_page=lambda: {"n": 1},
        crawl=lambda page: None,
        estimate=lambda page: 100,
        rows=lambda path: [1, 2],
        import_row=imported.append,
        AppConfig=AppConfig,
    )
    assert [str(one) for one in imported] == ["tea"]
    assert "ShopConfig" in names


def test_circuit_breaker(goscope: MongoDBAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"stock": 4})
    monkeypatch.setattr(httpx, "get", lambda *args, **kwargs: answer)

    async def afetch(product: int) -> int:
        return product

    names = run(
        "docs/how-to/circuit-breaker.md",
        fetch=lambda product, timeout=None: product,
        afetch=afetch,
        circuit_breaker=circuit_breaker,
    )
    assert names["left"] == 4
    assert circuits.get_circuit("supplier") is not None


def test_fencing(goscope: MongoDBAdapter) -> None:
    assert callable(run("docs/how-to/fencing.md")["correct"])


@pytest.mark.django_db
def test_locks_and_operations(goscope: MongoDBAdapter, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("docs/how-to/locks.md", transaction=transaction)
    assert names["report"]() is None and asyncio.run(names["correct"](None, "tea", 4)) is None
    held = goscope.lock.acquire("invoice:17", 60_000, "me")
    assert held is not None
    run("docs/how-to/operations.md")
    assert capsys.readouterr().out.startswith("invoice:17 me ")
    assert not held.is_valid(), "the page has released it"


@pytest.mark.django_db
def test_dashboard() -> None:
    names = run("docs/how-to/dashboard.md", my_site=AdminSite(name="mine"))
    assert names["duty"].permissions.count() == 3


def test_embedded_and_monitoring() -> None:
    """Their blocks start servers, or register for good: they are compiled here and run where ONLY_COMPILED says."""
    for page in ("docs/how-to/embedded.md", "docs/how-to/monitoring.md"):
        for _, code in blocks(page):
            assert any(sign in code for sign in ONLY_COMPILED), page
