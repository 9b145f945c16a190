"""A task whose lease ends on the way: nothing runs on it, and the error says what is known of what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from goscope_django import runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.contracts import Checkpoint
from goscope_django.core.flow import Command, Emit, Query, run
from goscope_django.exceptions import CheckpointConflict, TaskLost
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS
from goscope_django.mongodb.checkpoints.tasks import TASKS, TaskFlows
from goscope_django.mongodb.checkpoints.values import Ending, Run, Snapshot
from tests.support.locks import settings_for


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with settings_for("mongomock://"):
        runtime.adapter().ensure_indexes()
        heads().delete_many({})
        yield


def heads() -> Any:
    return runtime.adapter().store.executor().collection(TASKS)


def late(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Each look at the clock is a minute after the one before."""
    moments = iter(range(1_000_000, 2_000_000, 60))
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: float(next(moments))))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_body_does_not_begin_under_a_lease_that_has_ended(
    monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    ran: list[int] = []

    async def enter() -> None:
        if asynchronous:
            async with checkpointed("import", lease=30) as task:
                ran.append(task.attempt)
        else:
            with checkpointed("import", lease=30) as task:
                ran.append(task.attempt)

    with monkeypatch.context() as patch:
        late(patch, "goscope_django.mongodb.checkpoints.tasks")
        with pytest.raises(TaskLost, match="Nothing was run"):
            await enter()
    assert ran == []
    await enter()
    assert len(ran) == 1, "it was given back, so the next one need not wait"


def saved_late(first_arrives: bool, then: Callable[[], object]) -> str:
    """The text of the error of a save whose first answer was lost and whose second sending finds the lease over."""
    adapter = runtime.adapter()
    executor: Any = adapter.store.executor()
    flows = TaskFlows(adapter.checkpoint.flows)
    one = Run("import", "c" * 32, "me", 30_000, 10, None, 10, None, False, {})
    started = adapter.store.run(flows.start, one)
    lost: list[int] = []

    def execute(command: Command[Any]) -> Any:
        if type(command) is Emit:
            return None
        if type(command) is Query and command.method == "update_one" and not lost:
            lost.append(1)
            if first_arrives:
                executor(command)
            then()
            raise AutoReconnect("the answer is lost")
        return executor(command)

    snapshot = Snapshot(
        sequence=started.sequence + 1,
        data={"row": 7},
        places=[],
        progress=50.0,
        done=None,
        total=None,
        rate=None,
        remaining=None,
        moment=datetime.now(UTC),
    )
    with pytest.raises(TaskLost) as raised:
        run(flows.save(executor.clock, one, started.token, snapshot, cancelled=False), execute)
    return str(raised.value)


def expire(**more: Any) -> None:
    ended = datetime.now(UTC) - timedelta(hours=1)
    assert heads().update_one({}, {"$set": {"leaseUntil": ended, **more}}).matched_count == 1


def test_what_was_saved_is_not_denied() -> None:
    assert "This state was saved" in saved_late(True, expire)


def test_what_was_not_saved_is_said_to_be_so() -> None:
    assert "Nothing was saved" in saved_late(False, expire)


@pytest.mark.parametrize("arrives", [True, False])
def test_what_nobody_can_know_any_more_is_said_to_be_unknown(arrives: bool) -> None:
    assert "may have been saved" in saved_late(arrives, lambda: expire(claim="another's"))


class TestAnotherRunnerBetweenTheTwoWritesOfASave:
    """The head has the state, the runner is frozen, the next one starts from it and adds it to the history."""

    def outrun(self, make: Callable[[TaskFlows, Any, Run, int], Any], between: Callable[[TaskFlows], object]) -> Any:
        """Run the flow that ``make`` gives; ``between`` comes before its state is added to the history."""
        adapter = runtime.adapter()
        executor: Any = adapter.store.executor()
        flows = TaskFlows(adapter.checkpoint.flows)
        one = Run("import", "c" * 32, "me", 30_000, 10, None, 10, None, False, {})
        started = adapter.store.run(flows.start, one)
        executor.collection(CHECKPOINTS).delete_many({})
        frozen: list[int] = []

        def execute(command: Command[Any]) -> Any:
            if type(command) is Emit:
                return None
            if type(command) is Query and command.method == "insert_one" and not frozen:
                frozen.append(1)
                between(flows)
            return executor(command)

        found = run(make(flows, executor.clock, one, started.token), execute)
        assert frozen
        return found

    def next_runner(self, flows: TaskFlows) -> None:
        expire()
        other = Run("import", "d" * 32, "other", 30_000, 10, None, 10, None, False, {})
        started = runtime.adapter().store.run(flows.start, other)
        assert started.outcome == "started" and started.data == {"row": 7}

    @staticmethod
    def snapshot() -> Snapshot:
        return Snapshot(1, {"row": 7}, [], 50.0, None, None, None, None, datetime.now(UTC))

    def saving(self, flows: TaskFlows, clock: Any, one: Run, token: int) -> Any:
        return flows.save(clock, one, token, self.snapshot(), cancelled=False)

    def finishing(self, flows: TaskFlows, clock: Any, one: Run, token: int) -> Any:
        return flows.finish(clock, one, token, Ending("failed", error="x"), self.snapshot(), save=True)

    def test_the_runner_is_told_that_it_is_lost_and_that_its_state_was_saved(self) -> None:
        with pytest.raises(TaskLost, match="This state was saved"):
            self.outrun(self.saving, self.next_runner)

    def test_one_that_has_ended_in_order_is_told_nothing(self) -> None:
        self.outrun(self.finishing, self.next_runner)

    def test_a_state_of_another_program_is_a_conflict_as_ever(self) -> None:
        def foreign(flows: TaskFlows) -> None:
            moment = datetime.now(UTC)
            runtime.adapter().checkpoint.save(Checkpoint("theirs", "import", 1, moment, 0.0, {"row": 1}))

        with pytest.raises(CheckpointConflict):
            self.outrun(self.saving, foreign)
