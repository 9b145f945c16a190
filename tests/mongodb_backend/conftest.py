"""Tests of projects whose own database is MongoDB: ``make test-mongodb`` runs them, the ordinary run has SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings

from goscope_django import runtime

collect_ignore_glob = []
if settings.DATABASES["default"]["ENGINE"] != "django_mongodb_backend":
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(params=["mongomock", "mongod"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The adapter on an empty store."""
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(GOSCOPE={"TEST": {"URL": url}}):
        adapter = runtime.adapter()
        adapter.ensure_indexes()
        adapter.wipe()
        yield adapter


@pytest.fixture
def real_store(mongo_url: str) -> Iterator[Any]:
    """The adapter on an empty store of a real server."""
    with override_settings(GOSCOPE={"TEST": {"URL": mongo_url}}):
        adapter = runtime.adapter()
        adapter.ensure_indexes()
        adapter.wipe()
        yield adapter


@pytest.fixture(autouse=True)
def connection_is_left_as_it_was(transactional_db: None) -> Iterator[None]:
    """No session, no hook and no method of ours stays on the backend's connection."""
    from django.db import connection as default

    yield
    shadows = {"commit_mongo", "rollback_mongo", "close_pool", "run_and_clear_commit_hooks", "_goscope_watch"}
    connection: Any = default
    assert not shadows & set(vars(connection))
    assert connection.session is None
    assert connection.run_on_commit == []
    assert not connection.in_atomic_block_mongo
