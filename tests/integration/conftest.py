"""Fixtures that several integration tests share; a file may have its own under the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter, embedded


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not exist yet, whose private server is gone after the test."""
    directory = tmp_path / "db"
    yield directory
    embedded.stop(directory, timeout=0)


@pytest.fixture
def database(mongo_url: str) -> Iterator[Any]:
    """The test worker's database on a real server, empty."""
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        for name in database.list_collection_names():
            database[name].delete_many({})
        yield database


@pytest.fixture
def adapter(database: Any) -> MongoDBAdapter:
    """An adapter on ``database``, with its indexes."""
    adapter = MongoDBAdapter(database)
    adapter.connect()
    return adapter
