"""Fenced rows that are documents: ``fenced_update`` and ``save_fenced`` on ``django_mongodb_backend``."""

# ruff: noqa: DJ008 - models that nobody looks at; what is tested is what leaving a block raises

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from bson import ObjectId
from django.db import DatabaseError, connections, models, transaction
from django.db import connection as default
from django.test.utils import isolate_apps
from django_mongodb_backend.transaction import atomic
from pymongo.errors import AutoReconnect, OperationFailure

from goscope_django.exceptions import ConfigurationError, StaleFence
from goscope_django.fencing import FencedModel
from tests.mongodb_backend.test_following import fail_commit, labelled
from tests.support.mongod import temporary_mongod

connection: Any = default


@pytest.fixture
def item(transactional_db: None) -> Iterator[Any]:
    """A fenced model; ``special`` has a table of its own beside it, ``late`` has the fence in the second table."""
    with isolate_apps("django.contrib.contenttypes"):

        class Item(FencedModel):
            name = models.CharField(max_length=20)
            left = models.IntegerField(default=0)

            class Meta:
                app_label = "fencing_tests"

        class Special(Item):
            extra = models.IntegerField(default=0)

            class Meta:
                app_label = "fencing_tests"

        class Plain(models.Model):
            name = models.CharField(max_length=20)

            class Meta:
                app_label = "fencing_tests"

        class Late(Plain, FencedModel):
            extra = models.IntegerField(default=0)

            class Meta:
                app_label = "fencing_tests"

        kinds: list[Any] = [Item, Special, Plain, Late]
        with connection.schema_editor() as editor:
            for kind in kinds:
                editor.create_model(kind)
        made: Any = Item
        made.special, made.late, made.kinds = Special, Late, kinds
        yield made
        with connection.schema_editor() as editor:
            for kind in reversed(kinds):
                editor.delete_model(kind)


@contextmanager
def sent() -> Iterator[list[str]]:
    """The commands that the backend's client sends."""
    from pymongo import monitoring

    found: list[str] = []

    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            if event.command_name != "endSessions":
                found.append(event.command_name)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    connection.close_pool()
    connection.settings_dict["OPTIONS"] = {"event_listeners": [Listener()]}
    connection.ensure_connection()
    try:
        yield found
    finally:
        connection.close_pool()
        connection.settings_dict["OPTIONS"] = {}


def rows(kind: Any, *fields: str) -> list[tuple[Any, ...]]:
    return sorted(kind.objects.values_list(*fields))


def test_many_rows_all_or_none(item: Any) -> None:
    for number in range(4):
        item.objects.create(name=f"n{number}", left=10, fence=number * 10)
    assert isinstance(item.objects.first().pk, ObjectId)
    with pytest.raises(StaleFence, match="token 25"):
        item.objects.filter(name__startswith="n").fenced_update(25, left=77)
    assert rows(item, "left", "fence") == [(10, 0), (10, 10), (10, 20), (10, 30)]
    assert item.objects.filter(name__in=["n0", "n1"]).fenced_update(25, left=models.F("left") - 1) == 2
    assert rows(item, "left", "fence") == [(9, 25), (9, 25), (10, 20), (10, 30)]
    assert item.objects.filter(name="nobody").fenced_update(1, left=0) == 0
    assert item.objects.fenced_update(30, name="all") == 4
    assert item.objects.filter(fence=30).count() == 4


def test_by_key(item: Any) -> None:
    one = item.objects.create(name="a", left=10)
    assert item.objects.filter(pk=one.pk).fenced_update(5, left=9) == 1
    with pytest.raises(StaleFence):
        item.objects.filter(pk=one.pk).fenced_update(4, left=8)
    assert rows(item, "left", "fence") == [(9, 5)]


def test_it_joins_the_transaction_that_is_open(item: Any) -> None:
    item.objects.create(name="a", left=10)
    item.objects.create(name="b", left=10)
    with suppress(KeyError), atomic():
        assert item.objects.fenced_update(5, left=1) == 2
        raise KeyError
    assert rows(item, "left", "fence") == [(10, 0), (10, 0)]


def test_a_refusal_that_is_caught_leaves_nothing_in_the_outer_transaction(item: Any) -> None:
    """There are no savepoints: what was written before the refusal would be committed."""
    item.objects.create(name="a", left=10)
    item.objects.create(name="b", left=10, fence=50)
    with atomic():
        item.objects.create(name="c", left=10)
        with pytest.raises(StaleFence):
            item.objects.fenced_update(40, left=77)
    assert rows(item, "name", "left", "fence") == [("a", 10, 0), ("b", 10, 50), ("c", 10, 0)]


