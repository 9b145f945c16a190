"""What an operator sees and does. Commands, the dashboard, the health check and the metrics all go through here.

* ``state()`` makes the one ``State`` that all of them show. ``values`` has its shape.
* An action acts on what the operator saw: a lock's token, a circuit's generation, a task's token. If that has changed
  since, nothing is done, and ``StateChanged`` says what is there now. ``NotFound`` says that there is nothing. Without
  such a mark an action takes the thing as it is.
* All functions raise ``StoreError`` (``StoreUnavailable`` if MongoDB can't be reached) and ``ConfigurationError``, and
  ``InvalidType`` or ``InvalidValue`` for an argument that can't be used.
* Before an action or a listing the server is asked whether it answers: one round trip, which is not counted below.
* ``token`` and ``generation`` are the mark of what was seen: with one, an action is refused if the thing has it no
  more.
"""

from __future__ import annotations

from goscope_django.exceptions import NotFound, StateChanged
from goscope_django.mongodb.driver.inspection import Probe
from goscope_django.operations.actions import (
    acancel_task,
    acleanup_checkpoints,
    aclose_circuit,
    adelete_idempotency,
    adelete_task,
    aopen_circuit,
    arelease_lock,
    areset_circuit,
    areset_task,
    arun_task_again,
    cancel_task,
    cleanup_checkpoints,
    close_circuit,
    delete_idempotency,
    delete_task,
    open_circuit,
    release_lock,
    reset_circuit,
    reset_task,
    run_task_again,
)
from goscope_django.operations.caches import cache_aliases, cache_keys, clear_cache, delete_cache_keys
from goscope_django.operations.collect import astate, state
from goscope_django.operations.details import Details, adetails, details
from goscope_django.operations.kept_sessions import signed_out
from goscope_django.operations.listing import (
    get_circuit,
    get_task,
    list_checkpoints,
    list_circuits,
    list_idempotency,
    list_locks,
    list_tasks,
)
from goscope_django.operations.servers import (
    MongodStatus,
    StoreIndexes,
    aping,
    aprobe,
    check_indexes,
    ensure_indexes,
    mongod_log,
    mongod_running,
    mongod_start,
    mongod_status,
    mongod_stop,
    ping,
    probe,
)
from goscope_django.operations.values import (
    ATTENTION_KINDS,
    SCHEMA_VERSION,
    SECTION_ORDERS,
    SECTION_STATES,
    SECTIONS,
    TASK_STATUSES,
    Attention,
    AttentionItem,
    Done,
    State,
    plain,
)

__all__ = [
    "ATTENTION_KINDS",
    "SCHEMA_VERSION",
    "SECTIONS",
    "SECTION_ORDERS",
    "SECTION_STATES",
    "TASK_STATUSES",
    "Attention",
    "AttentionItem",
    "Details",
    "Done",
    "MongodStatus",
    "NotFound",
    "Probe",
    "State",
    "StateChanged",
    "StoreIndexes",
    "acancel_task",
    "acleanup_checkpoints",
    "aclose_circuit",
    "adelete_idempotency",
    "adelete_task",
    "adetails",
    "aopen_circuit",
    "aping",
    "aprobe",
    "arelease_lock",
    "areset_circuit",
    "areset_task",
    "arun_task_again",
    "astate",
    "cache_aliases",
    "cache_keys",
    "cancel_task",
    "check_indexes",
    "cleanup_checkpoints",
    "clear_cache",
    "close_circuit",
    "delete_cache_keys",
    "delete_idempotency",
    "delete_task",
    "details",
    "ensure_indexes",
    "get_circuit",
    "get_task",
    "list_checkpoints",
    "list_circuits",
    "list_idempotency",
    "list_locks",
    "list_tasks",
    "mongod_log",
    "mongod_running",
    "mongod_start",
    "mongod_status",
    "mongod_stop",
    "open_circuit",
    "ping",
    "plain",
    "probe",
    "release_lock",
    "reset_circuit",
    "reset_task",
    "run_task_again",
    "signed_out",
    "state",
]
