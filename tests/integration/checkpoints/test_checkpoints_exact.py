"""``track(atomic=True)`` on ``django_mongodb_backend``: saved state and business data are committed together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import override_settings
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from pymongo.synchronous.client_session import ClientSession

from goscope_django import runtime
from goscope_django.checkpoints import checkpointed, list_tasks
from goscope_django.exceptions import OutcomeUnknown, StoreError, TaskLost
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS
from goscope_django.mongodb.checkpoints.tasks import TASKS, TaskFlows
from tests.support.backend import ALIAS, mongodb_alias
from tests.support.mongod import temporary_mongod

pytest.importorskip("django_mongodb_backend", reason="django-mongodb-backend is not installed")

ITEMS = list(range(10))


class Books:
    """The business data, as it stands outside of any transaction."""

    def __init__(self, url: str) -> None:
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)
        self.db = self.client.get_default_database()

    def note(self, item: int) -> None:
        """Write as a model would: in the backend's transaction, if there is one."""
        mine: Any = connections[ALIAS]
        mine.database["book"].insert_one({"item": item}, session=mine.session)

    @property
    def items(self) -> list[int]:
        return sorted(one["item"] for one in self.db["book"].find())

    def end_lease(self) -> None:
        self.db[TASKS].update_one({"_id": "t"}, [{"$set": {"leaseUntil": {"$subtract": ["$$NOW", 1]}}}])


@pytest.fixture
def books(mongo_url: str, django_db_blocker: Any) -> Iterator[Books]:
    with (
        django_db_blocker.unblock(),
        mongodb_alias(mongo_url),
        override_settings(GOSCOPE={"TEST": {"URL": f"django://{ALIAS}"}}),
    ):
        runtime.adapter().connect()
        runtime.adapter().wipe()
        found = Books(mongo_url)
        found.db["book"].delete_many({})
        found.db.drop_collection("book")
        found.db.create_collection("book")
        yield found
        found.client.close()


def test_each_batch_and_its_state_are_committed_together(books: Books) -> None:
    with checkpointed("t") as task:
        for item in task.track(ITEMS, every=4, atomic=ALIAS):
            books.note(item)
            if item == 5:
                assert books.items == [0, 1, 2, 3]
                (last,) = books.db[CHECKPOINTS].find({"taskId": "t"})
                assert last["places"][0]["done"] == 4
    assert books.items == ITEMS
    assert task.sequence >= 3
    assert [one.task_id for one in list_tasks()] == ["t"]  # the fence is no task
    assert books.db[TASKS].count_documents({}) == 1


def test_inside_djangos_atomic_which_does_nothing_here(books: Books) -> None:
    """The backend's own ``atomic`` fails there, after its commit: Django refuses to run hooks in a block of its own."""
    with transaction.atomic(using=ALIAS), checkpointed("t") as task:
        for item in task.track(ITEMS, every=4, atomic=ALIAS):
            books.note(item)
            assert connections[ALIAS].in_atomic_block
    assert books.items == ITEMS
    assert not connections[ALIAS].in_atomic_block


def test_an_error_takes_the_batch_back_and_the_next_start_repeats_it(books: Books) -> None:
    def work(stop: int) -> None:
        with checkpointed("t") as task:
            for item in task.track(ITEMS, every=4, atomic=ALIAS):
                books.note(item)
                if item == stop:
                    raise RuntimeError

    with pytest.raises(RuntimeError):
        work(6)
    assert books.items == [0, 1, 2, 3]
    work(-1)
    assert books.items == ITEMS


