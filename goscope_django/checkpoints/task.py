"""One attempt at a task, as its body sees it: the data handed over, saves, loops.

Rule of this file: the state keeps what is known and the runner sends. A ``Task`` decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from goscope_django.checkpoints import loops
from goscope_django.checkpoints.runner import Runner, Saved
from goscope_django.checkpoints.state import KEEP, TaskState
from goscope_django.checkpoints.tracking import PAGE, Source
from goscope_django.process.transactions import after_commit, in_transaction

T = TypeVar("T")


class _Exactly:
    """The runner's part in ``track(atomic=True)`` on MongoDB, on this thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.together = runner.together

    def prepare(self, alias: str) -> None:
        self._runner.do(self._runner.prepare(alias))

    def save(self) -> Saved:
        return self._runner.do(self._runner.save())

    def settle(self) -> None:
        self._runner.do(self._runner.settle())


def _known(name: str, text: str | None = None) -> Any:
    """What the state knows under ``name``, to be read only; ``text`` is its docstring, if the state has none."""

    def read(task: Task) -> Any:
        return getattr(task._state, name)

    return property(read, doc=text or getattr(getattr(TaskState, name, None), "__doc__", None))


class Task:
    """A task that is held, or that is completed already (``completed``; then there is nothing to do).

    ``checkpointed`` makes it. ``id`` is the task's id, ``data`` is the last saved state (``None`` at first),
    ``resumed`` whether there was one. ``attempt`` counts the starts, ``token`` is the fencing token, ``sequence`` the
    number of the last save, ``result`` the result of a completed task. ``progress`` is 0 to 100; ``done`` and ``total``
    count items; ``rate`` is in items per second, ``estimated_time_remaining`` in seconds. ``lost``: the lease is gone,
    as far as this process knows. ``cancelled``: an operator asked the task to stop, as of the last save; a body that
    asks this and leaves is not completed. None of these sends anything. Methods that reach the store have an async
    version, with an ``a`` in front.
    """

    id: str = _known("id", "The task's id.")
    attempt: int = _known("attempt", "Which start of the task this is, from 1 on.")
    token: int = _known("token", "The fencing token: grows with each run.")
    sequence: int = _known("sequence", "The number of the last save; 0 before the first.")
    resumed: bool = _known("resumed", "Whether there was a saved state when this run began.")
    completed: bool = _known("completed", "Whether the task was completed before: then there is nothing to do.")
    result: Any = _known("result", "The result of a completed task.")
    progress: float = _known("progress", "How far the task is, 0 to 100.")
    done: int | None = _known("done", "How many items are done; ``None`` where none are counted.")
    total: int | None = _known("total", "How many items there are; ``None`` if that is not known.")
    rate: float | None = _known("rate")
    estimated_time_remaining: float | None = _known("estimated_time_remaining")
    consistent: bool = _known("consistent")
    lost: bool = _known("lost")
    cancelled: bool = _known("cancelled")

    def __init__(self, runner: Runner, interval: float) -> None:
        """``checkpointed`` makes it.

        :meta private:
        """
        self._runner = runner
        self._state = runner.state
        self._interval = interval

    def __repr__(self) -> str:
        return f"<task {self.id!r}, attempt {self.attempt}, sequence {self.sequence}, {self.progress:g} %>"

    @property
    def data(self) -> Any:
        """The data last saved, or what was put here since; the next save saves it. ``state`` is the same."""
        return self._state.data

    @data.setter
    def data(self, value: Any) -> None:
        self._state.data = value

    state = data

    def raise_if_cancelled(self) -> None:
        """Raise ``TaskCancelled`` if an operator asked the task to stop, as of the last save. Sends nothing."""
        self._state.raise_if_cancelled()

    def complete(self, result: Any = None) -> None:
        """Say that the work is done, with this ``result``. It is written when the block is left without an error.

        Raises nothing and sends nothing. A result that can't be stored, or does not fit, is an error where the block is
        left.
        """
        self._state.complete(result)

    def save(
        self,
        data: Any = KEEP,
        *,
        progress: float | None = None,
        done: int | None = None,
        total: int | None = None,
        on_commit: bool = False,
    ) -> Saved:
        """Save ``data`` (``task.data`` if not given) and the places of loops. Two round trips; renews the lease.

        The state is there after the first one, which is atomic and holds only if the task is still ours; the second one
        writes the history.

        ``progress`` is 0 to 100; it is worked out where ``done`` and ``total`` are known. With ``on_commit=True``
        inside ``atomic()`` the save waits for the commit, and a rollback drops it. Without it, places that a
        transaction of this thread may still take back are saved as they were before it. Raises ``TaskLost`` if this
        runner does not hold the task any more, ``CheckpointTooLarge``, ``InvalidType`` or ``InvalidValue`` before
        anything is sent, else ``StoreError``. After about every tenth save the history is pruned a moment later.
        """
        state, runner = self._state, self._runner
        before = state.accept(data, progress, done, total)
        if runner.alias is not None:
            runner.set_aside(before)
        elif on_commit and in_transaction():
            kept, places, over = state.set_aside(before)

            def committed() -> None:
                over(True)
                runner.do(runner.save(state.snapshot(kept, places)))

            after_commit(committed, lambda: over(False))
            return Saved(state.sequence, state.cancel_requested)
        return runner.do(runner.save())

    async def asave(
        self,
        data: Any = KEEP,
        *,
        progress: float | None = None,
        done: int | None = None,
        total: int | None = None,
        on_commit: bool = False,
    ) -> Saved:
        """Async version of ``save``. A coroutine has no ``atomic()``, so with ``on_commit`` it saves at once."""
        self._state.accept(data, progress, done, total)
        return await self._runner.ado(self._runner.save())

    def report(self, *, progress: float | None = None, done: int | None = None, total: int | None = None) -> None:
        """Say how far the task is: ``progress`` (0 to 100), or ``done`` of ``total`` items.

        It is written with the next save, or by one atomic round trip of its own every five seconds. Raises what
        ``save`` raises.
        """
        self._state.accept(KEEP, progress, done, total)
        self._runner.do(self._runner.report())

    async def areport(
        self, *, progress: float | None = None, done: int | None = None, total: int | None = None
    ) -> None:
        """Async version of ``report``."""
        self._state.accept(KEEP, progress, done, total)
        await self._runner.ado(self._runner.report())

    def track(
        self,
        items: Iterable[T] | Callable[[Any], Iterable[T]],
        total: int | None = None,
        *,
        key: str | Callable[[Any], Any] | None = None,
        every: int | None = None,
        interval: float | None = None,
        name: str = "",
        atomic: bool | str = False,
        page: int = PAGE,
    ) -> Iterator[T]:
        """The ``items`` that are not done yet, one by one; the loop's place is saved as it goes.

        Saves after ``every`` items or ``interval`` seconds (the task's if neither is given), and at the end: two round
        trips each, as ``save``. ``total`` is how many items there are, asked of ``items`` if not given. An item is
        done when the next one is asked for; items since the last save are repeated after a crash. A queryset goes on
        behind the last row by ``key`` (a unique field; ``pk`` if the queryset is not ordered), ``page`` rows a query.
        Other iterables are counted and must give the same items in the same order again. If ``items`` and ``key`` are
        functions, ``items(last key or None)`` gives the items behind that key. A second loop needs a ``name``.

        ``atomic=True`` (or a database alias) processes ``every`` items in a transaction and saves after its commit. On
        ``django_mongodb_backend`` it saves in the transaction, so that each item is done exactly once. That needs
        ``GOSCOPE["URL"] = "django://<alias>"`` and a replica set; anything else raises ``ImproperlyConfigured``.
        Raises ``TaskLost`` or ``TaskCancelled`` instead of giving the next item, and what ``save`` raises. Inside a
        transaction that somebody else opened nothing is saved until it is over.
        """
        source, policy = Source(items, key, total, page), loops.Policy(every, interval, self._interval)
        state, runner = self._state, self._runner
        if atomic is False:
            return runner.track(
                loops.loop(state, source, state.begin(name), policy, lambda: runner.do(runner.autosave()))
            )
        using, size = loops.database(atomic, items), policy.every or loops.BATCH
        if loops.is_mongodb(using):
            exactly = _Exactly(runner)
            return runner.track(loops.exact_batches(state, source, state.begin(name), size, exactly, using))
        return runner.track(
            loops.batches(state, source, state.begin(name), size, using, lambda: runner.do(runner.save()))
        )

    def atrack(
        self,
        items: AsyncIterable[T] | Iterable[T] | Callable[[Any], AsyncIterable[T] | Iterable[T]],
        total: int | None = None,
        *,
        key: str | Callable[[Any], Any] | None = None,
        every: int | None = None,
        interval: float | None = None,
        name: str = "",
        page: int = PAGE,
    ) -> AsyncIterator[T]:
        """Async version of ``track``, for asynchronous and ordinary iterables and querysets.

        Without ``atomic``: Django's transactions are synchronous.
        """
        source, policy = Source(items, key, total, page), loops.Policy(every, interval, self._interval)
        state, runner = self._state, self._runner
        return runner.track(
            loops.aloop(state, source, state.begin(name), policy, lambda: runner.ado(runner.autosave()))
        )
