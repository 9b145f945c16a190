"""Messages by which a stalled task can be started again: signed when they are stored, and believed only then.

Rules of this file:

* A message is kept in a task's metadata, where anybody who can write to the database can put another one. So its
  signature covers the collection, the stored id of the task, the kind of message and all of its fields.
* Keys are derived as for pickles (``codec``), from ``SECRET_KEY`` or one of ``SECRET_KEY_FALLBACKS``, with a salt of
  their own: a signature of the one is none of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from goscope_django import runtime
from goscope_django.codec import DjangoSigner
from goscope_django.exceptions import DispatchRefused
from goscope_django.mongodb.checkpoints.tasks import TASKS
from goscope_django.mongodb.checkpoints.values import TaskInfo

SIGNATURE: Final = "signature"
_signer: Final = DjangoSigner("goscope_django.dispatch")


def signed(kind: str, task_id: str, message: Mapping[str, str | None]) -> dict[str, Any]:
    """The metadata of task ``task_id`` that hold ``message``. Nothing is sent."""
    return {kind: {**message, SIGNATURE: _signer.sign(_covered(kind, task_id, message))}}


def opened(kind: str, info: TaskInfo) -> dict[str, Any]:
    """The message of this kind that was stored for this task. Raises ``DispatchRefused`` for any that is not ours."""
    found = info.metadata.get(kind)
    if found is None:
        raise DispatchRefused(
            f"task {info.task_id!r:.200}: no message of {kind} is known that could be enqueued again", "none"
        )
    if isinstance(found, Mapping):
        message, signature = dict(found), found.get(SIGNATURE)
        message.pop(SIGNATURE, None)
        plain = all(one is None or type(one) is str for one in message.values())
        if plain and type(signature) is bytes and _signer.verify(_covered(kind, info.task_id, message), signature):
            return message
    raise DispatchRefused(f"task {info.task_id!r:.200}: its message of {kind} is not one that we have signed", "forged")


def unknown(info: TaskInfo, why: str) -> DispatchRefused:
    """The error for a message that is ours and can't be followed in this process."""
    return DispatchRefused(f"task {info.task_id!r:.200}: {why}", "unknown")


def _covered(kind: str, task_id: str, message: Mapping[str, str | None]) -> bytes:
    full = runtime.adapter().checkpoint.flows.prefix + task_id
    return json.dumps([TASKS, full, kind, message], sort_keys=True).encode()
