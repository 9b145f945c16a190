"""Every error that goscope_django raises of its own accord, and what it means.

Rules of this file:

* A message names the thing, its value and what is allowed. It never holds a password or a stored value.
* An error is ``cls(*error.args)``, and ``args`` are plain values: so it survives pickle, ``copy`` and results that are
  kept as JSON, as Celery's are, with its attributes. A message alone makes one as well.

An error that its feature defines says where; the tree names it all the same::

    GoscopeError
    ├── ConfigurationError (ValueError)     a setting, URL or option is wrong; raised on first use
    │   └── BadSettings                     the same, and Django's ImproperlyConfigured; defined in ``conf``
    ├── InvalidValue (ValueError)           an argument has a value that is not allowed
    │   └── DispatchRefused                 a stalled task's message is not ours, or names nothing that is registered
    ├── InvalidType (TypeError)             an argument has a type that is not allowed
    ├── Unsupported (AttributeError)        something that Redis has and this package has not
    ├── StoreError                          the database could not do it; the driver's error is ``__cause__``
    │   ├── StoreUnavailable                nothing was sent, or nothing was changed: safe to try again
    │   │   ├── PoolExhausted               no connection of this process's own pool came free in time
    │   │   ├── Contended                   others changed the same entry, again and again
    │   │   └── CredentialsRefused          user or password is wrong or missing: nothing can be asked
    │   ├── OutcomeUnknown                  it may have happened, and looking for it failed too
    │   ├── MissingRights                   the user may not do this; the message names the right and who grants it
    │   ├── ServerNotSupported              the server is too old, or not MongoDB
    │   └── IndexConflict                   an index exists with other options
    ├── MongodError                         the private ``mongod`` can't be found, started or stopped
    ├── Undecodable                         a stored value is forged, damaged or of an unknown format
    ├── LockError
    │   ├── LockNotAcquired                 somebody else held the lock for all of ``blocking_timeout``
    │   │   └── LockReentered               the thread or task that would wait for the lock holds it itself
    │   └── LockLost                        the lease ended while the block still ran
    ├── StaleFence                          a write carried an older fencing token than the document
    ├── NotFound                            what an operator named is not there
    ├── StateChanged                        what an operator acted on has changed since it was shown
    ├── CircuitOpen                         the circuit refuses the call; ``retry_after`` says for how long
    ├── IdempotencyError
    │   ├── IdempotencyConflict             another request with the same key is running
    │   │   └── ClaimLost                   the claim ended while its work still ran
    │   └── IdempotencyMismatch             the same key came with another payload
    ├── FlightError
    │   └── RemoteError                     the leader of a flight failed with an error that can't be rebuilt
    └── CheckpointError
        ├── CheckpointConflict              a checkpoint with this task and sequence exists
        ├── CheckpointTooLarge              the state does not fit in one document
        ├── TaskAlreadyRunning              another runner holds the task's lease
        ├── TaskLost                        this runner no longer holds the task's lease
        ├── TaskCancelled                   an operator asked the task to stop
        └── TaskExhausted                   the task failed as often as it may be tried
"""

from __future__ import annotations

from typing import Any


class GoscopeError(Exception):
    """The root of all errors of this package. ``args`` are the message and then what the class adds to it.

    They can be pickled, as process pools do, and made anew of their ``args``, as task queues do.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def told(error: BaseException) -> str:
    """The text of an error of ours; of another only the class, since its text may quote a value.

    :meta private:
    """
    return str(error) if isinstance(error, GoscopeError) else type(error).__name__


def _rebuilt(kind: type[GoscopeError], args: tuple[Any, ...], attributes: dict[str, Any]) -> GoscopeError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(GoscopeError, ValueError):
    """A setting, URL or option is wrong."""


class InvalidValue(GoscopeError, ValueError):
    """An argument has a value that is not allowed."""


class DispatchRefused(InvalidValue):
    """What the database says is to be dispatched for a task is not ours, or can't be followed here. Nothing was sent.

    ``reason`` is one word: ``none`` (there is no message), ``forged`` (we have not signed it), ``unknown`` (what it
    names is not registered in this process) or ``failed`` (an operator ran it again, and its dispatcher raised).
    """

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message, reason)
        self.reason = reason


class InvalidType(GoscopeError, TypeError):
    """An argument has a type that is not allowed."""


class Unsupported(GoscopeError, AttributeError):
    """Redis or django-redis has this, and there is nothing like it here. ``hasattr`` says that it is not there."""


class StoreError(GoscopeError):
    """The database could not do what was asked; the driver's error is chained."""


class StoreUnavailable(StoreError):
    """The server was not reached or refused; nothing was changed."""


