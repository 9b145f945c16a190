"""What a task sends to the server, and what happens when the server does not answer."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from goscope_django import runtime
from goscope_django.checkpoints import checkpointed, get_task, list_tasks, task_result
from goscope_django.checkpoints import pruning as task_pruning
from goscope_django.contracts import Checkpoint
from goscope_django.core.flow import Command, Query
from goscope_django.exceptions import OutcomeUnknown, StoreUnavailable, TaskLost
from goscope_django.mongodb.driver.execute import SyncExecutor
from tests.support.commands import Recorder, explainable, stages
from tests.support.tasks import Way, end_lease, head, heard, history, own_store, way

pytestmark = pytest.mark.real


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Recorder]:
    recorder = Recorder()
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        recorder.clear()
        yield recorder


@pytest.fixture(params=["sync", "async"])
def by(sent: Recorder, request: pytest.FixtureRequest) -> Iterator[Way]:
    with way(request.param) as found:
        yield found


def test_a_task_costs_two_commands_to_enter_two_a_save_and_one_to_leave(by: Way, sent: Recorder) -> None:
    with by.task("warm"):
        pass
    sent.clear()
    with by.task("import") as task:
        assert sent.names == ["findAndModify", "find"]
        sent.clear()
        by.save(task, {"n": 1}, progress=1)
        assert sent.names == ["update", "insert"]
        sent.clear()
        for number in range(40):
            by.save(task, number)
        assert sent.names == ["update", "insert"] * 40
        sent.clear()
    assert sent.names == ["update", "delete"]
    assert len(history("import")) == 10


def test_the_history_is_pruned_behind_the_saves(by: Way, sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_pruning, "DELAY", 0.5)
    with by.task("import") as task:
        for number in range(25):
            by.save(task, number)
        assert sent.names.count("insert") == 25
        by.wait(lambda: len(history("import")) == 10)
        sent.clear()
        for number in range(9):
            by.save(task, number)
        by.idle(0.7)
        assert "delete" not in sent.names, "nine are not worth a command"


def test_a_task_that_is_completed_or_held_costs_one(by: Way, sent: Recorder) -> None:
    with by.task("import"):
        sent.clear()
        with pytest.raises(Exception, match="runs it"), by.task("import"):
            pass
        assert sent.names == ["findAndModify"]
    sent.clear()
    with by.task("import") as task:
        assert list(by.track(task, range(3))) == []
    assert sent.names == ["findAndModify"]


def test_the_last_save_goes_along_with_the_end(by: Way, sent: Recorder) -> None:
    with pytest.raises(KeyboardInterrupt), by.task("import") as task:
        for item in by.track(task, range(10), every=100):
            sent.clear()
            if item == 5:
                raise KeyboardInterrupt
    assert sent.names == ["update", "insert", "delete"]
    assert history("import") == [1]


def test_reading_costs_one_command_and_uses_an_index(sent: Recorder) -> None:
    with checkpointed("import") as task:
        task.save({"n": 1})
    for read in (
        lambda: runtime.adapter().checkpoint.load_latest("import"),
        lambda: get_task("import"),
        lambda: list_tasks(limit=5),
        lambda: task_result("import"),
    ):
        sent.clear()
        read()
        assert len(sent.names) == 1
        command = explainable(sent.commands[0])
        plan = runtime.connection().sync().database.command("explain", command, verbosity="queryPlanner")
        assert "COLLSCAN" not in stages(plan)


def test_an_operators_wish_costs_one_command_more_once(by: Way, sent: Recorder) -> None:
    with by.task("import") as task:
        by.operate("cancel_task", "import")
        sent.clear()
        assert by.save(task, 1).cancelled
        assert sent.names == ["update", "update", "insert"]
        sent.clear()
        assert by.save(task, 2).cancelled
        assert sent.names == ["update", "insert"]


def test_writes_wait_for_the_majority(by: Way, sent: Recorder) -> None:
    with by.task("import") as task:
        by.save(task, 1)
    written = [one for one in sent.commands if next(iter(one)) in ("findAndModify", "update", "insert")]
    assert len(written) == 4
    assert all(one["writeConcern"]["w"] == "majority" for one in written)


class Trouble:
    """Raises ``error`` for queries that ``when`` holds for, before or after they are carried out; so often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan: list[tuple[str, str, Exception, bool]] = []
        original = SyncExecutor.__call__

        def call(executor: SyncExecutor, command: Command[Any]) -> Any:
            if isinstance(command, Query) and self.plan:
                collection, method, error, applied = self.plan[0]
                if (command.collection, command.method) == (collection, method):
                    self.plan.pop(0)
                    if applied:
                        original(executor, command)
                    raise error
            return original(executor, command)

        monkeypatch.setattr(SyncExecutor, "__call__", call)

    def comes(self, collection: str, method: str, error: Exception, *, applied: bool) -> None:
        self.plan.append((f"go_goscope_{collection}", method, error, applied))


