"""pytest's plugin: a key prefix for each worker, and what an empty store needs.

Registered by the entry point ``pytest11``, so there is nothing to configure. Settings are not read unless Django's are
configured and ``goscope_django`` is installed in them.
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
    """In front of every stored key of this xdist worker (``gw0:``), so that workers on one server don't meet."""
    from goscope_django import conf

    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    before, conf.test_prefix = conf.test_prefix, f"{worker}:" if worker else ""
    conf.reset()
    yield conf.test_prefix
    conf.test_prefix = before
    conf.reset()


@pytest.fixture
def goscope(goscope_worker_prefix: str) -> MongoDBAdapter:
    """The project's adapter on an empty store: everything under this worker's prefix is removed before the test."""
    from goscope_django import runtime
    from goscope_django.circuits import registry as breaker_registry

    adapter = runtime.adapter()
    adapter.wipe()
    breaker_registry.forget()
    return adapter
