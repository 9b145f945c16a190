"""What follows a commit or a rollback on ``django_mongodb_backend``: each way in which its transaction can end."""

# ruff: noqa: PT012 - what is tested is what leaving a block raises

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, connections, transaction
from django.db import connection as default
from django.test import TestCase, TransactionTestCase
from django_mongodb_backend.transaction import atomic
from pymongo.client_session import ClientSession
from pymongo.errors import AutoReconnect, OperationFailure, WriteConcernError

from goscope_django.process.transactions import after_commit, in_transaction, open_on

connection: Any = default


@pytest.fixture
def said() -> list[str]:
    """What was called."""
    return []


def defer(said: list[str], name: str = "", using: str | None = None) -> bool:
    return after_commit(
        lambda: said.append(f"done{name}"),
        lambda: said.append(f"undone{name}"),
        using,
        unknown=lambda: said.append(f"unknown{name}"),
    )


def names() -> list[str]:
    return sorted(Group.objects.values_list("name", flat=True))


def test_without_a_transaction_nothing_is_called(said: list[str]) -> None:
    assert not in_transaction()
    assert not defer(said)
    assert said == []


def test_djangos_atomic_is_none(said: list[str]) -> None:
    with transaction.atomic():
        assert not in_transaction()
        assert not in_transaction("default")
        assert open_on() == frozenset()
        assert not defer(said)
    assert said == []


def test_done_follows_the_commit(said: list[str]) -> None:
    with atomic():
        assert in_transaction()
        assert open_on() == {"default"}
        assert defer(said)
        Group.objects.create(name="a")
        assert said == []
    assert said == ["done"]
    assert names() == ["a"]


def test_undone_follows_the_rollback(said: list[str]) -> None:
    with suppress(KeyError), atomic():
        Group.objects.create(name="a")
        defer(said)
        raise KeyError
    assert said == ["undone"]
    assert names() == []


def test_an_inner_block_that_fails_is_part_of_the_outer_one(said: list[str]) -> None:
    with atomic():
        defer(said, " outer")
        with suppress(KeyError), atomic():
            Group.objects.create(name="inner")
            defer(said, " inner")
            raise KeyError
        with atomic():
            defer(said, " second")
        assert said == []
    assert said == ["done outer", "done inner", "done second"]
    assert names() == ["inner"]


def test_an_inner_block_of_djangos_undoes_nothing(said: list[str]) -> None:
    """It empties the connection's list of hooks all the same."""
    with atomic():
        Group.objects.create(name="a")
        defer(said)
        with transaction.atomic():
            defer(said, " inside")
        with suppress(KeyError), transaction.atomic():
            Group.objects.create(name="b")
            raise KeyError
        assert said == []
    assert said == ["done", "done inside"]
    assert names() == ["a", "b"]


def test_an_outer_block_of_djangos(said: list[str]) -> None:
    """There the backend's own commit fails, since it runs hooks, after it has committed."""
    with suppress(transaction.TransactionManagementError), transaction.atomic(), atomic():
        Group.objects.create(name="a")
        defer(said)
    assert said == ["done"]
    assert names() == ["a"]


def test_the_order_among_other_hooks_is_kept(said: list[str]) -> None:
    with atomic():
        transaction.on_commit(lambda: said.append("before"))
        defer(said)
        transaction.on_commit(lambda: said.append("after"))
    assert said == ["before", "done", "after"]


