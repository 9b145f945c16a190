"""Any sequence of starts, saves, ends, crashes and operators' actions on one task, against a model of a few lines."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from goscope_django import checkpoints, runtime
from goscope_django.checkpoints import Task, checkpointed, entry
from goscope_django.exceptions import TaskAlreadyRunning, TaskCancelled, TaskExhausted, TaskLost
from tests.support.long import examples
from tests.support.tasks import collection, end_lease, head, own_store

ATTEMPTS = 3
ITEMS = 6


class Boom(Exception):
    pass


@dataclass
class Runner:
    """One entered block, and what it should know."""

    block: checkpointed
    task: Task
    loop: Any
    token: int
    handed_out: int | None = None
    done: int = 0


@dataclass
class Model:
    """The task as it should be stored."""

    exists: bool = False
    status: str = "none"
    holder: int | None = None
    lease_over: bool = False
    tries: int = 0
    attempt: int = 0
    cancel: bool = False
    data: Any = None
    done: int = 0
    saved: bool = False
    result: Any = None
    sequences: list[int] = field(default_factory=list)


class TaskMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(own_store("mongomock://"))
        self.model = Model()
        self.runners: dict[int, Runner] = {}
        self.count = 0
        self.highest_token = 0
        self.processed: set[int] = set()

    def teardown(self) -> None:
        for runner in self.runners.values():
            if runner.task._state.renewal is not None:
                runner.task._state.renewal.stop()
        runtime.adapter().wipe()
        entry._current.set(None)  # blocks that are left in another order than entered leave their traces
        self.stack.close()

    # What a start must come to

    def expected(self, restart: bool) -> str:
        model = self.model
        if model.holder is not None and not model.lease_over:
            return "running"
        if restart or not model.exists:
            return "started"
        if model.status in ("completed", "cancelled"):
            return model.status
        if model.cancel:
            return "cancelled"
        return "exhausted" if model.tries >= ATTEMPTS else "started"

    @rule(restart=st.sampled_from([False, False, False, True]))
    def start(self, restart: bool) -> None:
        model, expected = self.model, self.expected(restart)
        block = checkpointed("t", max_attempts=ATTEMPTS, keep=3, restart=restart, on_sigterm=False)
        try:
            task = block.__enter__()
        except TaskAlreadyRunning:
            assert expected == "running"
            return
        except TaskCancelled:
            assert expected == "cancelled"
            model.status, model.cancel, model.holder = "cancelled", True, None
            return
        except TaskExhausted:
            assert expected == "exhausted"
            return
        if task.completed:
            assert expected == "completed"
            assert task.result == model.result
            assert list(task.track(range(ITEMS))) == []
            return
        assert expected == "started"
        if restart or not model.exists:
            model.tries, model.attempt, model.data, model.done, model.saved = 0, 0, None, 0, False
        self.count += 1
        model.exists, model.status, model.holder, model.lease_over = True, "running", self.count, False
        model.tries, model.attempt, model.cancel = model.tries + 1, model.attempt + 1, False
        assert (task.data, task.resumed, task.attempt) == (model.data, model.saved, model.attempt)
        assert task.token > self.highest_token, "a fencing token that does not grow"
        self.highest_token = task.token
        loop = task.track(range(ITEMS), every=10**6)
        self.runners[self.count] = Runner(block, task, loop, task.token, done=model.done)

    def pick(self, data: st.DataObject) -> tuple[int, Runner]:
        number = data.draw(st.sampled_from(sorted(self.runners)))
        return number, self.runners[number]

    def holds(self, number: int) -> bool:
        return self.model.holder == number and not self.model.lease_over

    def stored(self, runner: Runner) -> None:
        self.model.data, self.model.done, self.model.saved = runner.task._state._data, runner.done, True

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), value=st.integers(0, 9), killed_between=st.booleans())
    def save(self, data: st.DataObject, value: int, killed_between: bool) -> None:
        number, runner = self.pick(data)
        if not self.holds(number):
            with pytest.raises(TaskLost):
                runner.task.save(value)
            return
        saved = runner.task.save(value)
        self.stored(runner)
        assert saved.cancelled == self.model.cancel
        if killed_between:
            collection("go_goscope_checkpoints").delete_one({"taskId": head("t")["_id"], "sequence": saved.sequence})
            self.killed(number)

    @precondition(lambda self: self.runners)
    @rule(data=st.data())
    def next_item(self, data: st.DataObject) -> None:
        _, runner = self.pick(data)
        if runner.task.lost or runner.task._state.cancel_requested:
            with pytest.raises((TaskLost, TaskCancelled, StopIteration)):
                next(runner.loop)
            return
        finished = runner.done + (runner.handed_out is not None)
        if finished >= ITEMS:
            return
        item = next(runner.loop)
        if runner.handed_out is not None:
            runner.done += 1
            self.processed.add(runner.handed_out)
        assert item == runner.done, "an item was skipped or repeated without a crash"
        runner.handed_out = item

    def over(self, number: int) -> None:
        self.runners.pop(number)
        if self.model.holder == number:
            self.model.holder = None

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "interrupt", "cancelled"]))
    def leave(self, data: st.DataObject, how: str) -> None:
        number, runner = self.pick(data)
        held = self.holds(number)
        error: BaseException | None = {
            "complete": None,
            "fail": Boom(),
            "interrupt": KeyboardInterrupt(),
            "cancelled": TaskCancelled("stop", task_id="t"),
        }[how]
        if error is None:
            runner.task.complete(number)
        dirty, consistent = runner.task._state.dirty, runner.task.consistent
        try:
            runner.block.__exit__(type(error) if error else None, error, None)
        except TaskLost:
            assert not held
            assert error is None, "the body's own error was hidden"
        else:
            assert held or error is not None
        if held:
            if dirty and (error is None or consistent):
                self.stored(runner)
            model = self.model
            model.status = {"complete": "completed", "fail": "failed", "interrupt": "interrupted"}.get(how, "cancelled")
            model.cancel = model.cancel or how == "cancelled"
            model.tries -= how == "interrupt"
            model.result = number if how == "complete" else None
        self.over(number)

    def killed(self, number: int) -> None:
        """The process is gone: nothing is written any more, and its lease ends."""
        runner = self.runners.pop(number)
        assert runner.task._state.renewal is not None
        runner.task._state.renewal.stop()
        runner.block._exit()
        end_lease("t")
        self.model.lease_over = True

    @precondition(lambda self: self.model.holder is not None and not self.model.lease_over)
    @rule(dead=st.booleans())
    def lease_ends(self, dead: bool) -> None:
        assert self.model.holder is not None
        if dead:
            self.killed(self.model.holder)
        else:
            end_lease("t")
            self.model.lease_over = True

    # Operators

    @rule()
    def cancel(self) -> None:
        model = self.model
        possible = model.exists and model.status not in ("completed", "cancelled")
        assert checkpoints.cancel_task("t") is possible
        if possible:
            model.cancel = True
            if model.holder is None or model.lease_over:
                model.status, model.holder = "cancelled", None

    @rule(discard=st.booleans())
    def reset(self, discard: bool) -> None:
        model = self.model
        possible = model.exists and (model.holder is None or model.lease_over)
        assert checkpoints.reset_task("t", discard=discard) is possible
        if possible:
            model.status, model.tries, model.cancel, model.holder = "interrupted", 0, False, None
            if discard:
                model.data, model.done, model.saved, model.result = None, 0, False, None

    @rule(force=st.booleans())
    def delete(self, force: bool) -> None:
        model = self.model
        possible = model.exists and (force or model.holder is None or model.lease_over)
        assert checkpoints.delete_task("t", force=force) is possible
        if possible:
            self.model = Model()

    # What always holds

    @invariant()
    def the_head_says_so(self) -> None:
        info, model = checkpoints.get_task("t"), self.model
        assert (info is not None) is model.exists
        if info is None:
            return
        assert (info.status, info.attempt, info.cancel_requested) == (model.status, model.attempt, model.cancel)
        assert info.stalled is (model.status == "running" and model.lease_over)
        assert info.exhausted is (model.tries >= ATTEMPTS and (info.stalled or model.status == "failed"))
        assert head("t")["tries"] == model.tries
        assert [one.task_id for one in checkpoints.stalled_tasks()] == (
            ["t"] if info.stalled and not model.cancel else []
        )

    @invariant()
    def the_history_never_goes_backwards(self) -> None:
        sequences = [one.sequence for one in runtime.adapter().checkpoint.list("t")]
        assert sequences == sorted(set(sequences))
        if self.model.exists and sequences:
            assert sequences[-1] <= head("t")["sequence"]


TestTask = TaskMachine.TestCase
TestTask.settings = settings(
    max_examples=examples(150), stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
