"""Flows and their two runners: same results, same errors, nothing left running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from goscope_django.core.flow import (
    Command,
    Emit,
    Flow,
    Pause,
    Query,
    acarry_out,
    arun,
    ask,
    call,
    carry_out,
    invoke,
    last_call,
    perform,
    run,
)


def in_sync(flow: Flow[Any], execute: Callable[[Command[Any]], Any]) -> Any:
    return run(flow, execute)


def in_async(flow: Flow[Any], execute: Callable[[Command[Any]], Any]) -> Any:
    async def aexecute(command: Command[Any]) -> Any:
        await asyncio.sleep(0)
        return execute(command)

    return asyncio.run(arun(flow, aexecute))


BOTH = pytest.mark.parametrize("runner", [in_sync, in_async])


class Boom(Exception):
    pass


@BOTH
def test_results_go_in_and_the_last_comes_out(runner: Any) -> None:
    def flow() -> Flow[list[int]]:
        first = yield from ask("c", "find_one", {"a": 1}, sort=1)
        second = yield from perform(Query[int]("c", "count"))
        return [first, second]

    seen: list[Query[Any]] = []

    def execute(command: Command[Any]) -> Any:
        assert isinstance(command, Query)
        seen.append(command)
        return len(seen)

    assert runner(flow(), execute) == [1, 2]
    assert [(one.collection, one.method, one.args, one.kwargs) for one in seen] == [
        ("c", "find_one", ({"a": 1},), {"sort": 1}),
        ("c", "count", (), {}),
    ]


@BOTH
def test_a_flow_without_commands(runner: Any) -> None:
    def flow() -> Flow[str]:
        return "done"
        yield

    assert runner(flow(), pytest.fail) == "done"


@BOTH
def test_an_error_is_thrown_in_where_the_command_was(runner: Any) -> None:
    def flow() -> Flow[str]:
        try:
            yield from ask("c", "insert")
        except Boom:
            found: str = yield from ask("c", "repair")
            return found
        raise AssertionError

    def execute(command: Command[Any]) -> Any:
        assert isinstance(command, Query)
        if command.method == "insert":
            raise Boom
        return command.method

    assert runner(flow(), execute) == "repair"


@BOTH
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
def test_what_a_flow_does_not_catch_comes_out_after_its_finally(runner: Any, error: type[BaseException]) -> None:
    closed = []

    def flow() -> Flow[None]:
        try:
            yield Pause(1)
        finally:
            closed.append(True)

    def execute(command: Command[Any]) -> Any:
        raise error

    with pytest.raises(error):
        runner(flow(), execute)
    assert closed == [True]


@BOTH
def test_a_flow_may_raise_itself(runner: Any) -> None:
    def flow() -> Flow[None]:
        yield Emit("event", key="k")
        raise Boom("mine")

    with pytest.raises(Boom, match="mine"):
        runner(flow(), lambda command: None)


@BOTH
def test_errors_one_after_the_other(runner: Any) -> None:
    def flow() -> Flow[int]:
        for attempt in range(5):
            try:
                yield from ask("c", "try")
            except Boom:
                continue
            return attempt
        return -1

    calls = iter([True, True, True, False])

    def execute(command: Command[Any]) -> Any:
        if next(calls):
            raise Boom

    assert runner(flow(), execute) == 3


def test_cancellation_is_thrown_in_and_goes_on() -> None:
    made_good = []

    def flow() -> Flow[None]:
        try:
            yield from ask("c", "slow")
        except asyncio.CancelledError:
            made_good.append((yield from ask("c", "undo")))
            raise

    async def main() -> None:
        started = asyncio.Event()

        async def execute(command: Command[Any]) -> Any:
            assert isinstance(command, Query)
            if command.method == "slow":
                started.set()
                await asyncio.sleep(60)
            return command.method

        task = asyncio.create_task(arun(flow(), execute))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert made_good == ["undo"]


def test_commands_show_no_values() -> None:
    assert repr(Query("c", "insert", {"password": "x"})) == "Query(c.insert)"
    assert Emit("event", key="k").event.details == {"key": "k"}


def test_a_call_is_made_by_its_plain_function_on_a_thread_and_by_its_twin_in_a_task() -> None:
    async def twin(word: str) -> str:
        await asyncio.sleep(0)
        return f"twin {word}"

    def flow() -> Flow[str]:
        found: str = yield from call(lambda word: f"plain {word}", twin, "one")
        return found

    assert carry_out(flow()) == "plain one"
    assert asyncio.run(acarry_out(flow())) == "twin one"


def test_one_function_serves_both_and_is_awaited_only_in_a_task() -> None:
    async def work() -> int:
        return 1

    def flow(function: Any) -> Flow[Any]:
        return (yield from invoke(function))

    assert carry_out(flow(lambda: 2)) == asyncio.run(acarry_out(flow(lambda: 2))) == 2
    assert asyncio.run(acarry_out(flow(work))) == 1
    coroutine = carry_out(flow(work))
    assert asyncio.iscoroutine(coroutine), "on a thread nobody can await it"
    coroutine.close()


def test_errors_of_a_call_are_thrown_into_the_flow() -> None:
    def fail() -> None:
        raise Boom

    def flow() -> Flow[str]:
        try:
            yield from invoke(fail)
        except Boom:
            return "made good"
        return "not raised"

    assert carry_out(flow()) == asyncio.run(acarry_out(flow())) == "made good"


def test_a_function_may_raise_stop_iteration() -> None:
    """Generators make a ``RuntimeError`` of it; the caller gets what the function raised."""
    made_good = []

    def fail() -> None:
        raise StopIteration(3)

    def flow() -> Flow[None]:
        try:
            yield from invoke(fail)
        finally:
            made_good.append((yield from invoke(lambda: "done")))

    with pytest.raises(StopIteration) as raised:
        carry_out(flow())
    assert raised.value.value == 3
    assert made_good == ["done"]


def test_another_runtime_error_stays_one() -> None:
    def fail() -> None:
        raise RuntimeError("own") from StopIteration(3)

    with pytest.raises(RuntimeError, match="own"):
        carry_out(invoke(fail))


async def test_a_function_that_is_called_may_ignore_its_cancellation() -> None:
    began = asyncio.Event()

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "not cancelled"

    task = asyncio.ensure_future(acarry_out(invoke(stubborn)))
    await began.wait()
    task.cancel()
    assert await task == "done all the same"


def test_a_last_call_is_finished_by_a_cancelled_task() -> None:
    done: list[str] = []

    async def end() -> None:
        await asyncio.sleep(0.01)
        done.append("ended")

    def flow(way: Any) -> Flow[None]:
        yield from way(lambda: None, end)

    async def cancelled(way: Any) -> None:
        task = asyncio.ensure_future(acarry_out(flow(way)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled(call))
    assert not done
    asyncio.run(cancelled(last_call))
    assert done == ["ended"]


@pytest.mark.parametrize("command", [Query("c", "find_one"), Emit("x")])
def test_commands_for_a_store_are_refused_without_one(command: Command[Any]) -> None:
    with pytest.raises(TypeError, match="not a command that this executor knows"):
        carry_out(perform(command))
    with pytest.raises(TypeError, match="not a command that this executor knows"):
        asyncio.run(acarry_out(perform(command)))
