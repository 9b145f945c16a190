"""What follows a commit or a rollback, on SQLite: each way in which a transaction can end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, connection, connections, transaction
from django.test import TestCase

from goscope_django.process.transactions import after_commit, in_transaction


@pytest.fixture
def said(transactional_db: None) -> Iterator[list[str]]:
    """What was called; afterwards the connection must be as Django made it."""
    found: list[str] = []
    yield found
    shadows = {"commit", "rollback", "savepoint_rollback", "clean_savepoints", "close", "run_and_clear_commit_hooks"}
    assert not (shadows | {"_goscope_watch"}) & set(vars(connections["default"]))


def defer(said: list[str], name: str = "", using: str | None = None) -> bool:
    return after_commit(lambda: said.append(f"done{name}"), lambda: said.append(f"undone{name}"), using)


def savepoint() -> str:
    """A savepoint made by hand. ``transaction.savepoint`` is on its way out from Django 6.1 on."""
    made = connection.savepoint()
    assert made is not None
    return made


def test_without_a_transaction_nothing_is_called(said: list[str]) -> None:
    assert not in_transaction()
    assert not defer(said)
    assert said == []


def test_done_follows_the_commit(said: list[str]) -> None:
    with transaction.atomic():
        assert in_transaction()
        assert in_transaction("default")
        assert defer(said)
        assert said == []
    assert said == ["done"]


def test_undone_follows_the_rollback(said: list[str]) -> None:
    with suppress(KeyError), transaction.atomic():
        defer(said)
        raise KeyError
    assert said == ["undone"]


def test_set_rollback_is_a_rollback(said: list[str]) -> None:
    with transaction.atomic():
        defer(said)
        transaction.set_rollback(True)
    assert said == ["undone"]


def test_the_order_among_other_hooks_is_kept(said: list[str]) -> None:
    with transaction.atomic():
        transaction.on_commit(lambda: said.append("before"))
        defer(said)
        transaction.on_commit(lambda: said.append("after"))
    assert said == ["before", "done", "after"]


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_with_it(said: list[str]) -> None:
    with transaction.atomic():
        defer(said, " outer")
        with suppress(KeyError), transaction.atomic():
            defer(said, " inner")
            raise KeyError
        assert said == ["undone inner"]
        with transaction.atomic():
            defer(said, " second")
        assert said == ["undone inner"]
    assert said == ["undone inner", "done outer", "done second"]


def test_a_savepoint_by_hand_takes_what_followed_it(said: list[str]) -> None:
    """Django's own hooks it leaves alone: they run after the commit, though their work was undone."""
    with transaction.atomic():
        defer(said, " before")
        point = savepoint()
        transaction.on_commit(lambda: said.append("Django's"))
        defer(said, " first")
        with transaction.atomic():
            defer(said, " inner")
        connection.savepoint_rollback(point)
        assert said == ["undone first", "undone inner"]
        defer(said, " after")
    assert said == ["undone first", "undone inner", "done before", "Django's", "done after"]


def test_a_savepoint_by_hand_that_came_later_or_is_kept_takes_nothing(said: list[str]) -> None:
    with transaction.atomic():
        kept = savepoint()
        defer(said)
        connection.savepoint_commit(kept)
        later = savepoint()
        connection.savepoint_rollback(later)
        assert said == []
    assert said == ["done"]


def test_savepoints_that_are_counted_anew_take_nothing_by_their_number(said: list[str]) -> None:
    with transaction.atomic():
        for _ in range(3):
            savepoint()
        defer(said)
        connection.clean_savepoints()
        connection.savepoint_rollback(savepoint())
        assert said == []
    assert said == ["done"]


def test_a_savepoint_whose_rollback_fails_takes_nothing(said: list[str]) -> None:
    with suppress(KeyError), transaction.atomic():
        point = savepoint()
        defer(said)
        connection.savepoint_commit(point)
        with pytest.raises(DatabaseError):
            connection.savepoint_rollback(point)  # it is gone
        assert said == []
        raise KeyError
    assert said == ["undone"]


def test_an_inner_block_without_a_savepoint_spoils_the_outer_one(said: list[str]) -> None:
    with transaction.atomic():
        defer(said)
        with suppress(KeyError), transaction.atomic(savepoint=False):
            raise KeyError
        assert said == []
    assert said == ["undone"]


