"""The table of actions: who may do what, what is asked first, and which function of ``operations`` does it.

Rule of this file: an action is given what the operator saw, never just a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from goscope_django import operations
from goscope_django.dashboard.forms import Seen
from goscope_django.operations import Done


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that an operator can do.

    ``name`` is part of its address, ``permission`` a codename of the app ``goscope``, ``noun`` what ``Seen.key`` names.
    ``question`` and ``consequence`` are on the page that asks for confirmation.
    """

    name: str
    label: str
    permission: str
    noun: Literal["lock", "circuit", "task", "idempotency", "cache"]
    question: str
    consequence: str
    run: Callable[[Seen, str], Done]
    destroys: bool = False
    warning: Callable[[Seen], str] | None = None
    """What else is to be known of this very thing before it is confirmed."""
    reason: bool = False
    """Whether the operator can give a reason, which is kept in the circuit's history."""
    together: str = ""
    """What is asked about several at once, after their number; empty where that can't be done."""


_ALL: Final = (
    Action(
        name="release_lock",
        label="Release",
        permission="release_lock",
        noun="lock",
        question="Take this lock away from its holder?",
        consequence=(
            "The holder goes on working until its next renewal, and somebody else may get the lock meanwhile. Do this "
            "if you know that the holder is gone."
        ),
        run=lambda seen, reason: operations.release_lock(
            seen.key, seen.mark, seen.owner if seen.mark is None else None
        ),
        destroys=True,
        together="locks: take them away from their holders?",
    ),
    Action(
        name="open_circuit",
        label="Force open",
        permission="change_circuit",
        noun="circuit",
        question="Force this circuit open?",
        consequence="Every process refuses calls through it, from about a second from now until it is reset.",
        run=lambda seen, reason: operations.open_circuit(seen.key, seen.mark, reason),
        together="circuits: force them open?",
        reason=True,
    ),
    Action(
        name="close_circuit",
        label="Force closed",
        permission="change_circuit",
        noun="circuit",
        question="Force this circuit closed?",
        consequence="Every process lets all calls through, however many fail, until it is reset.",
        run=lambda seen, reason: operations.close_circuit(seen.key, seen.mark, reason),
        together="circuits: force them closed?",
        reason=True,
    ),
    Action(
        name="reset_circuit",
        label="Reset",
        permission="change_circuit",
        noun="circuit",
        question="Reset this circuit?",
        consequence="It is closed, its failures are forgotten, and nothing forces it any longer.",
        run=lambda seen, reason: operations.reset_circuit(seen.key, seen.mark, reason),
        together="circuits: reset them?",
        reason=True,
    ),
    Action(
        name="run_task_again",
        label="Run again",
        permission="delete_checkpoint",
        noun="task",
        question="Run this task again?",
        consequence=(
            "It is dispatched as it was stored and signed, and goes on where it stopped. Only a stalled task is: one "
            "that runs, or that was dispatched in the last minutes, is left as it is."
        ),
        run=lambda seen, reason: operations.run_task_again(seen.key, seen.mark),
        together="tasks: run them again?",
    ),
    Action(
        name="cancel_task",
        label="Cancel",
        permission="delete_checkpoint",
        noun="task",
        question="Cancel this task?",
        consequence="Its runner stops at its next save. It does not start again until it is reset; its state is kept.",
        run=lambda seen, reason: operations.cancel_task(seen.key, seen.mark),
        together="tasks: cancel them?",
    ),
    Action(
        name="reset_task",
        label="Allow again",
        permission="delete_checkpoint",
        noun="task",
        question="Let this task be started again?",
        consequence="Its next run goes on where it stopped, with its attempts counted from the beginning.",
        run=lambda seen, reason: operations.reset_task(seen.key, seen.mark),
        together="tasks: let them be started again?",
    ),
    Action(
        name="delete_checkpoint",  # as the permission; the address stays what it was
        label="Delete",
        permission="delete_checkpoint",
        noun="task",
        question="Delete this task and all its checkpoints?",
        consequence="What it saved is gone, and its next run begins from the beginning. This can't be undone.",
        run=lambda seen, reason: operations.delete_task(seen.key, seen.mark),
        together="tasks: delete them and all their checkpoints?",
        destroys=True,
    ),
    Action(
        name="delete_idempotency",
        label="Delete",
        permission="delete_idempotency",
        noun="idempotency",
        question="Delete this idempotency record?",
        consequence=(
            "A repeat of its request runs again: whatever it did (a payment, an order) is then done twice. A worker "
            "that runs it now goes on, but can no longer store its answer."
        ),
        run=lambda seen, reason: operations.delete_idempotency(seen.key, seen.mark),
        together="idempotency records: delete them?",
        destroys=True,
    ),
    Action(
        name="clear_cache",
        label="Clear",
        permission="clear_cache",
        noun="cache",
        question="Clear this cache?",
        consequence=(
            "All its entries are removed, of every version. What they held is computed again, by all processes at once."
        ),
        run=lambda seen, reason: operations.clear_cache(seen.key),
        warning=lambda seen: operations.signed_out(seen.key),
        destroys=True,
    ),
)

ACTIONS: Final = {one.name: one for one in _ALL}
