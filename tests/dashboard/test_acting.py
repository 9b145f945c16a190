"""Actions act on what was seen, say what they did, and are logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.test import Client

from goscope_django import operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.dashboard.forms import Seen
from goscope_django.exceptions import TaskCancelled
from tests.support.dashboard import PAGE, browser_of, circuit_seen, everything, lock_seen, posted, task_seen, told, user
from tests.support.operations import own_store

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def operator() -> Client:
    """Somebody who may do everything."""
    return browser_of(User.objects.create_superuser("root"))


@pytest.fixture(params=["mongod", "mongomock"], autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[None]:
    """An empty store of either kind."""
    url = request.getfixturevalue("mongo_url") if request.param == "mongod" else "mongomock://"
    with own_store(url):
        yield


def test_a_lock_is_released(operator: Client) -> None:
    assert runtime.adapter().lock.acquire("orders", ttl=60_000, owner="worker-1")
    answer = posted(operator, "release_lock", lock_seen("orders"))
    assert told(operator, answer) == ["Lock 'orders' was released."]
    assert runtime.adapter().lock.get("orders") is None
    (entry,) = LogEntry.objects.all()
    assert (entry.action_flag, entry.object_id, entry.object_repr) == (DELETION, "lock:orders", "lock:orders")
    assert entry.get_change_message() == "Lock 'orders' was released."
    assert entry.user.get_username() == "root"
    # The log's own link leads back to the thing.
    found = operator.get(str(entry.get_admin_url()))
    assert found.status_code == 302
    assert found.headers["Location"] == f"{PAGE}lock/orders/"


def test_a_lock_that_somebody_else_holds_by_now_is_left_alone(operator: Client) -> None:
    locks = runtime.adapter().lock
    first = locks.acquire("orders", ttl=60_000, owner="worker-1")
    assert first is not None
    seen = lock_seen("orders")
    first.release()
    second = locks.acquire("orders", ttl=60_000, owner="worker-2")
    assert second is not None
    (message,) = told(operator, posted(operator, "release_lock", seen))
    assert message.startswith("Nothing was done: lock 'orders' was not released: it is held by 'worker-2' with token")
    assert second.is_valid()
    assert not LogEntry.objects.exists()


def test_a_lock_that_is_gone(operator: Client) -> None:
    (message,) = told(operator, posted(operator, "release_lock", Seen("orders", 7)))
    assert message == "Nothing was done: lock 'orders' is not held (any more)"
    assert not LogEntry.objects.exists()


def test_a_circuit_that_moved_is_left_alone(operator: Client) -> None:
    breaker = CircuitBreaker("supplier", failure_threshold=1)
    with pytest.raises(ZeroDivisionError):
        breaker.call(lambda: 1 // 0)
    seen = circuit_seen("supplier")
    operations.reset_circuit("supplier")
    before = everything()
    for name in ("open_circuit", "close_circuit", "reset_circuit"):
        (message,) = told(operator, posted(operator, name, seen))
        assert message.startswith("Nothing was done: circuit 'supplier' was left as it is: it has changed")
    assert everything() == before
    assert not LogEntry.objects.exists()


def test_a_reason_is_kept_in_history_and_log(operator: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        CircuitBreaker("supplier", failure_threshold=1).call(lambda: 1 // 0)
    posted(operator, "open_circuit", circuit_seen("supplier"), reason="their <b>maintenance</b>")
    found = operations.get_circuit("supplier")
    assert found.override is not None
    assert found.override.reason == "their <b>maintenance</b>"
    page = operator.get(PAGE).content.decode()
    assert "their &lt;b&gt;maintenance&lt;/b&gt;" in page
    assert "<b>maintenance" not in page
    (entry,) = LogEntry.objects.all()
    assert entry.action_flag == CHANGE
    assert "their <b>maintenance</b>" in entry.get_change_message()


def test_a_reason_that_is_too_long_is_asked_for_again(operator: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        CircuitBreaker("supplier", failure_threshold=1).call(lambda: 1 // 0)
    answer = posted(operator, "open_circuit", circuit_seen("supplier"), reason="x" * 201)
    assert answer.status_code == 200
    assert b"at most 200 characters" in answer.content
    assert operations.get_circuit("supplier").override is None


def test_a_running_task_is_cancelled_but_not_deleted(operator: Client) -> None:
    with suppress(TaskCancelled), checkpointed("import") as task:
        task.save({"row": 1}, progress=10)
        (message,) = told(operator, posted(operator, "delete_checkpoint", task_seen("import")))
        assert message.startswith("Nothing was done: task 'import' was not deleted: it is running")
        (message,) = told(operator, posted(operator, "cancel_task", task_seen("import")))
        assert message.startswith("Task 'import' is asked to stop")
        assert "asked to stop" in operator.get(PAGE).content.decode()
        assert task.save({"row": 2}, progress=20).cancelled
        task.raise_if_cancelled()
    assert operations.get_task("import").status == "cancelled"
    (message,) = told(operator, posted(operator, "reset_task", task_seen("import")))
    assert "may be started again" in message
    (message,) = told(operator, posted(operator, "delete_checkpoint", task_seen("import")))
    assert message == "Task 'import' and its checkpoints were deleted."
    assert [entry.action_flag for entry in LogEntry.objects.order_by("pk")] == [CHANGE, CHANGE, DELETION]


def test_a_task_that_was_run_again_is_left_alone(operator: Client) -> None:
    with checkpointed("import") as task:
        task.save({"row": 1}, progress=10)
    seen = task_seen("import")
    operations.reset_task("import", discard=True)
    with checkpointed("import") as task:
        task.save({"row": 1}, progress=10)
    before = everything()
    (message,) = told(operator, posted(operator, "delete_checkpoint", seen))
    assert message.startswith("Nothing was done: task 'import' was not deleted: it is completed with token")
    assert everything() == before


def test_a_cache_is_cleared(operator: Client) -> None:
    from django.core.cache import cache

    cache.set_many({"a": 1, "b": 2})
    (message,) = told(operator, posted(operator, "clear_cache", Seen("default")))
    assert message == "Cache 'default' was cleared: 2 entries."
    assert cache.get_many(["a", "b"]) == {}
    (message,) = told(operator, posted(operator, "clear_cache", Seen("other")))
    assert message.startswith("Nothing was done: cache 'other': no alias of CACHES")


def test_who_may_act_but_not_look_comes_back_to_the_index() -> None:
    client = browser_of(user("release_lock"))
    assert runtime.adapter().lock.acquire("orders", ttl=60_000)
    answer = posted(client, "release_lock", lock_seen("orders"))
    assert answer.url == "/admin/"
    assert told(client, answer) == ["Lock 'orders' was released."]


def test_the_way_back_keeps_search_and_page_and_leads_nowhere_else(operator: Client) -> None:
    answer = posted(operator, "release_lock", Seen("orders", 7), query="q=ord&locks=l1&limit=50")
    assert answer.url == f"{PAGE}?q=ord&limit=50&locks=l1"
    answer = posted(operator, "release_lock", Seen("orders", 7), query="//evil.example/?next=//evil.example")
    assert answer.url == PAGE


def test_a_log_that_cannot_be_written_is_told_but_undoes_nothing(
    operator: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import DatabaseError

    def full(*args: object, **kwargs: object) -> None:
        raise DatabaseError("disk full")

    monkeypatch.setattr(type(LogEntry.objects), "log_actions", full)
    assert runtime.adapter().lock.acquire("orders", ttl=60_000)
    messages = told(operator, posted(operator, "release_lock", lock_seen("orders")))
    assert messages == ["The action could not be written to the admin's log.", "Lock 'orders' was released."]
    assert "is not in the admin's log" in caplog.text