def test_another_hook_that_fails_does_not_turn_a_commit_into_a_rollback(said: list[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    for error in (KeyError("hook"), DatabaseError("hook")):
        with suppress(type(error)), atomic():
            transaction.on_commit(functools.partial(fail, error))
            defer(said)
    assert said == ["done", "done"]


def test_a_hook_with_a_transaction_of_its_own(said: list[str]) -> None:
    def nested(error: type[Exception] | None) -> None:
        with suppress(KeyError), atomic():
            defer(said, " nested")
            if error:
                raise error

    with atomic():
        transaction.on_commit(lambda: nested(KeyError))
        transaction.on_commit(lambda: nested(None))
        defer(said)
    assert said == ["undone nested", "done nested", "done"]


def fail_commit(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, first: bool = False) -> None:
    """The next commit raises ``error``; with ``first`` it is carried out before."""
    original = ClientSession.commit_transaction

    def commit(self: ClientSession) -> None:
        monkeypatch.setattr(ClientSession, "commit_transaction", original)
        if first:
            original(self)
        else:
            self.abort_transaction()
        raise error

    monkeypatch.setattr(ClientSession, "commit_transaction", commit)


def labelled(error: Any, *labels: str) -> Any:
    for label in labels:
        error._add_error_label(label)
    return error


UNKNOWN = "UnknownTransactionCommitResult"
TRANSIENT = "TransientTransactionError"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (labelled(OperationFailure("conflict", 112), TRANSIENT), "undone"),
        (labelled(OperationFailure("gone", 251), TRANSIENT), "undone"),
        (OperationFailure("gone, and perhaps not", 251), "unknown"),
        (OperationFailure("no such command", 59), "undone"),
        (labelled(AutoReconnect("away"), UNKNOWN), "unknown"),
        (AutoReconnect("away"), "unknown"),
        (labelled(OperationFailure("too late", 50), UNKNOWN), "unknown"),
        (WriteConcernError("not enough nodes", 100), "unknown"),
        (KeyboardInterrupt(), "unknown"),
    ],
)
def test_a_commit_that_fails(said: list[str], monkeypatch: pytest.MonkeyPatch, error: Any, outcome: str) -> None:
    fail_commit(monkeypatch, error)
    with pytest.raises(type(error)) as raised, atomic():
        Group.objects.create(name="a")
        defer(said)
    assert raised.value is error
    assert said == [outcome]
    assert not in_transaction()
    # The next block has a transaction of its own, and none of our hooks.
    with suppress(KeyError), atomic():
        assert in_transaction()
        Group.objects.create(name="b")
        raise KeyError
    assert names() == []
    assert said == [outcome]


