"""Transactional mode: what the work writes to MongoDB and its completion are committed together, or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from pymongo import MongoClient

from goscope_django import runtime
from goscope_django.exceptions import ConfigurationError, IdempotencyConflict
from goscope_django.idempotency import current, idempotent
from tests.support.mongod import temporary_mongod

pytestmark = pytest.mark.real
ways: list[str] = []
Database = Any


def _end(way: str, attempt: Any) -> HttpResponse:
    if way == "raise":
        raise RuntimeError
    if way == "stolen":
        assert runtime.adapter().idempotency.delete(attempt.name)
    return HttpResponse(way, status=500 if way == "500" else 201)


@idempotent()
def pay(request: HttpRequest) -> HttpResponse:
    way, attempt = ways.pop(0), request.idempotency  # type: ignore[attr-defined]
    try:
        with attempt.transaction() as session:
            orders = session.client.get_default_database()["orders"]
            orders.insert_one({"way": way, "token": attempt.token}, session=session)
            orders.update_one({"_id": "total"}, {"$inc": {"count": 1}}, upsert=True, session=session)
            assert orders.count_documents({"way": way}) == 0  # nobody outside sees it yet
            if way == "undo":
                raise KeyError
    except KeyError:
        pass
    return _end(way, attempt)


@idempotent()
async def apay(request: HttpRequest) -> HttpResponse:
    way, attempt = ways.pop(0), request.idempotency  # type: ignore[attr-defined]
    try:
        async with attempt.atransaction() as session:
            orders = session.client.get_default_database()["orders"]
            await orders.insert_one({"way": way, "token": attempt.token}, session=session)
            await orders.update_one({"_id": "total"}, {"$inc": {"count": 1}}, upsert=True, session=session)
            if way == "undo":
                raise KeyError
    except KeyError:
        pass
    return _end(way, attempt)


urlpatterns = [path("sync/", pay), path("async/", apay)]


@pytest.fixture
def db(mongo_url: str) -> Iterator[Database]:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
    with client, override_settings(GOSCOPE={"TEST": {"URL": mongo_url}}, ROOT_URLCONF=__name__):
        ways.clear()
        database = client.get_default_database()
        runtime.adapter().ensure_indexes()
        runtime.adapter().wipe()
        for name in ("orders",):
            if name in database.list_collection_names():
                database[name].delete_many({})
            else:
                database.create_collection(name)
        yield database


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send(mode: str) -> Any:
    more: dict[str, Any] = {"data": "{}", "content_type": "application/json", "headers": {"Idempotency-Key": "k"}}
    if mode == "sync":
        return Client(raise_request_exception=False).post("/sync/", **more)
    return asyncio.run(AsyncClient(raise_request_exception=False).post("/async/", **more))


def count(db: Database) -> int:
    return int((db["orders"].find_one({"_id": "total"}) or {"count": 0})["count"])


def test_writes_and_result_are_committed_together(db: Database, mode: str) -> None:
    ways.append("buy")
    first, repeat = send(mode), send(mode)
    assert (first.status_code, first.content) == (201, b"buy")
    assert repeat["Idempotent-Replayed"] == "true"
    assert repeat.content == b"buy"
    assert count(db) == 1


@pytest.mark.parametrize(("way", "status"), [("raise", 500), ("500", 500)])
def test_without_a_result_nothing_was_written(db: Database, mode: str, way: str, status: int) -> None:
    ways.extend([way, "buy"])
    assert send(mode).status_code == status
    assert count(db) == 0
    assert send(mode).status_code == 201
    assert count(db) == 1


def test_when_the_claim_was_lost_everything_is_undone_and_the_client_told(db: Database, mode: str) -> None:
    ways.extend(["stolen", "buy"])
    first = send(mode)
    assert first.status_code == 503
    assert first["Retry-After"] == "1"
    assert json.loads(first.content)["type"] == "urn:goscope:problem:idempotency-undone"
    assert count(db) == 0
    assert send(mode).content == b"buy"
    assert count(db) == 1


def test_a_block_that_fails_is_undone_and_the_work_may_go_on(db: Database, mode: str) -> None:
    ways.append("undo")
    assert send(mode).status_code == 201
    assert count(db) == 0
    assert send(mode)["Idempotent-Replayed"] == "true"


def test_the_claim_is_held_longer_than_its_lease_for_the_transaction(db: Database) -> None:
    """It is not renewed meanwhile: that would be a write from outside to a document of the transaction."""

    @idempotent(key="k", lease=0.3, name="the_claim_is_held.work")
    def work() -> str:
        attempt = current()
        assert attempt
        with attempt.transaction() as session:
            orders = session.client.get_default_database()["orders"]
            orders.insert_one({"way": "long"}, session=session)
            time.sleep(0.7)
            assert not attempt.lost
        return "done"

    assert [work(), work()] == ["done", "done"]
    assert db["orders"].count_documents({"way": "long"}) == 1


def test_a_transaction_that_outlives_its_time_is_undone(db: Database) -> None:
    @idempotent(key="k", lease=0.3, name="a_transaction_that_outlives.work")
    def work() -> str:
        attempt = current()
        assert attempt
        with attempt.transaction(timeout=0.2) as session:
            session.client.get_default_database()["orders"].insert_one({"way": "long"}, session=session)
            time.sleep(0.4)
            assert attempt.lost
        return "done"

    with pytest.raises(IdempotencyConflict):
        work()
    assert db["orders"].count_documents({}) == 0


def test_a_claim_that_has_ended_gets_no_transaction(db: Database) -> None:
    @idempotent(key="k", name="a_claim_that_has.work")
    def work() -> str:
        attempt = current()
        assert attempt
        runtime.adapter().idempotency.delete(attempt.name)
        with attempt.transaction():
            raise AssertionError("unreachable")

    with pytest.raises(IdempotencyConflict, match="has ended"):
        work()


def test_a_standalone_server_has_no_transactions() -> None:
    @idempotent(key="k", name="a_standalone_server_has.work")
    def work() -> str:
        attempt = current()
        assert attempt
        with attempt.transaction():
            raise AssertionError("unreachable")

    with temporary_mongod(standalone=True) as server:
        url = server.uri.replace("/?", "/t?") if "/?" in server.uri else f"{server.uri.rstrip('/')}/t"
        with override_settings(GOSCOPE={"TEST": {"URL": url}}):
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="replica set"):
                    work()
            assert runtime.adapter().idempotency.list() == []


KILLED = """
import os, sys, time
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", INSTALLED_APPS=["goscope_django"], GOSCOPE={"URL": sys.argv[1]})
django.setup()
from goscope_django.idempotency import current, idempotent

