"""Tasks that resume where they stopped: ``checkpointed``. This is the public face of the feature.

>>> from goscope_django.checkpoints import checkpointed
>>> with checkpointed("nightly-import") as task:
...     for row in task.track(rows):
...         import_row(row)

Rules of this file:

* At most one runner at a time holds a task. After a crash the next one goes on as soon as the lease has ended.
* Items are processed at least once. After a crash the items since the last save are processed again.
* A body that is left without an error has completed the task. It is not run again unless asked.
* Every function for operators raises ``StoreError`` if MongoDB fails or can't be reached, and ``InvalidType`` or
  ``InvalidValue`` for an argument that can't be used.
"""

from __future__ import annotations

from goscope_django.checkpoints.entry import checkpointed, current_task
from goscope_django.checkpoints.operators import (
    acancel_task,
    acleanup_tasks,
    adelete_task,
    aget_task,
    alist_tasks,
    areset_task,
    aresume_stalled,
    arun_again,
    astalled_tasks,
    atask_result,
    can_run_again,
    cancel_task,
    cleanup_tasks,
    delete_task,
    get_task,
    list_tasks,
    register_dispatcher,
    reset_task,
    resume_stalled,
    run_again,
    stalled_tasks,
    task_result,
)
from goscope_django.checkpoints.runner import Saved
from goscope_django.checkpoints.task import Task
from goscope_django.exceptions import TaskAlreadyRunning, TaskCancelled, TaskExhausted, TaskLost
from goscope_django.mongodb.checkpoints.values import TaskInfo

__all__ = [
    "Saved",
    "Task",
    "TaskAlreadyRunning",
    "TaskCancelled",
    "TaskExhausted",
    "TaskInfo",
    "TaskLost",
    "acancel_task",
    "acleanup_tasks",
    "adelete_task",
    "aget_task",
    "alist_tasks",
    "areset_task",
    "aresume_stalled",
    "arun_again",
    "astalled_tasks",
    "atask_result",
    "can_run_again",
    "cancel_task",
    "checkpointed",
    "cleanup_tasks",
    "current_task",
    "delete_task",
    "get_task",
    "list_tasks",
    "register_dispatcher",
    "reset_task",
    "resume_stalled",
    "run_again",
    "stalled_tasks",
    "task_result",
]