def test_a_commit_that_the_backend_may_wrap_one_day(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = DatabaseError("commit")
    wrapped.__cause__ = labelled(AutoReconnect("away"), UNKNOWN)
    fail_commit(monkeypatch, wrapped, first=True)
    with pytest.raises(DatabaseError), atomic():
        Group.objects.create(name="a")
        defer(said)
    assert said == ["unknown"]
    assert names() == ["a"]


def test_a_real_conflict_is_a_rollback(said: list[str]) -> None:
    group = Group.objects.create(name="a")
    with pytest.raises(DatabaseError), atomic():
        Group.objects.filter(name="nobody").exists()  # the snapshot
        outside = connection.connection[connection.settings_dict["NAME"]]
        outside.auth_group.update_one({"_id": group.pk}, {"$set": {"name": "outside"}})
        defer(said)
        Group.objects.filter(pk=group.pk).update(name="inside")
    assert said == ["undone"]
    assert names() == ["outside"]


def test_a_transaction_that_the_server_has_ended(said: list[str]) -> None:
    """The block catches the error of its write; the commit finds no transaction."""
    group = Group.objects.create(name="a")
    with pytest.raises(OperationFailure), atomic():
        Group.objects.filter(name="nobody").exists()
        outside = connection.connection[connection.settings_dict["NAME"]]
        outside.auth_group.update_one({"_id": group.pk}, {"$set": {"name": "outside"}})
        with suppress(DatabaseError):
            Group.objects.filter(pk=group.pk).update(name="inside")
        defer(said)
    assert said == ["undone"]
    assert not in_transaction()


def test_a_session_that_was_ended_by_hand(said: list[str]) -> None:
    with atomic():
        defer(said)
        connection.session.commit_transaction()
        assert not in_transaction()
        assert not defer(said, " late")
    assert said == ["done"]
    with pytest.raises(Exception, match="abort"), atomic():
        defer(said, " aborted")
        connection.session.abort_transaction()
    assert said == ["done", "undone aborted"]


def test_a_block_that_was_left_in_a_dead_session(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hook of ours the backend keeps it; then its flag says transaction, and there is none."""
    fail_commit(monkeypatch, labelled(AutoReconnect("away"), UNKNOWN))
    with suppress(AutoReconnect), atomic():
        pass
    assert connection.session is not None
    with atomic():
        assert connection.in_atomic_block_mongo
        assert not in_transaction()
        assert not defer(said)
        connection.session.end_session()
        connection.session = None
    assert said == []


def test_closing_the_pool_is_a_rollback(said: list[str]) -> None:
    block = atomic()
    block.__enter__()
    Group.objects.create(name="a")
    defer(said)
    connection.close()  # as at the end of a request: it closes nothing here
    assert said == []
    connection.close_pool()
    assert said == ["undone"]
    block.__exit__(KeyError, KeyError(), None)
    assert names() == []


def test_an_error_in_what_follows_is_logged(said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("late")

    with atomic():
        after_commit(fail, fail)
        defer(said)
    with suppress(LookupError), atomic():
        after_commit(fail, fail)
        defer(said)
        raise LookupError
    assert said == ["done", "undone"]
    assert [record.name for record in caplog.records] == ["goscope.transactions"] * 2


def test_a_thread_that_dies_in_a_transaction(said: list[str]) -> None:
    called = threading.Event()

    def undone() -> None:
        said.append("undone")
        called.set()

    def work() -> None:
        atomic().__enter__()
        after_commit(lambda: said.append("done"), undone)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for _ in range(100):
        gc.collect()
        if called.wait(0.05):
            break
    assert said == ["undone"]


@pytest.fixture
def sql(tmp_path: Any) -> Iterator[str]:
    """The alias of a second database, on SQLite."""
    connections.databases["sql"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "HOST": "",
        "OPTIONS": {},
    }
    connections["sql"].connect()
    yield "sql"
    connections["sql"].close()
    del connections["sql"], connections.databases["sql"]


@pytest.mark.parametrize("mongodb_outside", [True, False])
@pytest.mark.parametrize("fails", ["", "inner", "outer"])
def test_two_databases(said: list[str], sql: str, mongodb_outside: bool, fails: str) -> None:
    outer, inner = atomic(), transaction.atomic(using=sql)
    if not mongodb_outside:
        outer, inner = inner, outer
    with suppress(KeyError), outer:
        with suppress(LookupError), inner:
            assert open_on() == {"default", "sql"}
            defer(said)
            defer(said, " mongodb", "default")
            defer(said, " sql", "sql")
            if fails == "inner":
                raise LookupError
        assert len(said) == 1
        if fails == "outer":
            raise KeyError
    mongodb, other = ("outer", "inner") if mongodb_outside else ("inner", "outer")
    assert sorted(said) == sorted(
        [
            "undone" if fails else "done",
            "undone mongodb" if fails == mongodb else "done mongodb",
            "undone sql" if fails == other else "done sql",
        ]
    )


def test_what_is_unknown_outweighs_a_rollback(said: list[str], sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_commit(monkeypatch, labelled(AutoReconnect("away"), UNKNOWN))
    with suppress(AutoReconnect), transaction.atomic(using=sql), atomic():
        defer(said)
    assert said == ["unknown"]


def test_without_a_word_for_the_unknown_it_is_undone(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_commit(monkeypatch, labelled(AutoReconnect("away"), UNKNOWN))
    with suppress(AutoReconnect), atomic():
        after_commit(lambda: said.append("done"), lambda: said.append("undone"))
    assert said == ["undone"]


class InATestCase(TestCase):
    """Without transactions of Django's, each of its test cases empties the database afterwards."""

    def test_a_block_is_a_transaction(self) -> None:
        said: list[str] = []
        assert not defer(said)
        with self.captureOnCommitCallbacks(execute=True), atomic():
            Group.objects.create(name="a")
            assert defer(said)
        assert said == ["done"]
        with suppress(KeyError), atomic():
            defer(said)
            raise KeyError
        assert said == ["done", "undone"]


class InATransactionTestCase(TransactionTestCase):
    def test_a_block_is_a_transaction(self) -> None:
        said: list[str] = []
        with atomic():
            defer(said)
        assert said == ["done"]
