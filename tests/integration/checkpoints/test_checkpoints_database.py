"""Tasks over rows of a SQL database: resuming by key, and saves that do not outrun a commit."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import Group, User

from goscope_django.checkpoints import checkpointed, get_task
from goscope_django.exceptions import InvalidType, InvalidValue, TaskLost
from tests.support.tasks import die, end_lease, head, history, own_store
from tests.support.transactions import transaction

pytestmark = pytest.mark.django_db(transaction=True)


class Boom(Exception):
    pass


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with own_store("mongomock://"):
        yield


@pytest.fixture
def groups() -> list[str]:
    names = [f"g{number:02}" for number in range(10)]
    Group.objects.bulk_create(Group(name=name) for name in names)
    return names


def test_rows_that_come_and_go_before_the_place_neither_skip_nor_repeat(groups: list[str]) -> None:
    seen = []
    with pytest.raises(Boom), checkpointed("import") as task:
        for group in task.track(Group.objects.all(), key="pk", page=3):
            if group.name == "g05":
                raise Boom
            seen.append(group.name)
    Group.objects.filter(name__in=["g00", "g01"]).delete()
    Group.objects.create(name="g99")
    with checkpointed("import") as task:
        for group in task.track(Group.objects.all(), page=3):
            seen.append(group.name)
            assert task.total == 11  # five done and six to come
    assert seen == [*groups, "g99"]


def test_a_queryset_is_followed_backwards_by_a_unique_field_and_as_dicts(groups: list[str]) -> None:
    with checkpointed("a") as task:
        assert [one.name for one in task.track(Group.objects.all(), key="-name", page=4)] == groups[::-1]
    with checkpointed("b") as task:
        assert [one["name"] for one in task.track(Group.objects.values("name"), key="name", page=4)] == groups
        with pytest.raises(InvalidType, match="values"):
            list(task.track(Group.objects.values("id"), key="name", name="other"))


async def test_a_queryset_in_a_coroutine(groups: list[str]) -> None:
    with pytest.raises(Boom):
        async with checkpointed("import") as task:
            async for group in task.atrack(Group.objects.all(), page=3):
                if group.name == "g04":
                    raise Boom
    async with checkpointed("import") as task:
        assert [group.name async for group in task.atrack(Group.objects.all(), page=3)] == groups[4:]
        assert (task.done, task.total) == (10, 10)


@pytest.mark.parametrize(
    ("items", "key", "what"),
    [
        (lambda: Group.objects.order_by("name"), None, "ordered"),
        (lambda: Group.objects.all()[:5], "pk", "sliced"),
        (lambda: Group.objects.filter(name="a").union(Group.objects.filter(name="b")), "pk", "union"),
        (User.objects.all, "first_name", "unique"),
        (User.objects.all, "nothing", "no such field"),
        (lambda: [1, 2], "pk", "queryset"),
    ],
)
def test_what_can_not_be_resumed_by_key_is_refused_at_once(items: object, key: str | None, what: str) -> None:
    with checkpointed("import") as task, pytest.raises((InvalidValue, InvalidType), match=what):
        task.track(items(), key=key)  # type: ignore[operator]


@pytest.mark.sql
class TestBatches:
    def test_each_batch_is_committed_and_then_saved(self, groups: list[str]) -> None:
        with checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                assert transaction.get_connection().in_atomic_block
                assert (task.sequence, head("import")["done"]) == (
                    int(group.name[1:]) // 4,
                    task.done if task.sequence else None,
                )
                Group.objects.filter(pk=group.pk).update(name=f"{group.name}!")
        assert Group.objects.filter(name__endswith="!").count() == 10
        assert history("import") == [1, 2, 3]

    def test_a_batch_that_fails_is_rolled_back_and_repeated_as_a_whole(self, groups: list[str]) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                Group.objects.filter(pk=group.pk).update(name=f"{group.name}!")
                if group.name == "g06":
                    raise Boom
        assert Group.objects.filter(name__endswith="!").count() == 4
        with checkpointed("import") as task:
            again = [group.name for group in task.track(Group.objects.all(), atomic=True, every=4)]
        assert again == groups[4:]

    def test_a_loop_that_is_left_rolls_its_open_batch_back(self, groups: list[str]) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                Group.objects.filter(pk=group.pk).update(name=f"{group.name}!")
                if group.name == "g05":
                    break
            assert not transaction.get_connection().in_atomic_block
            raise Boom
        assert Group.objects.filter(name__endswith="!").count() == 4

    def test_a_loop_that_is_only_held_elsewhere_is_rolled_back_at_the_end_of_the_block(self, groups: list[str]) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            loop = task.track(Group.objects.all(), atomic=True, every=4)
            Group.objects.filter(pk=next(loop).pk).update(name="changed")
            raise Boom
        assert not transaction.get_connection().in_atomic_block
        assert not Group.objects.filter(name="changed").exists()

    def test_a_runner_that_lost_the_task_rolls_its_batch_back(self, groups: list[str]) -> None:
        with pytest.raises(TaskLost), checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                Group.objects.filter(pk=group.pk).update(name=f"{group.name}!")
                if group.name == "g07":
                    assert task._state.renewal is not None
                    task._state.renewal.lose()
        assert Group.objects.filter(name__endswith="!").count() == 4

    @pytest.mark.parametrize("after", [lambda group: group.name == "g06", lambda group: True])
    def test_a_save_of_the_bodys_own_does_not_claim_what_is_not_committed_yet(
        self, groups: list[str], after: Callable[[Group], bool]
    ) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                Group.objects.filter(pk=group.pk).update(name=f"{group.name}!")
                if after(group):
                    task.save({"last": group.name})
                if group.name == "g07":
                    raise Boom
        assert Group.objects.filter(name__endswith="!").count() == 4
        with checkpointed("import") as task:
            again = [group.name for group in task.track(Group.objects.all(), atomic=True, every=4)]
        assert again == groups[4:]

    def test_a_worker_that_is_killed_after_such_a_save_repeats_its_batch(self, groups: list[str]) -> None:
        block = checkpointed("import")
        task = block.__enter__()
        loop = task.track(Group.objects.all(), atomic=True, every=4)
        for _ in range(7):
            next(loop)
        task.save("on the way")
        die(block)
        transaction.get_connection().close()
        end_lease("import")
        with contextlib.suppress(Exception):
            loop.close()  # type: ignore[attr-defined]
        with checkpointed("import") as task:
            assert task.data == "on the way"
            again = [group.name for group in task.track(Group.objects.all(), atomic=True, every=4)]
        assert again == groups[4:]

    def test_a_second_loop_inside_a_batch_is_taken_back_with_it(self, groups: list[str]) -> None:
        seen: list[int] = []
        with pytest.raises(Boom), checkpointed("import") as task:
            for group in task.track(Group.objects.all(), atomic=True, every=4):
                if group.name == "g05":
                    seen += task.track(range(3), name="inner")
                    task.save()
                if group.name == "g06":
                    raise Boom
        with checkpointed("import") as task:
            assert list(task.track(range(3), name="inner")) == [0, 1, 2]
            assert [group.name for group in task.track(Group.objects.all(), atomic=True, every=4)] == groups[4:]

    def test_it_is_refused_inside_another_transaction(self, groups: list[str]) -> None:
        with checkpointed("import") as task, transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
            next(task.track(Group.objects.all(), atomic=True))


class TestTransactions:
    def test_a_save_on_commit_waits_for_it_with_the_state_of_then(self) -> None:
        with checkpointed("import") as task:
            state = {"n": 1}
            with transaction.atomic():
                task.save(state, on_commit=True)
                state["n"] = 2
                assert history("import") == []
            assert head("import")["data"] == {"n": 1}
            task.save(state, on_commit=True)  # no transaction: at once
            assert head("import")["data"] == {"n": 2}

    def test_a_rollback_drops_it(self) -> None:
        with checkpointed("import") as task:
            with pytest.raises(Boom), transaction.atomic():
                task.save(1, on_commit=True)
                raise Boom
            assert history("import") == []

    def test_a_rollback_takes_back_the_state_that_it_drops(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            task.save({"imported": 1})
            with contextlib.suppress(KeyError), transaction.atomic():
                task.save({"imported": 2}, on_commit=True)
                task.save({"imported": 3}, on_commit=True)
                raise KeyError
            assert task.data == {"imported": 1}
            task.save()
            raise Boom
        assert head("import")["data"] == {"imported": 1}

    def test_a_rollback_leaves_a_state_that_was_put_there_since(self) -> None:
        with checkpointed("import") as task:
            with contextlib.suppress(KeyError), transaction.atomic():
                task.save("dropped", on_commit=True)
                task.data = "newer"
                raise KeyError
            task.save()
        assert head("import")["data"] == "newer"

    @pytest.mark.sql
    def test_a_savepoint_takes_back_its_own_state_alone(self) -> None:
        with checkpointed("import") as task:
            with transaction.atomic():
                task.save("outer", on_commit=True)
                with contextlib.suppress(KeyError), transaction.atomic():
                    task.save("inner", on_commit=True)
                    raise KeyError
                assert task.data == "outer"
            assert task.data == head("import")["data"] == "outer"

    def test_a_save_inside_a_transaction_does_not_claim_items_whose_rows_may_be_rolled_back(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            loop = task.track(range(10), every=100)
            assert [next(loop), next(loop)] == [0, 1]
            with transaction.atomic():
                for item in loop:
                    task.save(item)
                    if item == 7:
                        raise Boom
        assert head("import")["data"] == 7
        with checkpointed("import") as task:
            assert list(task.track(range(10))) == list(range(1, 10))

    def test_what_such_a_save_left_out_is_saved_after_the_commit(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            with transaction.atomic():
                loop = task.track(range(10), every=100)
                for _ in range(4):
                    next(loop)
                task.save("in between")
                kept = task.save("with the commit", on_commit=True)
                assert kept.sequence == 1
            assert head("import")["data"] == "with the commit"
            raise Boom
        with checkpointed("import") as task:
            assert list(task.track(range(10))) == list(range(3, 10))

    def test_a_loop_inside_somebody_elses_transaction_saves_nothing_until_it_is_over(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task, transaction.atomic():
            assert list(task.track(range(5), every=1)) == [0, 1, 2, 3, 4]
            assert history("import") == []
            raise Boom
        with checkpointed("import") as task, transaction.atomic():
            assert list(task.track(range(5), every=1)) == [0, 1, 2, 3, 4]
        with checkpointed("import") as task:
            assert task.completed

    def test_what_was_done_in_a_transaction_that_was_rolled_back_is_not_done(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            loop = task.track(range(10), every=100)
            with transaction.atomic():
                assert [next(loop) for _ in range(4)] == [0, 1, 2, 3]
            assert next(loop) == 4
            with transaction.atomic():
                for item in loop:
                    if item == 7:
                        raise Boom
        with checkpointed("import") as task:
            assert list(task.track(range(10))) == [4, 5, 6, 7, 8, 9]

    def test_a_rollback_that_the_body_survives_takes_the_place_back_as_well(self) -> None:
        with pytest.raises(Boom), checkpointed("import") as task:
            with contextlib.suppress(Boom), transaction.atomic():
                for item in task.track(range(5), every=1):
                    if item == 3:
                        raise Boom
            task.save("on it goes")
            raise Boom
        with checkpointed("import") as task:
            assert list(task.track(range(5))) == [0, 1, 2, 3, 4]

    def test_completion_waits_for_the_commit_around_the_block(self) -> None:
        with transaction.atomic():
            with checkpointed("import") as task:
                task.complete(7)
            found = get_task("import")
            assert found is not None
            assert (found.status, found.stalled) == ("running", False)
        found = get_task("import")
        assert found is not None
        assert found.status == "completed"

    def test_a_rollback_around_the_block_undoes_completion_and_lets_the_task_go(self) -> None:
        with pytest.raises(Boom), transaction.atomic():
            with checkpointed("import"):
                pass
            raise Boom
        found = get_task("import")
        assert found is not None
        assert (found.status, found.error) == ("failed", "the transaction was rolled back")
        with checkpointed("import") as task:
            assert not task.completed

    def test_an_error_inside_a_transaction_around_the_block_saves_nothing_more(self) -> None:
        with pytest.raises(Boom), transaction.atomic(), checkpointed("import") as task:
            for item in task.track(range(10), every=100):
                if item == 6:
                    raise Boom
        assert history("import") == []
        with checkpointed("import") as task:
            assert list(task.track(range(10))) == list(range(10))

    def test_a_decorated_function_inside_a_transaction(self) -> None:
        calls = []

        @checkpointed("import")
        def work() -> int:
            calls.append(1)
            return 5

        with transaction.atomic():
            assert work() == 5
        assert (work(), calls) == (5, [1])


def test_a_lost_lease_is_found_out_at_the_end_of_a_transaction_too() -> None:
    with transaction.atomic(), checkpointed("import"):
        end_lease("import")
    found = get_task("import")
    assert found is not None
    assert found.stalled
