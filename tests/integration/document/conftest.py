"""A real server of a module's own, for tests that put something between it and the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mongod import ReplicaSet, replica_set


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running
