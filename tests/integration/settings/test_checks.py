"""System checks: what each says, and that only those that may connect do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.core.checks import Tags, run_checks
from django.test import override_settings
from pymongo import MongoClient

from goscope_django import checks, runtime
from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import IndexConflict
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.driver import capabilities, inspection
from goscope_django.mongodb.driver.client import Connection
from tests.conftest import with_database
from tests.support.commands import on_server
from tests.support.mongod import temporary_mongod

AWAY = "mongodb://user:hunter2@127.0.0.1:9/goscope"


@pytest.fixture
def database(mongo_url: str) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        client.drop_database(database.name)
        with on_server(mongo_url):
            yield database


def warnings() -> list[Any]:
    """What the checks say of the stores, but for the end of life of the MongoDB that the tests run on."""
    return [one for one in checks.check_stores(databases=["default"]) if one.id != "goscope.W016"]


def found() -> list[str]:
    return [str(one.id) for one in warnings()]


def test_what_connects_runs_only_when_databases_are_asked_for(database: Any) -> None:
    ids = {one.id for one in run_checks()} | {one.id for one in run_checks(tags=[Tags.caches])}
    assert not {one for one in ids if str(one).startswith("goscope.W01")}
    assert "goscope.W011" in {one.id for one in run_checks(tags=[Tags.database], databases=["default"])}
    assert checks.check_stores() == []


def test_missing_indexes_are_named_and_their_making_is_told(database: Any) -> None:
    missing = warnings()
    assert {one.id for one in missing} == {"goscope.W011"}
    assert any("key_1 of go_goscope_locks" in one.msg for one in missing)
    assert {one.hint for one in missing} == {"manage.py goscope_indexes ensure"}
    runtime.adapter().ensure_indexes()
    assert found() == []


def test_a_conflict_is_named_nothing_is_dropped_and_a_repair_works(database: Any) -> None:
    database.go_goscope_cache.create_index([("key", 1)], sparse=True)
    database.go_goscope_locks.create_index([("expiresAt", 1)], expireAfterSeconds=60)
    with pytest.raises(IndexConflict) as caught:
        runtime.adapter().ensure_indexes()
    for part in ("{", "key_1", "unique=True", "sparse=True", "goscope_indexes ensure --repair"):
        assert part in str(caught.value) or "expireAfterSeconds=60" in str(caught.value)
    differ = [one for one in warnings() if one.id == "goscope.W012"]
    assert len(differ) == 2
    (one,) = [one for one in differ if "go_goscope_cache" in one.msg]
    for part in ("{key: 1}, unique=True", "{key: 1}, sparse=True"):
        assert part in one.msg
    assert one.hint == "manage.py goscope_indexes ensure --repair"
    assert database.go_goscope_cache.index_information()["key_1"]["sparse"] is True, "nothing was dropped"
    assert "expiresAt_1" in database.go_goscope_cache.index_information(), "everything else was made"
    cache.set("k", 1)
    assert cache.get("k") == 1, "it works meanwhile"
    runtime.adapter().ensure_indexes(repair=True)
    assert found() == []
    assert database.go_goscope_cache.index_information()["key_1"]["unique"] is True
    assert cache.get("k") == 1


def test_a_server_that_is_away_is_a_warning_not_an_error() -> None:
    with on_server(AWAY):
        (warning,) = checks.check_stores(databases=["default"])
        assert warning.id == "goscope.W010"
        assert "hunter2" not in str(warning) and "TEST" not in warning.msg


def test_every_store_is_looked_at(mongo_url: str) -> None:
    with on_server(mongo_url, caches={"default": {}, "away": {"LOCATION": AWAY}}):
        runtime.adapter().ensure_indexes()
        (warning,) = warnings()
        assert "CACHES['away']['LOCATION']" in warning.msg


def test_a_wrong_clock_is_told(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.adapter().ensure_indexes()
    view = runtime.connection().inspect(5.0)
    assert view.topology == "replica set" and abs(view.clock_offset) < 60

    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) - timedelta(hours=1)

    monkeypatch.setattr(inspection, "datetime", Late)
    (warning,) = warnings()
    assert warning.id == "goscope.W015" and "-3600" in warning.msg


def test_a_sharded_cluster_is_told() -> None:
    view = inspection.ServerView("sharded", None, None, (), "7.0", 0.0, ())
    (warning,) = checks._judged("GOSCOPE['URL']", view)
    assert (warning.id, warning.hint) == ("goscope.W014", "See docs/how-to/sharding.md.")


@pytest.mark.parametrize(
    ("wire", "day", "told"),
    [
        (17, date(2025, 7, 31), False),
        (17, date(2025, 8, 1), True),
        (21, date(2027, 8, 31), False),
        (21, date(2027, 9, 1), True),
        (25, date(2029, 10, 31), False),
        (25, date(2029, 11, 1), True),
        (27, date(2040, 1, 1), False),
    ],
)
def test_the_end_of_a_versions_life_is_told(wire: int, day: date, told: bool) -> None:
    finding = capabilities.ended(wire, "x.y", day)
    assert (finding is not None) is told
    if finding is not None:
        view = inspection.ServerView("replica set", None, None, (), "x.y", 0.0, (), (finding,))
        (warning,) = checks._judged("GOSCOPE['URL']", view)
        assert warning.id == "goscope.W016" and "x.y" in warning.msg


@pytest.mark.parametrize(
    ("url", "ids"),
    [
        ("mongodb://127.0.0.1/x", []),
        ("mongodb://%2Frun%2Fm.sock/x", []),
        ("mongodb://db.example.net/x", ["W030", "W031"]),
        ("mongodb://u:p@db.example.net/x", ["W030"]),
        ("mongodb://db.example.net/x?tls=true", ["W031"]),
        ("mongodb://u:p@db.example.net/x?tls=true", []),
        ("mongomock://", ["W032"]),
        ("embedded://data", ["W032"]),
        ("mongodb://u:p@localhost.evil.com/x", ["W030"]),
        ("mongodb://u:p@127.0.0.1.evil.com/x", ["W030"]),
        ("mongodb://db.example.net/x?tls=true&appname=me@127.0.0.1", ["W031"]),
        ("mongodb://localhost,db.example.net/x", ["W030", "W031"]),
        ("mongodb://u:p@db.example.net/x?tls=false", ["W030"]),
        ("mongodb://u:p@db.example.net/x?ssl=false", ["W030"]),
        ("mongodb://u:p@db.example.net/x?SSL=true", []),
        ("mongodb+srv://u:p@db.example.net/x", []),
        ("mongodb+srv://u:p@db.example.net/x?tls=false", ["W030"]),
        ("mongodb+srv://u:p@db.example.net/x?tlsInsecure=true", ["W034"]),
        ("mongodb://u:p@db.example.net/x?tls=true&tlsAllowInvalidCertificates=true", ["W034"]),
        ("mongodb://u:p@db.example.net/x?tlsallowinvalidhostnames=true", ["W034"]),
        ("mongodb://u:p@db.example.net/x?tls=true&tlsInsecure=false", []),
        ("mongodb://u:p@db.example.net/x?tlsCAFile=/ca.pem", []),
    ],
)
def test_security_is_checked_on_deployment(url: str, ids: list[str]) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": url}}):
        assert [str(one.id) for one in checks.check_security()] == [f"goscope.{one}" for one in ids]
        assert not [one for one in run_checks() if str(one.id).startswith("goscope.W03")]
        deployed = {one.id for one in run_checks(include_deployment_checks=True)}
        assert {f"goscope.{one}" for one in ids} <= deployed


def test_options_count_for_security_as_well() -> None:
    options = {"tls": True, "username": "u", "password": "p"}
    with on_server("mongodb://db.example.net/x", client_options=options):
        assert checks.check_security() == []


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    with temporary_mongod(standalone=True) as server:
        yield with_database(server.uri, "alone")


@pytest.mark.real
class TestStandalone:
    """A server without a replica set: everything works but the strict promise of tokens."""

    def test_it_is_told(self, alone: str) -> None:
        with on_server(alone):
            runtime.adapter().ensure_indexes()
            assert found() == ["goscope.W013"]

    def test_locks(self, alone: str) -> None:
        with on_server(alone):
            locks, tokens = runtime.adapter().lock, []
            for _ in range(20):
                handle = locks.acquire("a", 60_000)
                assert handle is not None and handle.is_valid() and handle.extend(60_000)
                assert locks.acquire("a", 60_000) is None
                tokens.append(handle.token)
                database = runtime.connection().sync().database
                database.go_goscope_locks.update_one({}, [{"$set": {"expiresAt": "$$NOW"}}])
            assert tokens == sorted(set(tokens)), "while the document exists they grow"
            assert locks.force_release("a") is False

    async def test_asynchronously(self, alone: str) -> None:
        with on_server(alone):
            handle = await runtime.adapter().lock.aacquire("b", 60_000)
            assert handle is not None and await handle.arelease()
            await cache.aset("k", 1)
            assert await cache.aincr("k") == 2

    def test_everything_else(self, alone: str) -> None:
        with on_server(alone):
            adapter: MongoDBAdapter = runtime.adapter()
            cache.set_many({"a": 1, "b": (2,)})
            assert cache.get_many(["a", "b"]) == {"a": 1, "b": (2,)}
            cache.clear()
            assert [adapter.circuit_breaker.record_failure("c", 2) for _ in range(3)] == [1, 2, 3]
            claim = adapter.idempotency.begin("i", 60_000)
            assert claim.outcome == "started" and claim.token is not None
            assert adapter.idempotency.complete("i", claim.token, "done")
            assert adapter.idempotency.begin("i", 60_000).value == "done"
            adapter.checkpoint.save(Checkpoint("c", "t", 1, datetime.now(UTC)))
            assert adapter.checkpoint.load_latest("t") is not None


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"tls": True}, []),
        ({"TLS": False}, ["W030"]),
        ({"ssl": False}, ["W030"]),
        ({"tlsInsecure": True}, ["W034"]),
        ({"tls": True, "tlsAllowInvalidCertificates": True}, ["W034"]),
        ({"tlsAllowInvalidHostnames": "true"}, ["W034"]),
        ({"tlsAllowInvalidHostnames": False}, []),
    ],
)
@pytest.mark.parametrize("url", ["mongodb://u:p@db.example.net/x?tls=true", "mongodb+srv://u:p@db.example.net/x"])
def test_client_options_go_before_the_url(url: str, options: dict[str, object], ids: list[str]) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": url}, "CLIENT_OPTIONS": options}):
        assert [str(one.id) for one in checks.check_security()] == [f"goscope.{one}" for one in ids]


@pytest.mark.parametrize(
    ("url", "options", "near", "warns"),
    [
        ("mongodb://h/d?w=1", {}, True, True),
        ("mongodb://h/d?w=0", {}, {"MAX_STALE": 2}, True),
        ("mongodb://h/d", {"w": 1}, True, True),
        ("mongodb://h/d?w=majority", {}, True, False),
        ("mongodb://h/d?w=1", {"w": "majority"}, True, False),
        ("mongodb://h/d", {}, True, False),
        ("mongodb://h/d?w=1", {}, False, False),
    ],
)
def test_near_caches_want_writes_that_last(url: str, options: dict[str, Any], near: object, warns: bool) -> None:
    with on_server(url, caches={"default": {"OPTIONS": {"NEAR": near}}, "other": {}}, client_options=options):
        found = checks.check_near()
        assert [one.id for one in found] == ["goscope.W024"] * warns
        assert all("'default'" in str(one.msg) and "'other'" not in str(one.msg) for one in found)


def test_an_arbiter_is_told_where_near_entries_are_kept(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = inspection.ServerView("replica set", None, None, (), "7.0", 0.0, (), (), ("h:1",))
    monkeypatch.setattr(Connection, "inspect", lambda self, seconds: view)
    for near in (True, False):
        with on_server(mongo_url, caches={"default": {"OPTIONS": {"NEAR": near}}}):
            assert [one.id for one in checks.check_stores(databases=["default"])] == ["goscope.W023"] * near
