"""What resumable tasks promise, over {mongomock, real mongod} x {sync, async}."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from goscope_django import runtime
from goscope_django.checkpoints import Task, checkpointed, current_task
from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import (
    CheckpointTooLarge,
    InvalidType,
    InvalidValue,
    TaskAlreadyRunning,
    TaskCancelled,
    TaskExhausted,
    TaskLost,
)
from tests.support.tasks import Way, change, collection, end_lease, head, heard, history, own_store, way


@pytest.fixture(params=["mongomock", pytest.param("real", marks=pytest.mark.real)])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = request.getfixturevalue("mongo_url") if request.param == "real" else "mongomock://"
    with own_store(url):
        yield request.param


@pytest.fixture(params=["sync", "async"])
def by(store: str, request: pytest.FixtureRequest) -> Iterator[Way]:
    with way(request.param) as found:
        yield found


class Boom(Exception):
    pass


def fail(by: Way, task_id: str, **options: Any) -> None:
    with pytest.raises(Boom), by.task(task_id, **options):
        raise Boom


class TestState:
    def test_a_new_task_has_nothing_and_a_failed_one_goes_on_from_its_last_save(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            assert (task.data, task.state, task.resumed, task.attempt, task.sequence) == (None, None, False, 1, 0)
            saved = by.save(task, {"page": 3, "sum": Decimal("1.50")}, progress=30)
            assert (saved.sequence, saved.cancelled, task.sequence) == (1, False, 1)
            raise Boom
        with by.task("import") as task:
            assert (task.data, task.resumed, task.attempt, task.sequence) == (
                {"page": 3, "sum": Decimal("1.50")},
                True,
                2,
                1,
            )
            assert task.progress == 30
            assert by.save(task, None).sequence == 2

    def test_the_provider_and_so_node_sees_what_was_saved(self, by: Way) -> None:
        with by.task("import") as task:
            by.save(task, {"page": 3}, progress=30)
            found = runtime.adapter().checkpoint.load_latest("import")
        assert found is not None
        assert (found.task_id, found.sequence, found.data, found.progress) == ("import", 1, {"page": 3}, 30)
        assert abs(found.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
        assert runtime.adapter().checkpoint.load(found.id) == found

    def test_values_that_look_like_expressions_are_data(self, by: Way) -> None:
        strange = {"$set": {"a.b": "$x"}, "$gt": "$$NOW", "list": ["$y", {"$literal": 1}]}
        with pytest.raises(Boom), by.task("$task", owner="$owner", version="$v", metadata={"$m": "$n"}) as task:
            by.save(task, strange)
            raise Boom
        info = by.operate("get_task", "$task")
        assert (info.owner, info.version, info.metadata) == ("$owner", "$v", {"$m": "$n"})
        with by.task("$task", version="$v") as task:
            assert task.data == strange
            task.complete("$result")
        assert by.operate("task_result", "$task") == "$result"

    def test_a_state_saved_without_naming_it_is_what_task_data_is(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            task.data = {"n": 1}
            by.save(task)
            task.data = {"n": 2}
            raise Boom
        with by.task("import") as task:
            assert task.data == {"n": 1}

    def test_what_a_runner_killed_between_its_two_writes_saved_is_not_lost(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            by.save(task, "first")
            by.save(task, "second", progress=20)
            raise Boom
        collection("go_goscope_checkpoints").delete_one({"sequence": 2, "taskId": head("import")["_id"]})
        latest = runtime.adapter().checkpoint.load_latest("import")
        assert latest is not None
        assert latest.data == "first"
        with by.task("import") as task:
            assert (task.data, task.sequence) == ("second", 2)
            latest = runtime.adapter().checkpoint.load_latest("import")
            assert latest is not None
            assert (latest.data, latest.sequence, latest.progress) == ("second", 2, 20)

    def test_a_state_of_a_program_that_knows_no_heads_is_taken_up(self, by: Way) -> None:
        foreign = Checkpoint("node-7", "import", 7, datetime.now(UTC), 70, {"page": 7})
        runtime.adapter().checkpoint.save(foreign)
        with pytest.raises(Boom), by.task("import") as task:
            assert (task.data, task.sequence, task.resumed, task.progress) == ({"page": 7}, 7, True, 70)
            raise Boom
        with by.task("import") as task:
            assert task.data == {"page": 7}
            assert by.save(task, {"page": 8}).sequence == 8
        assert history("import") == [7, 8]

    def test_a_state_of_another_program_belongs_to_no_version_and_is_left_alone(self, by: Way) -> None:
        runtime.adapter().checkpoint.save(Checkpoint("node-7", "import", 7, datetime.now(UTC), 70, {"page": 7}))
        with by.task("import", version="1") as task:
            assert (task.data, task.resumed) == (None, False)
            assert by.save(task, 1).sequence == 8
        assert history("import") == [7, 8]

    def test_the_history_keeps_what_it_is_told_to(self, by: Way) -> None:
        with by.task("import", keep=3) as task:
            for number in range(25):
                by.save(task, number)
        assert history("import") == [23, 24, 25]
        with by.task("all", keep=None) as task:
            for number in range(12):
                by.save(task, number)
        assert len(history("all")) == 12

    def test_what_does_not_fit_is_refused_before_anything_is_written(self, by: Way) -> None:
        with pytest.raises(CheckpointTooLarge, match="bytes"), by.task("import") as task:
            by.save(task, "small")
            by.save(task, "x" * (16 * 1024 * 1024))
        assert history("import") == [1]
        with by.task("import") as task:
            assert task.data == "small"
            assert by.save(task, "x" * (6 * 1024 * 1024)).sequence > 1

    def test_a_result_that_does_not_fit_beside_the_state_is_refused(self, by: Way) -> None:
        with pytest.raises(CheckpointTooLarge), by.task("import") as task:
            by.save(task, "x" * (9 * 1024 * 1024))
            task.complete("y" * (9 * 1024 * 1024))
        assert by.operate("get_task", "import").status == "failed"

    @pytest.mark.parametrize("bad", [True, "5", float("nan"), -1, 101])
    def test_a_progress_that_is_none_is_refused_and_nothing_saved(self, by: Way, bad: Any) -> None:
        with by.task("import") as task:
            with pytest.raises((InvalidType, InvalidValue), match="progress"):
                by.save(task, "new", progress=bad)
            assert task.data is None
            assert history("import") == []


class TestLease:
    def test_a_second_runner_is_refused_until_the_first_lets_go(self, by: Way) -> None:
        with by.task("import", owner="first") as task:
            with pytest.raises(TaskAlreadyRunning, match="'first'") as caught, by.task("import"):
                pytest.fail("two runners")
            assert caught.value.task_id == "import"
            assert 0 < caught.value.retry_after <= 30
            assert by.save(task, 1).sequence == 1
        assert by.operate("get_task", "import").status == "completed"

    def test_nothing_is_renewed_once_the_task_is_let_go(self, by: Way) -> None:
        with by.task("import") as completed:
            assert completed._state.renewal is not None
            assert completed._state.renewal.active
        with pytest.raises(Boom), by.task("import", restart=True) as failed:
            raise Boom
        for task in (completed, failed):
            assert task._state.renewal is not None
            assert not task._state.renewal.active
            assert not task.lost

    def test_a_save_and_a_report_renew_the_lease(self, by: Way) -> None:
        def left() -> float:
            until = by.operate("get_task", "import").lease_until
            seconds: float = (until - datetime.now(UTC)).total_seconds()
            return seconds

        with by.task("import", lease=1000) as task:
            for renew in (by.save, by.report):
                change("import", leaseUntil=datetime.now(UTC) + timedelta(seconds=100))
                task._runner._reported -= 60
                renew(task, progress=5)
                assert left() > 900

    def test_when_a_lease_has_ended_the_next_runner_goes_on_and_the_first_can_not_save(self, by: Way) -> None:
        with heard() as told:
            with pytest.raises(TaskLost), by.task("import") as zombie:
                by.save(zombie, "mine")
                end_lease("import")
                with pytest.raises(Boom), by.task("import") as heir:
                    assert (heir.data, heir.attempt) == ("mine", 2)
                    assert heir.token > zombie.token
                    by.save(heir, "theirs")
                    with pytest.raises(TaskLost):
                        by.save(zombie, "stale")
                    assert zombie.lost
                    raise Boom
            assert [name for name, _ in told].count("task_lost") == 1
        with by.task("import") as task:
            assert task.data == "theirs"
        assert history("import") == [1, 2]

    def test_a_body_that_does_not_notice_its_loss_does_not_complete_the_task(self, by: Way) -> None:
        with pytest.raises(TaskLost), by.task("import"):
            end_lease("import")
        assert by.operate("get_task", "import").status == "running"
        assert by.operate("get_task", "import").stalled

    def test_a_loop_stops_as_soon_as_the_lease_is_known_to_be_lost(self, by: Way) -> None:
        seen = []
        with pytest.raises(TaskLost), by.task("import") as task:
            for item in by.track(task, range(10), every=100):
                seen.append(item)
                if item == 3:
                    assert task._state.renewal is not None
                    task._state.renewal.lose()
        assert seen == [0, 1, 2, 3]

    def test_an_error_of_the_body_is_not_hidden_by_the_loss(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import"):
            end_lease("import")
            raise Boom

    def test_a_task_deleted_under_its_runner_can_not_be_saved(self, by: Way) -> None:
        with pytest.raises(TaskLost), by.task("import") as task:
            assert not by.operate("delete_task", "import")
            assert by.operate("delete_task", "import", force=True)
            by.save(task, 1)
        assert by.operate("get_task", "import") is None
        assert history("import") == []


class TestCompletion:
    def test_a_completed_task_is_not_run_again(self, by: Way) -> None:
        with by.task("import") as task:
            assert list(by.track(task, range(5))) == [0, 1, 2, 3, 4]
            task.complete({"rows": 5})
        with by.task("import") as task:
            assert task.completed
            assert task.result == {"rows": 5}
            assert list(by.track(task, range(5))) == []
            with pytest.raises(TaskLost, match="restart"):
                by.save(task, 1)
        info = by.operate("get_task", "import")
        assert (info.status, info.progress, info.attempt, info.done, info.total) == ("completed", 100, 1, 5, 5)
        assert info.finished_at is not None

    def test_restart_begins_anew(self, by: Way) -> None:
        with by.task("import") as task:
            assert list(by.track(task, range(3))) == [0, 1, 2]
            by.save(task, "old")
        with by.task("import", restart=True) as task:
            assert (task.completed, task.data, task.resumed, task.attempt) == (False, None, False, 1)
            assert runtime.adapter().checkpoint.load_latest("import") is None
            assert list(by.track(task, range(3))) == [0, 1, 2]

    def test_a_restarted_task_that_dies_at_once_does_not_find_the_state_from_before(self, by: Way) -> None:
        with by.task("import") as task:
            by.save(task, "old")
        fail(by, "import", restart=True)
        with by.task("import") as task:
            assert (task.data, task.resumed) == (None, False)

    def test_another_version_begins_anew(self, by: Way) -> None:
        with by.task("import", version="1") as task:
            by.save(task, "one")
        with by.task("import", version="1") as task:
            assert task.completed
        with by.task("import", version="2") as task:
            assert (task.completed, task.data) == (False, None)

    def test_when_its_retention_is_over_a_completed_task_runs_anew_whether_it_was_removed_or_not(self, by: Way) -> None:
        for removed in (False, True):
            with by.task("import", retention=60) as task:
                by.save(task, "old")
                assert head("import")["expiresAt"] is None
            assert head("import")["expiresAt"] is not None
            change("import", expiresAt=datetime.now(UTC) - timedelta(seconds=1))
            assert removed or by.operate("list_tasks") == []
            if removed:
                collection("go_goscope_tasks").delete_one({"_id": runtime.adapter().key_prefix + "import"})
            with pytest.raises(Boom), by.task("import") as task:
                assert (task.completed, task.data, task.resumed) == (False, None, False)
                raise Boom
            assert history("import") == []
            assert by.operate("delete_task", "import")

    def test_a_failed_or_interrupted_task_never_expires(self, by: Way) -> None:
        fail(by, "import", retention=1)
        assert head("import")["expiresAt"] is None


class TestAttempts:
    def test_a_task_that_always_fails_is_given_up_until_it_is_reset(self, by: Way) -> None:
        for _ in range(3):
            fail(by, "import", max_attempts=3)
        with pytest.raises(TaskExhausted, match="3 times"), by.task("import", max_attempts=3):
            pytest.fail("it ran")
        info = by.operate("get_task", "import")
        assert (info.exhausted, info.status, info.error) == (True, "failed", "Boom: ")
        assert by.operate("reset_task", "import")
        assert not by.operate("get_task", "import").exhausted
        with by.task("import", max_attempts=3) as task:
            assert task.attempt == 4

    def test_dying_counts_as_failing(self, by: Way) -> None:
        for _ in range(2):
            with pytest.raises(TaskLost), by.task("import", max_attempts=2):
                end_lease("import")
        with pytest.raises(TaskExhausted), by.task("import", max_attempts=2):
            pytest.fail("it ran")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_being_interrupted_does_not_count_and_keeps_what_was_done(
        self, by: Way, error: type[BaseException]
    ) -> None:
        seen = []
        for stop in (2, 4, 6):
            with pytest.raises(error), by.task("import", max_attempts=1) as task:
                for item in by.track(task, range(8), every=100):
                    if item == stop:
                        raise error
                    seen.append(item)
            assert by.operate("get_task", "import").status == "interrupted"
        with by.task("import", max_attempts=1) as task:
            seen += by.track(task, range(8))
        assert seen == list(range(8))


class TestLoops:
    def test_a_loop_goes_on_behind_what_was_done(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            for item in by.track(task, range(10), every=100):
                if item == 4:
                    raise Boom
        with by.task("import") as task:
            assert list(by.track(task, range(10))) == [4, 5, 6, 7, 8, 9]

    def test_after_a_crash_only_what_was_not_saved_is_repeated(self, by: Way) -> None:
        with pytest.raises(TaskLost), by.task("import") as task:
            for item in by.track(task, range(20), every=3):
                if item == 10:
                    end_lease("import")
                    raise TaskLost("the process is gone", task_id="import")
        with by.task("import") as task:
            first, *_ = by.track(task, range(20))
            assert first == 9

    def test_progress_rate_and_time_remaining(self, by: Way) -> None:
        with by.task("import") as task:
            for item in by.track(task, range(200), every=1):
                if item == 50:
                    assert (task.done, task.total, task.progress) == (50, 200, 25)
                    assert task.rate is not None
                    assert task.estimated_time_remaining is not None
                    assert task.estimated_time_remaining == pytest.approx(150 / task.rate)
                    info = by.operate("get_task", "import")
                    assert (info.status, info.done, info.total, info.progress) == ("running", 50, 200, 25)
                    assert info.estimated_time_remaining == pytest.approx(150 / info.rate)

    def test_an_iterable_of_unknown_length_has_no_time_remaining(self, by: Way) -> None:
        with by.task("import") as task:
            for item in by.track(task, iter("abc"), every=1):
                assert (task.total, task.progress, task.estimated_time_remaining) == (None, 0, None)
                assert item in "abc"

    def test_two_loops_each_need_a_name_and_each_remember_their_place(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            assert list(by.track(task, "ab", name="first")) == ["a", "b"]
            with pytest.raises(InvalidValue, match="name"):
                list(by.track(task, "ab", name="first"))
            for item in by.track(task, "cd", name="second"):
                if item == "d":
                    raise Boom
        with by.task("import") as task:
            assert list(by.track(task, "ab", name="first")) == []
            assert list(by.track(task, "cd", name="second")) == ["d"]

    def test_the_data_of_the_body_is_saved_with_the_place(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            total = task.data or 0
            for item in by.track(task, range(10), every=1):
                if item == 6:
                    raise Boom
                total += item
                task.data = total
        with by.task("import") as task:
            total = task.data
            for item in by.track(task, range(10), every=1):
                total += item
                task.data = total
            assert total == sum(range(10))

    def test_data_changed_in_the_middle_of_an_item_is_not_saved_with_the_place_before_it(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            task.data = {"sum": 0}
            for item in by.track(task, range(10), every=4):
                task.data["sum"] += item
                if item == 6:
                    raise Boom
        with by.task("import") as task:
            assert task.data == {"sum": 0 + 1 + 2 + 3}
            for item in by.track(task, range(10)):
                task.data["sum"] += item
            assert task.data == {"sum": sum(range(10))}

    def test_items_behind_a_key(self, by: Way) -> None:
        rows = [{"id": number} for number in (1, 3, 4, 9)]

        def behind(last: int | None) -> list[dict[str, int]]:
            return [row for row in rows if last is None or row["id"] > last]

        with pytest.raises(Boom), by.task("import") as task:
            for row in by.track(task, behind, key=lambda row: row["id"], every=1):
                if row["id"] == 4:
                    raise Boom
        rows.insert(0, {"id": 0})  # counting would now repeat or skip
        with by.task("import") as task:
            assert [row["id"] for row in by.track(task, behind, key=lambda row: row["id"])] == [4, 9]

    def test_a_set_is_refused(self, by: Way) -> None:
        with by.task("import") as task, pytest.raises(InvalidType, match="sorted"):
            next(iter(by.track(task, {1, 2})))

    def test_leaving_a_loop_early_leaves_the_item_undone(self, by: Way) -> None:
        with pytest.raises(Boom), by.task("import") as task:
            for item in by.track(task, range(5)):
                if item == 2:
                    break
            raise Boom
        with by.task("import") as task:
            assert list(by.track(task, range(5))) == [2, 3, 4]


class TestCancelling:
    def test_a_runner_learns_with_its_next_save_that_it_should_stop(self, by: Way) -> None:
        seen = []
        with pytest.raises(TaskCancelled), by.task("import") as task:
            for item in by.track(task, range(10), every=1):
                seen.append(item)
                if item == 3:
                    assert by.operate("cancel_task", "import")
        assert seen == [0, 1, 2, 3]
        assert by.operate("get_task", "import").status == "cancelled"
        with pytest.raises(TaskCancelled), by.task("import"):
            pytest.fail("it ran")
        assert by.operate("reset_task", "import")
        with by.task("import") as task:
            assert list(by.track(task, range(10))) == [4, 5, 6, 7, 8, 9]

    def test_a_save_says_so_and_a_body_that_leaves_then_is_not_completed(self, by: Way) -> None:
        with by.task("import") as task:
            assert not by.save(task, 1).cancelled
            by.operate("cancel_task", "import")
            assert by.save(task, 2).cancelled
            assert task.cancelled
        assert by.operate("get_task", "import").status == "cancelled"

    def test_a_task_that_nobody_runs_is_cancelled_at_once(self, by: Way, store: str) -> None:
        fail(by, "import")
        assert by.operate("cancel_task", "import")
        info = by.operate("get_task", "import")
        assert (info.status, info.cancel_requested) == ("cancelled", True)
        if store == "real":  # mongomock can't add to a date
            assert head("import")["expiresAt"].replace(tzinfo=UTC) > datetime.now(UTC) + timedelta(days=6)
        assert not by.operate("cancel_task", "import")
        assert not by.operate("cancel_task", "unknown")

    def test_a_worker_that_died_before_it_learned_stays_cancelled(self, by: Way) -> None:
        with pytest.raises(TaskLost), by.task("import"):
            by.operate("cancel_task", "import")
            end_lease("import")
        assert by.operate("stalled_tasks") == []
        with pytest.raises(TaskCancelled), by.task("import"):
            pytest.fail("it ran")
        assert by.operate("get_task", "import").status == "cancelled"


class TestOperators:
    def test_tasks_are_listed_in_order_by_pattern_and_page(self, by: Way) -> None:
        for name in ("b/2", "a/1", "b/1", "c"):
            fail(by, name)
        assert [one.task_id for one in by.operate("list_tasks")] == ["a/1", "b/1", "b/2", "c"]
        assert [one.task_id for one in by.operate("list_tasks", r"b/.*")] == ["b/1", "b/2"]
        assert [one.task_id for one in by.operate("list_tasks", limit=2)] == ["a/1", "b/1"]
        assert [one.task_id for one in by.operate("list_tasks", limit=2, after="b/1")] == ["b/2", "c"]
        assert [one.task_id for one in by.operate("list_tasks", "b/.*", 1, "b/1")] == ["b/2"]

    def test_only_what_was_looked_at_is_deleted(self, by: Way) -> None:
        fail(by, "import")
        looked_at = by.operate("get_task", "import")
        fail(by, "import")
        assert not by.operate("delete_task", "import", expected_token=looked_at.token)
        assert by.operate("delete_task", "import", expected_token=by.operate("get_task", "import").token)
        assert not by.operate("delete_task", "import")

    def test_the_history_of_another_program_can_be_deleted_too(self, by: Way) -> None:
        runtime.adapter().checkpoint.save(Checkpoint("x", "import", 1, datetime.now(UTC)))
        assert not by.operate("delete_task", "import", expected_token=1)
        assert by.operate("delete_task", "import")
        assert history("import") == []

    def test_stalled_tasks_are_dispatched_once(self, by: Way) -> None:
        fail(by, "failed")
        for name in ("a", "b"):
            with pytest.raises(TaskLost), by.task(name, metadata={"queue": name}):
                end_lease(name)
        with by.task("running"):
            assert [one.task_id for one in by.operate("stalled_tasks")] == ["a", "b"]
            dispatched: list[tuple[str, Any]] = []
            found = by.operate("resume_stalled", lambda one: dispatched.append((one.task_id, one.metadata["queue"])))
            assert dispatched == [("a", "a"), ("b", "b")]
            assert [one.task_id for one in found] == ["a", "b"]
            assert by.operate("resume_stalled", dispatched.append) == []
        change("a", dispatchedAt=datetime.now(UTC) - timedelta(hours=1))
        assert [one.task_id for one in by.operate("resume_stalled", dispatched.append)] == ["a"]
        with by.task("b") as task:
            assert task.attempt == 2

    def test_a_dispatch_that_fails_can_be_tried_at_once_and_does_not_stop_the_others(self, by: Way) -> None:
        for name in ("a", "b"):
            with pytest.raises(TaskLost), by.task(name):
                end_lease(name)

        def broken(info: Any) -> None:
            if info.task_id == "a":
                raise Boom

        assert [one.task_id for one in by.operate("resume_stalled", broken)] == ["b"]
        assert [one.task_id for one in by.operate("resume_stalled", lambda info: None)] == ["a"]

    def test_an_exhausted_task_is_not_dispatched(self, by: Way) -> None:
        with pytest.raises(TaskLost), by.task("import", max_attempts=1):
            end_lease("import")
        assert by.operate("get_task", "import").exhausted
        assert by.operate("resume_stalled", lambda info: None) == []

    def test_reset_leaves_a_running_task_alone_and_can_throw_the_state_away(self, by: Way) -> None:
        with by.task("import") as task:
            by.save(task, 1)
            assert not by.operate("reset_task", "import")
        assert by.operate("reset_task", "import", discard=True)
        assert history("import") == []
        with by.task("import") as task:
            assert (task.data, task.completed) == (None, False)

    def test_the_histories_of_tasks_that_are_gone_are_cleaned_up_and_no_others(self, by: Way) -> None:
        runtime.adapter().checkpoint.save(Checkpoint("x", "foreign", 1, datetime.now(UTC)))
        for name in ("gone", "there"):
            with by.task(name) as task:
                by.save(task, 1)
                by.save(task, 2)
        collection("go_goscope_tasks").delete_one({"_id": runtime.adapter().key_prefix + "gone"})
        assert by.operate("cleanup_tasks") == 2
        assert (history("gone"), history("there"), history("foreign")) == ([], [1, 2], [1])


class TestSignals:
    def test_every_transition_is_told(self, by: Way) -> None:
        with heard() as told:
            with pytest.raises(Boom) as caught, by.task("import") as task:
                by.save(task, 1, progress=10)
                raise Boom
            with by.task("import"):
                pass
        assert told == [
            ("task_started", {"task_id": "import", "attempt": 1}),
            ("checkpoint_saved", {"task_id": "import", "sequence": 1, "progress": 10}),
            ("task_failed", {"task_id": "import", "attempt": 1, "error": caught.value}),
            ("task_resumed", {"task_id": "import", "attempt": 2, "sequence": 1}),
            ("task_completed", {"task_id": "import", "attempt": 2}),
        ]


class TestReporting:
    def test_progress_is_written_at_most_every_five_seconds(self, by: Way) -> None:
        with by.task("import") as task:
            by.report(task, progress=10)
            assert head("import")["progress"] == 0
            assert task.progress == 10
            task._runner._reported -= 6
            by.report(task, done=3, total=4)
            assert (head("import")["progress"], head("import")["done"], head("import")["sequence"]) == (75, 3, 0)
            by.report(task, progress=80)
            assert head("import")["progress"] == 75


def test_a_task_that_runs_is_known_to_its_functions(store: str) -> None:
    assert current_task() is None
    with checkpointed("outer") as outer:
        with checkpointed("inner") as inner:
            assert current_task() is inner
        assert current_task() is outer
    assert current_task() is None


def test_a_block_in_use_is_not_entered_twice_and_can_be_used_again(store: str) -> None:
    block = checkpointed("import", restart=True)
    with block, pytest.raises(Exception, match="in use"), block:
        pass
    with block as task:
        assert isinstance(task, Task)
