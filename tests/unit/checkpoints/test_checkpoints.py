"""``checkpointed``: its arguments, as a decorator, and SIGTERM. On mongomock."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from django.utils.decorators import method_decorator

from goscope_django.checkpoints import Task, checkpointed, current_task, get_task
from goscope_django.checkpoints.interrupts import TaskInterrupted
from goscope_django.exceptions import InvalidType, InvalidValue, TaskAlreadyRunning
from tests.support.tasks import head, history, own_store


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with own_store("mongomock://"):
        yield


def status(task_id: str) -> str:
    found = get_task(task_id)
    assert found is not None
    return found.status


class Boom(Exception):
    pass


class TestArguments:
    @pytest.mark.parametrize(
        "bad",
        [
            {"task_id": b"x"},
            {"task_id": "\ud800"},
            {"keep": 0},
            {"keep": True},
            {"interval": -1},
            {"lease": 0},
            {"lease": "5"},
            {"max_attempts": 0},
            {"retention": 0},
            {"version": 1},
            {"owner": 1},
            {"metadata": [1]},
            {"restart": "false"},
            {"restart": None},
            {"on_sigterm": 0},
        ],
    )
    def test_what_is_not_allowed_is_refused_and_named(self, bad: dict[str, Any]) -> None:
        with pytest.raises((InvalidType, InvalidValue), match=next(iter(bad))):
            checkpointed(**{"task_id": "t", **bad})

    def test_metadata_has_a_limit(self) -> None:
        with pytest.raises(InvalidValue, match="65536"), checkpointed("t", metadata={"x": "y" * 65_536}):
            pass
        assert get_task("t") is None

    def test_the_lease_is_the_projects_unless_it_is_given(self) -> None:
        with checkpointed("a") as task:
            assert task._runner._run.lease == 30_000
        with checkpointed("b", lease=timedelta(seconds=2)) as task:
            assert task._runner._run.lease == 2_000

    def test_the_worker_is_named(self) -> None:
        with checkpointed("t"):
            assert head("t")["owner"].startswith(f"{socket.gethostname()}:{os.getpid()}")

    def test_a_function_for_the_id_is_for_decorators(self) -> None:
        with pytest.raises(InvalidType, match="decorator"), checkpointed(lambda: "t"):
            pass


class TestDecorator:
    def test_the_task_is_handed_over_where_the_function_wants_it(self) -> None:
        @checkpointed("first")
        def first(task: Task, a: int, *, b: int) -> tuple[str, int, int]:
            return task.id, a, b

        @checkpointed("last")
        def last(a: int, *, task: Task) -> tuple[str, int]:
            return task.id, a

        @checkpointed("none")
        def none(a: int) -> int:
            assert current_task() is not None
            return a

        assert first(1, b=2) == ("first", 1, 2)
        assert last(1) == ("last", 1)  # type: ignore[call-arg]
        assert none(7) == 7
        assert str(inspect.signature(first)) == "(a: 'int', *, b: 'int') -> 'tuple[str, int, int]'"

    def test_a_method_and_a_class_through_method_decorator(self) -> None:
        class Import:
            @checkpointed("method")
            def run(self, task: Task, number: int) -> tuple[str, int]:
                return task.id, number

        @method_decorator(checkpointed("decorated"), name="run")
        class Other:
            def run(self, number: int) -> int:
                return number

        assert Import().run(3) == ("method", 3)
        assert Other().run(4) == 4
        assert (status("method"), status("decorated")) == ("completed", "completed")

    def test_each_call_is_its_own_task_where_the_id_depends_on_it(self) -> None:
        calls = []

        @checkpointed(lambda path, **options: f"import:{path}")
        def work(path: str, *, fast: bool = False) -> str:
            calls.append(path)
            return path.upper()

        assert [work("a"), work("b", fast=True), work("a")] == ["A", "B", "A"]
        assert calls == ["a", "b"]

    async def test_a_coroutine_function(self) -> None:
        calls = []

        @checkpointed("t")
        async def work(task: Task, number: int) -> int:
            calls.append(number)
            return number * 2

        assert inspect.iscoroutinefunction(work)
        assert (await work(2), await work(3), calls) == (4, 4, [2])

    def test_a_function_that_fails_goes_on_next_time(self) -> None:
        seen = []

        @checkpointed("t")
        def work(task: Task, stop: int | None) -> int:
            for item in task.track(range(5)):
                if item == stop:
                    raise Boom
                seen.append(item)
            return len(seen)

        with pytest.raises(Boom):
            work(3)
        assert (work(None), seen) == (5, [0, 1, 2, 3, 4])

    def test_calls_side_by_side_do_not_share_a_block(self) -> None:
        inside = threading.Event()
        leave = threading.Event()

        @checkpointed(lambda name: name)
        def work(name: str) -> str:
            inside.set()
            assert leave.wait(10)
            return name

        thread = threading.Thread(target=work, args=("a",))
        thread.start()
        assert inside.wait(10)
        with pytest.raises(TaskAlreadyRunning):
            work("a")
        leave.set()
        assert work("b") == "b"
        thread.join()
        assert status("a") == "completed"

    def test_a_result_that_can_not_be_stored_is_an_error_and_no_completion(self) -> None:
        @checkpointed("t")
        def work() -> Any:
            return threading.Lock()

        with pytest.raises(TypeError):
            work()
        assert status("t") == "failed"

    def test_generators_are_refused(self) -> None:
        with pytest.raises(InvalidType, match="generator"):

            @checkpointed("t")
            def work() -> Iterator[int]:
                yield 1


class TestSigterm:
    def terminate(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def test_it_leaves_the_block_at_once_with_a_last_save_and_the_task_free(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(TaskInterrupted) as caught, checkpointed("t") as task:
            for item in task.track(range(10), every=100):
                if item == 4:
                    self.terminate()
                    pytest.fail("it went on")
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == before
        assert (status("t"), history("t")) == ("interrupted", [1])
        with checkpointed("t") as task:
            assert list(task.track(range(10))) == [4, 5, 6, 7, 8, 9]

    def test_a_handler_from_before_is_called_when_all_is_in_order(self) -> None:
        calls = []

        def handler(number: int, frame: FrameType | None) -> None:
            calls.append((number, status("t")))

        before = signal.signal(signal.SIGTERM, handler)
        try:
            with pytest.raises(TaskInterrupted), checkpointed("t"):
                self.terminate()
            assert calls == [(signal.SIGTERM, "interrupted")]
            assert signal.getsignal(signal.SIGTERM) == handler
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_nested_blocks_are_left_one_after_the_other(self) -> None:
        with pytest.raises(TaskInterrupted), checkpointed("outer"):
            try:
                with checkpointed("inner"):
                    self.terminate()
            finally:
                assert status("inner") == "interrupted"
        assert status("outer") == "interrupted"

    def test_in_the_middle_of_a_save_it_waits_for_the_end_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(TaskInterrupted), checkpointed("t") as task:
            insert = task._runner._flows.history.insert

            def interrupted(*args: Any) -> Any:
                self.terminate()
                return insert(*args)

            monkeypatch.setattr(task._runner._flows.history, "insert", interrupted)
            task.save(1)
        assert history("t") == [1]

    def test_a_save_on_another_thread_neither_delays_it_nor_gets_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inside, leave, errors = threading.Event(), threading.Event(), list[BaseException]()

        def save(task: Task) -> None:
            try:
                task.save(1)
            except BaseException as error:
                errors.append(error)

        with pytest.raises(TaskInterrupted), checkpointed("t") as task:
            insert = task._runner._flows.history.insert

            def slow(*args: Any) -> Any:
                inside.set()
                assert leave.wait(10)
                return insert(*args)

            monkeypatch.setattr(task._runner._flows.history, "insert", slow)
            thread = threading.Thread(target=save, args=(task,))
            thread.start()
            assert inside.wait(10)
            try:
                self.terminate()
            finally:
                leave.set()
                thread.join()
        assert (errors, history("t"), status("t")) == ([], [1], "interrupted")

    def test_it_can_be_left_alone(self) -> None:
        calls = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
        try:
            with checkpointed("t", on_sigterm=False):
                self.terminate()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert (calls, status("t")) == ([signal.SIGTERM], "completed")

    def test_a_process_that_ignores_it_goes_on_ignoring_it(self) -> None:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with checkpointed("t"):
                self.terminate()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert status("t") == "completed"

    def test_another_thread_leaves_signals_alone(self) -> None:
        handlers = []

        def work() -> None:
            with checkpointed("t"):
                handlers.append(signal.getsignal(signal.SIGTERM))

        before = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert handlers == [before]

    def test_in_an_event_loop_the_asyncio_task_is_cancelled_and_the_process_ends(self) -> None:
        async def work() -> None:
            async with checkpointed("t") as task:
                async for item in task.atrack(range(10), every=100):
                    if item == 4:
                        self.terminate()
                        await asyncio.sleep(30)
                        pytest.fail("it went on")

        with pytest.raises(TaskInterrupted):
            asyncio.run(work())
        assert (status("t"), history("t")) == ("interrupted", [1])

    def test_in_an_event_loop_a_handler_from_before_decides(self) -> None:
        calls = []

        async def work() -> None:
            async with checkpointed("t"):
                self.terminate()
                await asyncio.sleep(30)

        before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(status("t")))
        try:
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(work())
        finally:
            signal.signal(signal.SIGTERM, before)
        assert calls == ["interrupted"]


async def test_a_cancelled_asyncio_task_lets_go_of_its_task() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with checkpointed("t"):
            entered.set()
            await asyncio.sleep(30)

    running = asyncio.create_task(work())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert status("t") == "interrupted"


def test_errors_survive_the_way_through_a_process_pool_or_a_task_queue() -> None:
    with checkpointed("t"), pytest.raises(TaskAlreadyRunning) as caught, checkpointed("t"):
        pass
    found = pickle.loads(pickle.dumps(caught.value))
    assert type(found) is TaskAlreadyRunning
    assert (str(found), found.task_id, found.retry_after) == (str(caught.value), "t", caught.value.retry_after)