@pytest.fixture
def trouble(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    return Trouble(monkeypatch)


class TestUnknownOutcomes:
    """The connection broke: the command may or may not have been carried out."""

    @pytest.mark.parametrize("applied", [False, True])
    def test_a_start_is_sent_again_and_counts_once(self, trouble: Trouble, applied: bool) -> None:
        trouble.comes("tasks", "find_one_and_update", AutoReconnect("gone"), applied=applied)
        with checkpointed("import") as task:
            assert task.attempt == 1
            assert head("import")["tries"] == 1
            task.save(1)

    def test_a_start_that_stays_unknown_is_given_back(self, trouble: Trouble) -> None:
        for _ in range(2):
            trouble.comes("tasks", "find_one_and_update", AutoReconnect("gone"), applied=True)
        with pytest.raises(OutcomeUnknown, match="lease"), checkpointed("import"):
            pytest.fail("it ran")
        with checkpointed("import") as task:
            assert task.attempt == 2
            assert head("import")["tries"] == 1

    @pytest.mark.parametrize("applied", [False, True])
    @pytest.mark.parametrize("where", [("tasks", "update_one"), ("checkpoints", "insert_one")])
    def test_a_save_is_made_once(self, trouble: Trouble, applied: bool, where: tuple[str, str]) -> None:
        with checkpointed("import") as task:
            trouble.comes(*where, AutoReconnect("gone"), applied=applied)
            assert task.save("state").sequence == 1
            assert history("import") == [1]
            assert head("import")["data"] == "state"

    def test_a_save_that_arrives_after_it_was_looked_for_is_recognised(
        self, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call, confirmations = SyncExecutor.__call__, []

        def too_early(executor: SyncExecutor, command: Command[Any]) -> Any:
            if isinstance(command, Query) and command.method == "confirm":
                confirmations.append(command)
                if len(confirmations) == 1:
                    return None
            return call(executor, command)

        with checkpointed("import") as task:
            monkeypatch.setattr(SyncExecutor, "__call__", too_early)
            trouble.comes("checkpoints", "insert_one", AutoReconnect("gone"), applied=True)
            assert task.save("state").sequence == 1
            assert len(confirmations) == 2
        assert history("import") == [1]

    @pytest.mark.parametrize("applied", [False, True])
    def test_an_end_is_found_out(self, trouble: Trouble, applied: bool) -> None:
        with heard() as told, checkpointed("import"):
            trouble.comes("tasks", "update_one", AutoReconnect("gone"), applied=applied)
        assert [name for name, _ in told] == ["task_started", "task_completed"]
        found = get_task("import")
        assert found is not None
        assert found.status == "completed"

    def test_a_lease_that_ended_is_not_taken_for_an_end_that_was_written(self, trouble: Trouble) -> None:
        with pytest.raises(TaskLost), checkpointed("import"):
            end_lease("import")
            trouble.comes("tasks", "update_one", AutoReconnect("gone"), applied=False)


class TestAway:
    """No server was reached: nothing was changed."""

    def test_starting_and_saving_raise(self, trouble: Trouble) -> None:
        away = ServerSelectionTimeoutError("nobody there")
        trouble.comes("tasks", "find_one_and_update", away, applied=False)
        with pytest.raises(StoreUnavailable), checkpointed("import"):
            pytest.fail("it ran")
        with checkpointed("import") as task:
            trouble.comes("tasks", "update_one", away, applied=False)
            with pytest.raises(StoreUnavailable):
                task.save(1)
            assert task.save(2).sequence == 2

    def test_the_error_of_the_body_is_the_one_that_is_raised(self, trouble: Trouble) -> None:
        with pytest.raises(ZeroDivisionError), checkpointed("import"):
            trouble.comes("tasks", "update_one", ServerSelectionTimeoutError("nobody there"), applied=False)
            raise ZeroDivisionError

    def test_a_completion_that_could_not_be_written_is_an_error(self, trouble: Trouble) -> None:
        with pytest.raises(StoreUnavailable), checkpointed("import"):
            trouble.comes("tasks", "update_one", ServerSelectionTimeoutError("nobody there"), applied=False)

    def test_a_pruning_that_fails_fails_nothing(self, trouble: Trouble) -> None:
        with checkpointed("import", keep=1) as task:
            for number in range(9):
                task.save(number)
            trouble.comes("checkpoints", "delete_many", ServerSelectionTimeoutError("nobody there"), applied=False)
            assert task.save(9).sequence == 10
        assert not trouble.plan
        assert len(history("import")) == 10

    def test_a_start_that_can_not_read_the_history_gives_the_task_back(self, trouble: Trouble) -> None:
        trouble.comes("checkpoints", "point", ServerSelectionTimeoutError("nobody there"), applied=False)
        # The head was written before, so "nothing was changed" would not be true.
        with pytest.raises(OutcomeUnknown), checkpointed("import"):
            pytest.fail("it ran")
        found = get_task("import")
        assert found is not None
        assert (found.status, head("import")["tries"]) == ("interrupted", 0)


def test_a_foreign_writer_that_took_the_next_sequence_is_not_overwritten(sent: Recorder) -> None:
    with checkpointed("import") as task:
        foreign = Checkpoint("node", "import", 1, datetime.now(UTC), data="foreign")
        runtime.adapter().checkpoint.save(foreign)
        with pytest.raises(Exception, match="exists"):
            task.save("mine")
        assert runtime.adapter().checkpoint.load("node") == Checkpoint(
            "node", "import", 1, runtime.adapter().checkpoint.list("import")[0].timestamp, data="foreign"
        )
        assert task.save("mine").sequence == 2
