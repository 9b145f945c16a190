"""The conformance suites of all contracts, over {real mongod, mongomock} x {sync, async}."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import mongomock
import pytest
from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter
from goscope_django.testing import conformance

_numbers = itertools.count()
SIZE = "mongomock: it knows no limit for a document's size"


@pytest.fixture(scope="module")
def client(mongo_url: str) -> Iterator[MongoClient[dict[str, Any]]]:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
    with client:
        MongoDBAdapter(client.get_default_database()).connect()
        yield client


class OnMongod:
    """Each test has a prefix of its own in the module's database on a real server."""

    @pytest.fixture
    def adapter(self, client: MongoClient[dict[str, Any]]) -> MongoDBAdapter:
        return MongoDBAdapter(client.get_default_database(), key_prefix=f"test-{next(_numbers)}:")


class OnMongomock:
    @pytest.fixture
    def adapter(self) -> MongoDBAdapter:
        adapter = MongoDBAdapter(mongomock.MongoClient()["test"], key_prefix="test:")
        adapter.connect()
        return adapter


class Lock:
    @pytest.fixture
    def provider(self, adapter: MongoDBAdapter) -> Any:
        return adapter.lock


class Circuit:
    @pytest.fixture
    def provider(self, adapter: MongoDBAdapter) -> Any:
        return adapter.circuit_breaker


class Cache:
    @pytest.fixture
    def provider(self, adapter: MongoDBAdapter) -> Any:
        return adapter.cache


class Checkpoints:
    @pytest.fixture
    def provider(self, adapter: MongoDBAdapter) -> Any:
        return adapter.checkpoint


class Idempotency:
    @pytest.fixture
    def provider(self, adapter: MongoDBAdapter) -> Any:
        return adapter.idempotency


class TestLocksOnMongod(OnMongod, Lock, conformance.LockConformance):
    pass


class TestLocksOnMongomock(OnMongomock, Lock, conformance.LockConformance):
    pass


class TestCircuitsOnMongod(OnMongod, Circuit, conformance.CircuitConformance):
    pass


class TestCircuitsOnMongomock(OnMongomock, Circuit, conformance.CircuitConformance):
    pass


class TestCacheOnMongod(OnMongod, Cache, conformance.CacheConformance):
    pass


class TestCacheOnMongomock(OnMongomock, Cache, conformance.CacheConformance):
    gaps: ClassVar[dict[str, str]] = {"test_a_value_over_the_limit": SIZE}


class TestCheckpointsOnMongod(OnMongod, Checkpoints, conformance.CheckpointConformance):
    pass


class TestCheckpointsOnMongomock(OnMongomock, Checkpoints, conformance.CheckpointConformance):
    pass


class TestIdempotencyOnMongod(OnMongod, Idempotency, conformance.IdempotencyConformance):
    pass


class TestIdempotencyOnMongomock(OnMongomock, Idempotency, conformance.IdempotencyConformance):
    pass
