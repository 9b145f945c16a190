"""Tasks of ``django.tasks`` that resume, where Django has it (6.0 and later), with its immediate backend."""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from goscope_django.checkpoints import Task, checkpointed, get_task, messages, resume_stalled
from goscope_django.exceptions import InvalidValue, TaskAlreadyRunning
from tests.support.tasks import end_lease, own_store

tasks: Any = pytest.importorskip("django.tasks")

from goscope_django.integrations.tasks import dispatch, resumable  # noqa: E402 - only where there is django.tasks

seen: list[Any] = []
stop: list[Any] = []


@tasks.task
@resumable(lambda path: f"import:{path}")
def import_rows(task: Task, path: str) -> list[Any]:
    done = []
    for item in task.track(range(5)):
        if item in stop:
            raise ValueError(item)
        done.append(item)
    seen.append((path, task.attempt))
    return done


@tasks.task(takes_context=True)
@resumable()
def with_context(context: Any, task: Task, number: int) -> list[Any]:
    return [task.id, context.task_result.id, number]


@tasks.task
@resumable("coroutine")
async def coroutine(task: Task) -> str:
    await task.asave(1)
    return task.id


@tasks.task
@resumable()
def without_id() -> None:
    pass


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    seen.clear()
    stop.clear()
    backend = {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}
    with own_store("mongomock://"), override_settings(TASKS={"default": backend}):
        yield


def test_a_task_that_failed_goes_on_when_it_is_enqueued_again_and_is_not_run_a_third_time() -> None:
    stop.append(3)
    assert import_rows.enqueue("a").status == "FAILED"
    stop.clear()
    assert import_rows.enqueue("a").return_value == [3, 4]
    assert import_rows.enqueue("a").return_value == [3, 4]
    assert import_rows.enqueue("b").return_value == [0, 1, 2, 3, 4]
    assert seen == [("a", 2), ("b", 1)]


def test_the_id_of_the_result_is_the_tasks_where_the_context_tells_it() -> None:
    result = with_context.enqueue(number=7)
    assert result.return_value == [result.id, result.id, 7]
    assert "context" in without_id.enqueue().errors[0].traceback


async def test_a_coroutine_function() -> None:
    result = await coroutine.aenqueue()
    assert result.return_value == "coroutine"


def test_somebody_elses_task_fails() -> None:
    with checkpointed("import:a"):
        result = import_rows.enqueue("a")
    assert result.errors[0].exception_class is TaskAlreadyRunning


def test_a_task_whose_worker_is_gone_is_enqueued_again_with_its_arguments() -> None:
    with pytest.raises(Exception, match="lease"), checkpointed("import:a", metadata=_metadata("a")):
        end_lease("import:a")
    found: list[Any] = []
    resume_stalled(lambda info: found.append(dispatch(info)))
    assert found[0].return_value == [0, 1, 2, 3, 4]
    assert seen == [("a", 2)]
    result = with_context.enqueue(number=1)
    info = get_task(result.id)
    assert info is not None
    with pytest.raises(InvalidValue, match="enqueued again"):
        dispatch(info)


def _metadata(path: str) -> dict[str, Any]:
    """What a worker that ran it in earnest would have left."""
    import_rows.enqueue("model")
    seen.clear()
    info = get_task("import:model")
    assert info is not None
    kept = messages.opened("django.tasks", info)
    assert kept["arguments"] == '[["model"], {}]'
    return messages.signed("django.tasks", f"import:{path}", {**kept, "arguments": f'[["{path}"], {{}}]'})