class PoolExhausted(StoreUnavailable):
    """No connection of this process's own pool (``maxPoolSize``) came free in time. It says nothing of the server."""


class Contended(StoreUnavailable):
    """Others changed the same entry each time between reading and writing; nothing was changed. It says nothing of the
    server."""


class CredentialsRefused(StoreUnavailable):
    """The server refuses the user or the password, or wants them and has got none; nothing was changed."""


class MissingRights(StoreError):
    """The user may not do this in the database; nothing was changed. The message names the right and how to grant
    it."""


class ServerNotSupported(StoreError):
    """The server is too old, or lacks what is needed: updates by a pipeline and ``$$NOW``."""


class OutcomeUnknown(StoreError):
    """A write may or may not have happened, and reading it back failed as well."""


class IndexConflict(StoreError):
    """An index exists with other options than ours."""


class MongodError(GoscopeError):
    """The private ``mongod`` can't be found, started or stopped."""


class Undecodable(GoscopeError):
    """A stored value is forged, damaged, moved to another key or of an unknown format.

    ``reason`` is one word for counters: ``forged``, ``damaged`` or ``format``.
    """

    def __init__(self, reason: str = "damaged", message: str = "") -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[-1] or self.args[0])


class LockError(GoscopeError):
    """An error about a lock; ``key`` names it."""

    def __init__(self, message: str = "", key: str = "") -> None:
        super().__init__(message, key)
        self.key = key


class LockNotAcquired(LockError):
    """Somebody else held the lock for as long as the caller was willing to wait."""


class LockReentered(LockNotAcquired):
    """The thread or task that would have to wait for the lock holds it itself, so it would wait for ever."""


class LockLost(LockError):
    """The lock's lease ended, or somebody took it over, while its holder still worked."""


class StaleFence(GoscopeError):
    """A write was refused because the document already has a newer fencing token."""


class NotFound(GoscopeError):
    """What an operator named is not there (any more); ``target`` names it."""

    def __init__(self, message: str = "", target: str = "") -> None:
        super().__init__(message, target)
        self.target = target


class StateChanged(GoscopeError):
    """What an operator acted on has changed since it was shown. Nothing was done; the message says what is there."""

    def __init__(self, message: str = "", target: str = "") -> None:
        super().__init__(message, target)
        self.target = target


class CircuitOpen(GoscopeError):
    """The circuit refuses the call. ``retry_after`` is in seconds."""

    def __init__(self, message: str = "", name: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, name, retry_after)
        self.name = name
        self.retry_after = retry_after


class IdempotencyError(GoscopeError):
    """An error about an idempotency key. ``key`` names it."""

    def __init__(self, message: str = "", key: str = "") -> None:
        super().__init__(message, key)
        self.key = key


class IdempotencyConflict(IdempotencyError):
    """Another request with the same key is running. ``retry_after`` is in seconds."""

    def __init__(self, message: str = "", key: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, key)
        self.args = (message, key, retry_after)
        self.retry_after = retry_after


class ClaimLost(IdempotencyConflict):
    """The claim ended while its work still ran."""


class IdempotencyMismatch(IdempotencyError):
    """The same key was used before with another payload."""


class FlightError(GoscopeError):
    """An error about a flight."""


class RemoteError(FlightError):
    """The leader of a flight failed with an error whose class can't be rebuilt here.

    ``error_type`` is the dotted name of the leader's exception.
    """

    def __init__(self, message: str = "", error_type: str = "") -> None:
        super().__init__(message, error_type)
        self.error_type = error_type


class CheckpointError(GoscopeError):
    """An error about a task or one of its checkpoints. ``task_id`` names the task."""

    def __init__(self, message: str = "", task_id: str = "") -> None:
        super().__init__(message, task_id)
        self.task_id = task_id


class CheckpointConflict(CheckpointError):
    """A checkpoint with this task and sequence exists; nothing was overwritten."""


class CheckpointTooLarge(CheckpointError):
    """The state does not fit in one document."""


class TaskAlreadyRunning(CheckpointError):
    """Another runner holds the task. Unless it is renewed, its lease lasts another ``retry_after`` seconds."""

    def __init__(self, message: str = "", task_id: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, task_id)
        self.args = (message, task_id, retry_after)
        self.retry_after = retry_after


class TaskLost(CheckpointError):
    """This runner lost the lease of the task, so it can no longer save."""


class TaskCancelled(CheckpointError):
    """An operator asked the task to stop. It does not run again until it is reset or restarted."""


class TaskExhausted(CheckpointError):
    """The task has been tried as often as it may be."""