@pytest.mark.parametrize("own", [True, False])
def test_inside_djangos_atomic(item: Any, own: bool) -> None:
    hooks: list[str] = []
    item.objects.create(name="a", left=10)
    item.objects.create(name="b", left=10, fence=50)
    with transaction.atomic():
        with pytest.raises(StaleFence):
            item.objects.fenced_update(40, left=77)
        transaction.on_commit(lambda: hooks.append("at once"))
        assert item.objects.fenced_update(60, left=7) == 2
        assert default.in_atomic_block
    assert rows(item, "left", "fence") == [(7, 60), (7, 60)]


def test_what_it_sends(item: Any) -> None:
    for name in "ab":
        item.objects.create(name=name)
    with sent() as commands:
        item.objects.fenced_update(5, left=1)
    assert commands == ["aggregate", "update", "commitTransaction"]
    with sent() as commands, pytest.raises(StaleFence):
        item.objects.fenced_update(4, left=1)
    assert commands == ["aggregate", "abortTransaction"]
    one = item.objects.first()
    with sent() as commands:
        one.save_fenced(6)
    assert commands == ["update"]


def test_writes_in_the_way_are_tried_again(item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    item.objects.create(name="a", left=0)
    fail_commit(monkeypatch, labelled(AutoReconnect("conflict"), "TransientTransactionError"))
    assert item.objects.fenced_update(5, left=models.F("left") + 1) == 1
    assert rows(item, "left", "fence") == [(1, 5)]


def test_a_hook_that_fails_after_the_commit_is_not_tried_again(item: Any) -> None:
    item.objects.create(name="a", left=0)

    def hook() -> None:
        raise labelled(AutoReconnect("of the hook"), "TransientTransactionError")

    original = connection.commit_mongo

    def with_hook() -> None:
        connection.run_on_commit.append(([], hook, False))
        original()

    connection.commit_mongo = with_hook
    try:
        with pytest.raises(AutoReconnect, match="hook"):
            item.objects.fenced_update(5, left=models.F("left") + 1)
    finally:
        del connection.commit_mongo
    assert rows(item, "left", "fence") == [(1, 5)]


def test_an_error_that_is_being_handled_says_nothing_about_ours(item: Any) -> None:
    item.objects.create(name="a", fence=9)
    item.objects.create(name="b", fence=9)
    try:
        raise OperationFailure("Transaction numbers are only allowed on a replica set member or mongos", 20)
    except OperationFailure:
        with pytest.raises(StaleFence):
            item.objects.fenced_update(5, left=1)


def test_an_unknown_commit_is_raised_as_it_is(item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    item.objects.create(name="a", left=0)
    error = labelled(AutoReconnect("away"), "UnknownTransactionCommitResult")
    fail_commit(monkeypatch, error)
    with pytest.raises(AutoReconnect) as raised:
        item.objects.fenced_update(5, left=1)
    assert raised.value is error
    assert item.objects.fenced_update(5, left=2) == 1


def test_after_a_commit_that_failed_outside(item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend keeps the dead session; a write in it would be outside of any transaction."""
    item.objects.create(name="a", fence=50)
    item.objects.create(name="b")
    fail_commit(monkeypatch, AutoReconnect("away"))
    with suppress(AutoReconnect), atomic():
        pass
    assert connection.session is not None
    with pytest.raises(StaleFence):
        item.objects.fenced_update(40, left=77)
    fail_commit(monkeypatch, AutoReconnect("away"))
    with suppress(AutoReconnect), atomic():
        pass
    with suppress(KeyError), atomic():
        assert item.objects.fenced_update(60, left=77) == 2
        raise KeyError
    assert rows(item, "left", "fence") == [(0, 0), (0, 50)]


def test_racing_tokens(item: Any) -> None:
    """Whatever the order, all rows end with one writer's values, that of the highest token."""
    for name in "abc":
        item.objects.create(name=name)
    start, refused = threading.Barrier(4), []

    def write(token: int) -> None:
        start.wait()
        try:
            item.objects.fenced_update(token, left=token)
        except (StaleFence, DatabaseError) as error:
            refused.append((token, type(error)))

    threads = [threading.Thread(target=write, args=(token,)) for token in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({tuple(row) for row in rows(item, "left", "fence")}) == 1
    left, fence = rows(item, "left", "fence")[0]
    assert left == fence
    assert (4, StaleFence) not in refused


def test_rows_of_an_inherited_model(item: Any) -> None:
    one = item.special.objects.create(name="a", extra=1)
    one.extra, one.name = 2, "b"
    one.save_fenced(5)
    late = item.special.objects.get()
    late.extra, late.name = 3, "c"
    with pytest.raises(StaleFence):
        late.save_fenced(4)
    assert rows(item.special, "extra", "name", "fence") == [(2, "b", 5)]
    new = item.special(name="new", extra=9)
    new.save_fenced(7)
    assert rows(item.special, "extra", "name", "fence") == [(2, "b", 5), (9, "new", 7)]


@pytest.mark.parametrize("caught_inside", [True, False])
def test_a_fence_in_the_second_table_guards_the_first(item: Any, caught_inside: bool) -> None:
    one = item.late.objects.create(name="a", extra=1)
    one.save_fenced(5)
    late = item.late.objects.get()
    late.name, late.extra = "c", 3
    if caught_inside:
        with atomic(), pytest.raises(StaleFence):
            late.save_fenced(4)
    else:
        with pytest.raises(StaleFence):
            late.save_fenced(4)
    assert late.fence == 5
    assert rows(item.late, "name", "extra", "fence") == [("a", 1, 5)]


def test_many_rows_of_an_inherited_model(item: Any) -> None:
    item.special.objects.create(name="a", extra=1)
    item.special.objects.create(name="b", extra=1, fence=50)
    with pytest.raises(StaleFence):
        item.special.objects.fenced_update(40, extra=7, name="late")
    assert rows(item.special, "name", "extra", "fence") == [("a", 1, 0), ("b", 1, 50)]
    assert item.special.objects.fenced_update(60, extra=7, name="new") == 2
    assert rows(item.special, "name", "extra", "fence") == [("new", 7, 60)] * 2


def test_the_asynchronous_twins(item: Any) -> None:
    async def work() -> None:
        one = await item.objects.acreate(name="a")
        await item.objects.acreate(name="b")
        await one.asave_fenced(5)
        with pytest.raises(StaleFence):
            await item.objects.afenced_update(4, left=1)
        assert await item.objects.afenced_update(5, left=1) == 2
        special = await item.special.objects.acreate(name="c")
        await special.asave_fenced(6)

    async_to_sync(work)()


@pytest.fixture(scope="module")
def standalone() -> Iterator[str]:
    """The URL of a server that is no replica set."""
    with temporary_mongod(standalone=True) as server:
        yield server.uri


@pytest.fixture
def alone(item: Any, standalone: str) -> Iterator[str]:
    """The alias of a second project database, on a standalone server."""
    connections.databases["alone"] = {**connections.databases["default"], "HOST": standalone, "NAME": "alone"}
    made: Any = connections["alone"]
    with made.schema_editor() as editor:
        for kind in item.kinds:
            editor.create_model(kind)
    yield "alone"
    made.connection.drop_database("alone")
    made.close_pool()
    del connections["alone"], connections.databases["alone"]


def test_on_a_standalone_server_several_rows_are_refused(item: Any, alone: str) -> None:
    there = item.objects.using(alone)
    for name in "abc":
        there.create(name=name, left=10)
    with pytest.raises(ConfigurationError, match=r"several rows.*'alone'.*replica set"):
        there.filter(name__in="abc").fenced_update(5, left=1)
    with pytest.raises(ConfigurationError, match="replica set"):
        async_to_sync(there.afenced_update)(5, left=1)
    with pytest.raises(ConfigurationError, match="replica set"), suppress(KeyError), atomic(using=alone):
        there.filter(name="a").fenced_update(5, left=1)
    assert sorted(there.values_list("left", "fence")) == [(10, 0)] * 3
    assert there.filter(name="a").fenced_update(5, left=1) == 1
    with pytest.raises(StaleFence):
        there.filter(name="a").fenced_update(4, left=2)
    assert there.filter(name="nobody").fenced_update(4, left=2) == 0
    one = there.get(name="b")
    one.save_fenced(5)
    with pytest.raises(StaleFence):
        one.save_fenced(4)
    assert sorted(there.values_list("name", "left", "fence")) == [("a", 1, 5), ("b", 10, 5), ("c", 10, 0)]


def test_on_a_standalone_server_an_inherited_model_is_refused(item: Any, alone: str) -> None:
    for kind in (item.special, item.late):
        made = kind.objects.using(alone).create(name="a", extra=1)
        made.name, made.extra = "b", 2
        with pytest.raises(ConfigurationError, match=r"several collections.*replica set"):
            made.save_fenced(5)
        with pytest.raises(ConfigurationError, match="replica set"):
            kind(name="new").save_fenced(5, using=alone)
        assert list(kind.objects.using(alone).values_list("name", "extra", "fence")) == [("a", 1, 0)]
    with pytest.raises(ConfigurationError, match=r"several rows.*replica set"):
        item.special.objects.using(alone).fenced_update(5, extra=3)
    assert list(item.special.objects.using(alone).values_list("extra", "fence")) == [(1, 0)]
