"""The pytest plugin: a key prefix for each xdist worker, and the fixture ``goscope``, an empty store.

It is registered by the entry point ``pytest11``, so there is nothing to configure. Settings are read only when a test
uses them. Its fixtures:

* ``goscope``: the project's ``MongoDBAdapter``. Before the test everything under this worker's prefix is removed, by
  one or two round trips for each collection. Raises ``StoreError`` if MongoDB can't be reached.
* ``goscope_worker_prefix`` (of the session): what stands in front of every key that this xdist worker stores, as
  ``gw0:``. Override it to give the workers other prefixes, or none where each has a server of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from goscope_django.mongodb import MongoDBAdapter


started = False
"""Whether this process runs pytest; that this module is imported means little."""


def pytest_addoption() -> None:
    """Note that tests are about to run: the first of pytest's hooks, before pytest-django loads the settings."""
    global started
    started = True


@pytest.fixture(scope="session", autouse=True)
def goscope_worker_prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """The prefix of every key that this xdist worker stores (``gw0:``), so workers on one server don't share data.

    Override it to give the workers other prefixes, or none where each has a server of its own.
    """
    from goscope_django import conf

    worker = getattr(request.config, "workerinput", {}).get("workerid", "")
    before, conf.test_prefix = conf.test_prefix, f"{worker}:" if worker else None
    yield conf.worker_prefix()
    conf.test_prefix = before


@pytest.fixture(scope="session", autouse=True)
def goscope_store(request: pytest.FixtureRequest) -> None:
    """Stop before the first test if its store needs a package that is not installed; pytest runs no system checks."""
    with contextlib.suppress(pytest.FixtureLookupError):
        request.getfixturevalue("django_test_environment")
    if "django.test.utils" not in sys.modules:
        return
    from django.apps import apps

    from goscope_django import conf

    if not conf.testing() or not apps.ready or not apps.is_installed("goscope_django"):
        return
    from goscope_django import checks

    for one in checks.check_tests():
        pytest.exit(f"{one.msg}\n{one.hint}", returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture
def goscope(goscope_worker_prefix: str) -> MongoDBAdapter:
    """The project's adapter. Before the test everything under this worker's prefix is removed."""
    from goscope_django import runtime
    from goscope_django.testing import empty_store

    empty_store()
    return runtime.adapter()
