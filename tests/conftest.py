"""One real ``mongod`` per test process, a database per test module, and a count of what mongomock could not do."""

from __future__ import annotations

import functools
import hashlib
import signal
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import pytest

from tests.support.long import LONG

if TYPE_CHECKING:
    from goscope_django.mongodb.embedded import Mongod
    from goscope_django.testing.conformance.base import Drive

GAP = "mongomock:"  # what the reason of a skip begins with when only mongomock is to blame


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-mongo",
        action="store_true",
        help="a test that needs a real mongod fails, not skips, where none can be had",
    )


def pytest_configure() -> None:
    # On a machine that is busy with other tests every draw may be slow.
    hypothesis.settings.register_profile(
        "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tests")
    # A shell starts what it puts in the background with Ctrl-C ignored, and programs hand that on to those they start;
    # tests send it to theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # So does nohup with SIGHUP.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not LONG and (left := [item for item in items if item.get_closest_marker("long")]):
        left[0].config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        if {"mongod", "mongo_url"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("sql") and on_mongodb():
        pytest.skip("sql: needs what SQL has and django-mongodb-backend has not")
    if item.get_closest_marker("real") and (reason := why_no_mongod()):
        refuse = pytest.fail if item.config.getoption("--require-mongo") else pytest.skip
        refuse(f"no real mongod: {reason}")


def on_mongodb() -> bool:
    """Whether MongoDB is the project's own database in this run (``make test-mongodb``)."""
    from django.conf import settings

    return bool(settings.DATABASES["default"]["ENGINE"] == "django_mongodb_backend")


@functools.cache
def why_no_mongod() -> str:
    """Return why no real ``mongod`` can be started here, or an empty text."""
    from goscope_django.exceptions import MongodError
    from goscope_django.mongodb.embedded import process as mongod_process

    try:
        mongod_process.find_mongod()
    except MongodError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session", autouse=True)
def goscope_worker_prefix() -> str:
    """No prefix: here each worker has a server of its own, and tests look at documents and start processes."""
    return ""


@pytest.fixture(params=["sync", "async"])
def drive(request: pytest.FixtureRequest) -> Iterator[Drive]:
    """Calls an operation's sync form, and then its async one."""
    from goscope_django.testing.conformance.base import Drive

    drive = Drive(request.param)
    yield drive
    drive.close()


@pytest.fixture(scope="session")
def mongod() -> Iterator[Mongod]:
    """A one-node replica set of this test process's own; it ends with the process."""
    from tests.support.mongod import temporary_mongod

    with temporary_mongod() as server:
        yield server


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, request: pytest.FixtureRequest
) -> None:
    """The address of this test process's own server, where MongoDB is the project's database."""
    from django.db import connections

    if on_mongodb():
        connections.settings["default"]["HOST"] = request.getfixturevalue("mongod").uri


@pytest.fixture(scope="module")
def mongo_url(mongod: Mongod, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty database that belongs to this test module alone and is dropped after it."""
    from pymongo import MongoClient

    # The driver limits names to 63 bytes; the digest keeps equal stems in different folders apart.
    name = f"t_{hashlib.blake2s(request.node.nodeid.encode(), digest_size=8).hexdigest()}"
    url = with_database(mongod.uri, name)
    yield url
    client: MongoClient[dict[str, Any]] = MongoClient(url)
    with client:
        client.drop_database(name)


def with_database(uri: str, name: str) -> str:
    """Return ``uri`` with ``name`` as its database."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"/{name}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name what was skipped for mongomock's gaps: a silent skip reads like a pass."""
    gaps: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(GAP):
            gaps[reason.removeprefix(GAP).strip()] += 1
    if gaps:
        terminalreporter.section(f"{gaps.total()} skipped for gaps of mongomock")
        for reason, count in gaps.most_common():
            terminalreporter.line(f"{count:5} x {reason}")