def test_a_death_between_the_commit_and_the_head_loses_and_repeats_nothing(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> Any:
        raise Died

    def work() -> None:
        with checkpointed("t") as task:
            for item in task.track(ITEMS, every=4, atomic=ALIAS):
                books.note(item)

    with monkeypatch.context() as patch:
        patch.setattr(TaskFlows, "settle", die)
        patch.setattr(TaskFlows, "finish", die)  # a process that was killed writes no end either
        with pytest.raises(Died):
            work()
    assert books.items == [0, 1, 2, 3]
    books.end_lease()
    work()
    assert books.items == ITEMS


def test_a_runner_that_was_replaced_cant_commit(books: Books) -> None:
    def slow() -> None:
        with checkpointed("t", lease=60) as task:
            for item in task.track(ITEMS, every=4, atomic=ALIAS):
                if item == 4:
                    books.end_lease()
                    with checkpointed("t") as other:
                        assert other.resumed
                        other.save(progress=50)  # without a batch of its own: the start alone is the fence
                books.note(item)

    with pytest.raises((TaskLost, StoreError)):
        slow()
    assert books.items == [0, 1, 2, 3]


def test_a_save_in_the_batch_is_part_of_it(books: Books) -> None:
    def work(stop: int) -> Any:
        with checkpointed("t") as task:
            before = task.data
            for item in task.track(ITEMS, every=4, atomic=ALIAS):
                books.note(item)
                if item % 4 == 2:
                    task.save({"seen": item})
                    assert books.db[CHECKPOINTS].count_documents({"data.seen": item}) == 0
                if item == stop:
                    raise RuntimeError
            return before

    for stop, seen in ((3, None), (7, {"seen": 2})):
        with pytest.raises(RuntimeError):
            work(stop)
        assert books.items == ITEMS[: stop - 3]
        assert [one["data"] for one in books.db[TASKS].find({"_id": "t"})] == [seen]
    assert work(-1) == {"seen": 2}
    assert books.items == ITEMS


@pytest.mark.parametrize("url", ["mongomock://", "mongodb://127.0.0.1:1/x"])
def test_another_store_is_refused(books: Books, mongo_url: str, url: str) -> None:
    if url.startswith("mongodb:"):
        url = mongo_url
    with override_settings(GOSCOPE={"TEST": {"URL": url}}), checkpointed("t") as task:
        with pytest.raises(ImproperlyConfigured, match="django://"):
            next(iter(task.track(ITEMS, atomic=ALIAS)))
        task.complete()


def test_a_standalone_server_is_refused_with_the_reason(django_db_blocker: Any) -> None:
    with (
        temporary_mongod(standalone=True) as server,
        django_db_blocker.unblock(),
        mongodb_alias(server.uri.replace("/?", "/shop?")),
        override_settings(GOSCOPE={"TEST": {"URL": f"django://{ALIAS}"}}),
        checkpointed("t") as task,
    ):
        with pytest.raises(ImproperlyConfigured, match="standalone"):
            next(iter(task.track(ITEMS, atomic=ALIAS)))
        task.complete()


@pytest.mark.parametrize("carried_out", [True, False], ids=["carried out", "not carried out"])
def test_after_an_unknown_commit_nothing_is_saved_and_the_next_start_knows(
    books: Books, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    def work(*, again: bool = False) -> None:
        with checkpointed("t") as task:
            try:
                for item in task.track(ITEMS, every=4, atomic=ALIAS):
                    books.note(item)
            except AutoReconnect:
                if not again:
                    raise
                with pytest.raises(OutcomeUnknown):
                    task.save()
                raise

    commits: list[int] = []
    real = ClientSession.commit_transaction

    def commit(session: Any) -> None:
        commits.append(1)
        if len(commits) != 2:
            return real(session)
        if carried_out:
            real(session)
        else:
            session.abort_transaction()
        error = AutoReconnect("the connection broke")
        error._add_error_label("UnknownTransactionCommitResult")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ClientSession, "commit_transaction", commit)
        with pytest.raises(AutoReconnect):
            work(again=True)
    assert books.items == ITEMS[: 8 if carried_out else 4]
    work()
    assert books.items == ITEMS


def test_a_hook_that_fails_after_the_commit_takes_nothing_back(books: Books) -> None:
    from django_mongodb_backend import transaction

    def broken() -> None:
        raise ZeroDivisionError

    def work(stop: int) -> None:
        with checkpointed("t") as task:
            for item in task.track(ITEMS, every=4, atomic=ALIAS):
                books.note(item)
                if item == stop:
                    transaction.on_commit(broken, using=ALIAS)

    with pytest.raises(ZeroDivisionError):
        work(5)
    assert books.items == ITEMS[:8]
    work(-1)
    assert books.items == ITEMS
