"""The pytest plugin: a key prefix for each xdist worker, and the fixture ``goscope``, an empty store.

It is registered by the entry point ``pytest11``, so there is nothing to configure. Settings are read only when a test
uses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from goscope_django.mongodb import MongoDBAdapter


@pytest.fixture(scope="session", autouse=True)
def goscope_worker_prefix() -> Iterator[str]:
    """The prefix of every key that this xdist worker stores (``gw0:``), so workers on one server don't share data."""
    from goscope_django import conf

    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    before, conf.test_prefix = conf.test_prefix, f"{worker}:" if worker else ""
    conf.reset()
    yield conf.test_prefix
    conf.test_prefix = before
    conf.reset()


@pytest.fixture
def goscope(goscope_worker_prefix: str) -> MongoDBAdapter:
    """The project's adapter. Before the test everything under this worker's prefix is removed."""
    from goscope_django import runtime
    from goscope_django.circuits import registry

    adapter = runtime.adapter()
    adapter.wipe()
    registry.forget()
    return adapter
