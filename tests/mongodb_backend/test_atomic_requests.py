"""``ATOMIC_REQUESTS`` on ``django-mongodb-backend``: it does nothing, and ``manage.py check`` says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import WARNING, run_checks
from django.db import connections


@pytest.fixture
def databases() -> Iterator[Any]:
    """More databases: another one on MongoDB, whose server is away, and one on SQL."""
    more = {
        "away": {"ENGINE": "django_mongodb_backend", "HOST": "mongodb://127.0.0.1:1"},
        "sql": {"ENGINE": "django.db.backends.sqlite3", "HOST": ""},
    }
    for alias, entry in more.items():
        connections.databases[alias] = {**connections.databases["default"], "NAME": "x", **entry}
    yield connections.databases
    for alias in more:
        del connections[alias], connections.databases[alias]


def found() -> list[str]:
    return [str(one.msg) for one in run_checks() if one.id == "goscope.W020" and one.level == WARNING]


def test_it_is_told_by_alias(databases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found() == []
    monkeypatch.setitem(databases["sql"], "ATOMIC_REQUESTS", True)
    assert found() == []
    monkeypatch.setitem(databases["away"], "ATOMIC_REQUESTS", True)
    (message,) = found()
    assert message.startswith("DATABASES['away']['ATOMIC_REQUESTS']=True does nothing")
    monkeypatch.setitem(databases["default"], "ATOMIC_REQUESTS", True)
    assert len(found()) == 2