@idempotent(key="order", lease=1)
def work(hang):
    with current().transaction(timeout=2) as session:
        orders = session.client.get_default_database()["orders"]
        orders.insert_one({"_id": "order"}, session=session)
        orders.update_one({"_id": "total"}, {"$inc": {"count": 1}}, upsert=True, session=session)
    print("written", flush=True)
    if hang:
        time.sleep(60)
    return os.getpid()

print(work(sys.argv[2] == "hang"), flush=True)
"""


@pytest.mark.slow
def test_killed_between_the_write_and_the_completion_it_is_done_exactly_once(db: Database, mongo_url: str) -> None:
    """The server forgets the dead worker's transaction at its limit, which is a minute unless told otherwise."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)

    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, mongo_url, how]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)

    db.client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=2)
    try:
        with start("hang") as worker:
            assert worker.stdout
            assert worker.stdout.readline() == "written\n"
            worker.send_signal(signal.SIGKILL)
        assert count(db) == 0
        deadline = time.monotonic() + 40
        while True:  # a retry as a client would send it
            with start("finish") as retry:
                out, error = retry.communicate(timeout=30)
            if retry.returncode == 0:
                break
            assert time.monotonic() < deadline, error
            time.sleep(0.5)
        assert out.splitlines()[0] == "written"
        with start("finish") as again:
            repeat, _ = again.communicate(timeout=30)
        assert repeat.splitlines() == [out.splitlines()[1]], "it ran again"
        assert count(db) == 1
    finally:
        db.client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=60)
