"""Celery tasks that resume, against the real Celery: eagerly, and with a worker on the in-memory broker."""
# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from goscope_django.checkpoints import Task, checkpointed, get_task, resume_stalled
from goscope_django.exceptions import InvalidType, InvalidValue, TaskAlreadyRunning
from tests.support.tasks import change, end_lease, own_store

celery = pytest.importorskip("celery")
from celery.contrib.testing.worker import start_worker  # noqa: E402 - only where there is Celery

from goscope_django.integrations.celery import dispatch, resumable  # noqa: E402 - the same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with own_store("mongomock://"):
        yield


@pytest.fixture
def app() -> Iterator[Any]:
    found = celery.Celery("tests", broker="memory://", backend="cache+memory://", set_as_current=True)
    found.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    yield found
    found.close()


@contextmanager
def worker(app: Any) -> Iterator[None]:
    """A worker of two threads; it knows the tasks that were declared before."""
    with start_worker(app, perform_ping_check=False, pool="threads", concurrency=2, shutdown_timeout=20):
        yield


def status(task_id: str) -> str:
    found = get_task(task_id)
    assert found is not None
    return found.status


class TestEager:
    def test_a_task_that_failed_goes_on_when_it_is_called_again(self, app: Any) -> None:
        seen = []

        @app.task(name="path", shared=False)
        @resumable(lambda path, stop=None: f"import:{path}")
        def work(task: Task, path: str, stop: int | None = None) -> int:
            for item in task.track(range(5)):
                if item == stop:
                    raise ValueError
                seen.append(item)
            return len(seen)

        assert work.apply(args=("a",), kwargs={"stop": 3}).state == "FAILURE"
        assert work.apply(args=("a",)).get() == 5
        assert work.apply(args=("a",)).get() == 5
        assert (seen, status("import:a")) == ([0, 1, 2, 3, 4], "completed")

    def test_without_an_id_it_is_the_requests(self, app: Any) -> None:
        @app.task(bind=True, name="by request", shared=False)
        @resumable()
        def work(self: Any, task: Task, number: int) -> tuple[str, str, int]:
            return self.request.id, task.id, number

        request_id, task_id, number = work.apply(args=(3,), task_id="request-1").get()
        assert (request_id, task_id, number) == ("request-1", "request-1", 3)
        with pytest.raises(InvalidValue, match="worker"):
            work(3)

    def test_a_retry_of_celerys_resumes(self, app: Any) -> None:
        attempts = []

        @app.task(bind=True, max_retries=3, name="retried", shared=False)
        @resumable()
        def work(self: Any, task: Task) -> list[int]:
            attempts.append(task.attempt)
            done = []
            for item in task.track(range(6)):
                if item == 2 * task.attempt and task.attempt < 3:
                    raise self.retry(countdown=0)
                done.append(item)
            return done

        assert work.apply().get() == [4, 5]
        assert attempts == [1, 2, 3]

    def test_somebody_elses_task_is_an_error_where_nothing_can_wait(self, app: Any) -> None:
        @app.task(name="held", shared=False)
        @resumable("held")
        def work() -> None:
            pytest.fail("it ran")

        with checkpointed("held"), pytest.raises(TaskAlreadyRunning):
            work.apply(throw=True)
        with checkpointed("other"), pytest.raises(InvalidValue, match="on_running"):
            resumable("x", on_running="wait")  # type: ignore[arg-type]

    def test_faults_show_where_the_task_is_declared(self) -> None:
        with pytest.raises(InvalidType, match="keep"):
            resumable("x", keep="3")(lambda: None)

        async def coroutine() -> None:
            pass

        with pytest.raises(InvalidType, match="coroutine"):
            resumable("x")(coroutine)


@pytest.mark.slow
class TestWorker:
    def test_a_message_delivered_twice_runs_once_and_both_get_the_result(self, app: Any) -> None:
        inside, leave, runs = threading.Event(), threading.Event(), []

        @app.task(name="twice", shared=False)
        @resumable(lambda number: f"twice:{number}", lease=1)
        def work(number: int) -> int:
            runs.append(number)
            inside.set()
            assert leave.wait(20)
            return number * 2

        with worker(app):
            first = work.apply_async(args=(4,))
            assert inside.wait(20)
            second = work.apply_async(args=(4,))
            threading.Timer(1.5, leave.set).start()
            assert first.get(timeout=20) == 8
            assert second.get(timeout=20) == 8
        assert runs == [4]

    def test_it_may_be_dropped_instead(self, app: Any) -> None:
        runs = []

        @app.task(name="dropped", shared=False)
        @resumable("held", on_running="ignore")
        def dropped() -> None:
            runs.append(1)

        @app.task(name="after", shared=False)
        def after() -> int:
            return 1

        with checkpointed("held"), worker(app):
            dropped.apply_async()
            for _ in range(4):
                assert after.apply_async().get(timeout=20) == 1
            assert runs == []
        assert status("held") == "completed"

    def test_a_task_whose_worker_is_gone_is_dispatched_again_with_its_arguments_under_its_id(self, app: Any) -> None:
        seen: list[Any] = []

        @app.task(name="stalls", shared=False)
        @resumable()
        def work(task: Task, number: int, *, word: str) -> str:
            seen.append((task.id, task.attempt, number, word))
            if task.attempt == 1:
                end_lease(task.id)  # as if the process had been killed
            return word * number

        with worker(app):
            sent = work.apply_async(args=(2,), kwargs={"word": "ab"})
            with pytest.raises(Exception, match="lease has ended"):
                sent.get(timeout=20)
            found = get_task(sent.id)
            assert found is not None
            assert found.stalled
            sent.forget()
            again: list[Any] = []
            resume_stalled(lambda info: again.append(dispatch(info)))
            assert again[0].id == sent.id
            assert again[0].get(timeout=20) == "abab"
        assert seen == [(sent.id, 1, 2, "ab"), (sent.id, 2, 2, "ab")]

    def test_arguments_that_are_too_large_to_be_remembered_do_not_stop_the_task(self, app: Any) -> None:
        @app.task(name="large", shared=False)
        @resumable("large")
        def work(text: str) -> int:
            return len(text)

        with worker(app):
            assert work.apply_async(args=("x" * 100_000,)).get(timeout=20) == 100_000
        found = get_task("large")
        assert found is not None
        change("large", status="running")
        with pytest.raises(InvalidValue, match="no message"):
            dispatch(found)
