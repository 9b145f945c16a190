"""The end of a task that could not be written is written as soon as MongoDB answers, not when its lease has ended."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goscope_django.checkpoints import get_task, task_result
from goscope_django.core.flow import Flow
from goscope_django.exceptions import StoreUnavailable, TaskAlreadyRunning
from goscope_django.mongodb.checkpoints.tasks import TaskFlows
from tests.support.tasks import Way, change, head, heard, history, own_store, way


class Away:
    """While it is ``away`` no end of a task can be written, but for those of the statuses in ``but``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.tries = True, 0
        self.but: tuple[str, ...] = ()
        finish: Callable[..., Flow[None]] = TaskFlows.finish

        def tried(flows: Any, clock: Any, run: Any, token: int, ending: Any, *args: Any, **kwargs: Any) -> Flow[None]:
            self.tries += 1
            if self.away and ending.status not in self.but:
                raise StoreUnavailable("away")
            yield from finish(flows, clock, run, token, ending, *args, **kwargs)

        monkeypatch.setattr(TaskFlows, "finish", tried)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    with own_store("mongomock://"):
        yield Away(monkeypatch)


@pytest.fixture(params=["sync", "async"])
def by(server: Away, request: pytest.FixtureRequest) -> Iterator[Way]:
    with way(request.param) as found:
        yield found


def status() -> str | None:
    found = get_task("import")
    return None if found is None else found.status


def test_it_is_written_with_the_state_and_the_result_that_it_had(by: Way, server: Away) -> None:
    rows = ["first"]
    with heard() as told:
        with pytest.raises(StoreUnavailable), by.task("import", lease=60) as task:
            task.complete({"rows": rows})
        rows.append("added by its owner, when the task was over")
        with pytest.raises(TaskAlreadyRunning), by.task("import"):
            pass
        by.wait(lambda: server.tries >= 3)
        assert status() == "running" and "task_completed" not in [name for name, _ in told]
        server.away = False
        by.wait(lambda: status() == "completed")
        by.wait(lambda: told[-1][0] == "task_completed")
        tries = server.tries
        by.idle(0.7)
    assert server.tries == tries, "once is enough"
    assert task_result("import") == {"rows": ["first"]}


def test_the_failure_of_a_body_is_written_with_its_place_and_the_next_one_goes_on(by: Way, server: Away) -> None:
    with pytest.raises(ZeroDivisionError), by.task("import", lease=60) as task:
        for item in by.track(task, range(10), every=100):
            1 / (5 - item)
    assert history("import") == []
    server.away = False
    by.wait(lambda: status() == "failed")
    assert history("import") == [1]
    with by.task("import") as task:
        assert (task.attempt, list(by.track(task, range(10)))) == (2, [5, 6, 7, 8, 9])


def test_so_is_that_a_result_can_not_be_stored(by: Way, server: Away) -> None:
    server.but = ("completed",)  # which is not sent, since it can't be encoded
    with pytest.raises(TypeError), by.task("import", lease=60) as task:
        task.complete(threading.Lock())
    assert (status(), server.tries) == ("running", 2)
    server.away = False
    by.wait(lambda: status() == "failed")


def test_it_is_given_up_once_another_runner_has_the_task(by: Way, server: Away) -> None:
    with pytest.raises(StoreUnavailable), by.task("import", lease=60):
        pass
    change("import", claim="another's")
    server.away = False
    tries = server.tries
    by.wait(lambda: server.tries > tries)
    by.idle(0.7)
    assert server.tries == tries + 1
    assert (status(), head("import")["claim"]) == ("running", "another's")


def test_it_is_given_up_at_the_end_of_the_lease_and_that_is_logged(
    by: Way, server: Away, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "goscope.checkpoints"):
        with pytest.raises(StoreUnavailable), by.task("import", lease=1):
            pass
        by.wait(lambda: "never noted" in caplog.text)


def test_where_the_event_loop_has_ended_the_process_goes_on(server: Away) -> None:
    with way("async") as by, pytest.raises(StoreUnavailable), by.task("import", lease=60):
        pass
    server.away = False
    deadline = time.monotonic() + 20
    while status() != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