def test_a_commit_that_fails_is_a_rollback(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise DatabaseError("deferred constraint")

    with suppress(DatabaseError), transaction.atomic():
        defer(said)
        monkeypatch.setattr(type(connections["default"]), "_commit", fail)
    monkeypatch.undo()
    assert said == ["undone"]


def test_another_hook_that_fails_does_not_turn_a_commit_into_a_rollback(said: list[str]) -> None:
    def fail() -> None:
        raise KeyError("hook")

    with suppress(KeyError), transaction.atomic():
        transaction.on_commit(fail)
        defer(said)
    assert said == ["done"]


def test_a_hook_that_rolls_back_a_transaction_of_its_own_changes_nothing(said: list[str]) -> None:
    def nested() -> None:
        with transaction.atomic():
            defer(said, " nested")
            transaction.set_rollback(True)

    with transaction.atomic():
        transaction.on_commit(nested)
        defer(said)
    assert said == ["undone nested", "done"]


def test_closing_the_connection_is_a_rollback(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # SQLite in memory ignores close(); this is what every other backend does.
    from django.db.backends.base.base import BaseDatabaseWrapper

    monkeypatch.setattr(type(connections["default"]), "_close", lambda self: None)
    monkeypatch.setattr(type(connections["default"]), "close", BaseDatabaseWrapper.close)
    with transaction.atomic():
        defer(said)
        connection.close()
        assert said == ["undone"]
        # As the connection was not really closed, it can go on.
        connection.closed_in_transaction = False
        connection.needs_rollback = True
    assert said == ["undone"]


def test_in_a_block_whose_connection_was_closed_it_is_undone_already(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has rolled it back, Django's block goes on, and nothing would tell a hook of the end."""
    from django.db.backends.base.base import BaseDatabaseWrapper

    monkeypatch.setattr(type(connections["default"]), "_close", lambda self: None)
    monkeypatch.setattr(type(connections["default"]), "close", BaseDatabaseWrapper.close)
    with transaction.atomic():
        Group.objects.exists()
        connection.close()
        assert connection.closed_in_transaction
        assert defer(said)
        assert said == ["undone"]
        connection.closed_in_transaction = False
        connection.needs_rollback = True
    assert said == ["undone"]


def test_a_hook_that_runs_at_once_is_no_commit(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tests that let ``on_commit`` call its function, or with a backend whose ``atomic()`` does nothing."""

    def at_once(func: Callable[[], object], robust: bool = False) -> None:
        func()

    monkeypatch.setattr(connections["default"], "on_commit", at_once)
    with transaction.atomic():
        assert in_transaction()
        assert not defer(said)
    assert said == []


def test_a_hook_that_is_dropped_is_undone(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "on_commit", lambda func, robust=False: None)
    with transaction.atomic():
        defer(said)
    assert said == ["undone"]


def test_an_error_in_what_follows_is_logged(said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("late")

    with transaction.atomic():
        after_commit(fail, fail)
        defer(said)
    assert said == ["done"]
    with transaction.atomic():
        after_commit(fail, fail)
        defer(said)
        transaction.set_rollback(True)
    assert said == ["done", "undone"]
    assert [record.name for record in caplog.records] == ["goscope.transactions"] * 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_thread_that_dies_in_a_transaction(said: list[str]) -> None:
    """Its connection is collected, sooner or later: nothing may stay pending for good."""
    called = threading.Event()

    def undone() -> None:
        said.append("undone")
        called.set()

    def work() -> None:
        transaction.atomic().__enter__()
        after_commit(lambda: said.append("done"), undone)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for _ in range(100):
        gc.collect()
        if called.wait(0.05):
            break
    assert said == ["undone"]


class InATestCase(TestCase):
    """Django's own rules: the test's transaction does not count, callbacks of others run when captured."""

    def test_the_tests_own_transaction_is_none(self) -> None:
        said: list[str] = []
        assert not defer(said)

    def test_capture_runs_what_a_block_deferred(self) -> None:
        said: list[str] = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks, transaction.atomic():
            Group.objects.create(name="a")
            assert defer(said)
        assert said == ["done"]
        assert len(callbacks) == 1

    def test_a_rollback_is_noticed(self) -> None:
        said: list[str] = []
        with suppress(KeyError), transaction.atomic():
            defer(said)
            raise KeyError
        assert said == ["undone"]
