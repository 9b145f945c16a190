"""Circuit breakers that a whole fleet shares.

``CircuitBreaker`` guards calls to something that may fail; ``force_open``, ``force_close`` and ``reset`` are an
operator's, ``list_circuits`` and ``get_circuit`` an observer's. Constructing a breaker or looking at one never
writes.

A call through a closed circuit sends nothing. A failure is one command, so is the first success after one; each
process reads all circuits in use at most once a second, together. If the store is away a breaker goes on with this
process's own state, which the events ``degraded`` and ``recovered`` tell once each.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from time import monotonic
from types import CoroutineType, TracebackType
from typing import Any, Final, ParamSpec, Self, TypedDict, TypeVar, Unpack, cast

from goscope_django.circuits import registry as breaker_registry
from goscope_django.circuits.operators import (
    named,
)
from goscope_django.circuits.outcomes import Exclude, Judge, Outcome, asynchronous
from goscope_django.circuits.registry import Registry
from goscope_django.circuits.snapshot import Options, Snapshot, View
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import finished
from goscope_django.core.flow import arun, run
from goscope_django.exceptions import CircuitOpen, InvalidType, InvalidValue

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
MOST_FAILURES: Final = 10_000
"""Upper limit of ``failure_threshold``: the failures that count stand in the circuit's document."""

_entered: ContextVar[tuple[tuple[CircuitBreaker, Snapshot], ...]] = ContextVar("goscope_circuits", default=())


class BreakerOptions(TypedDict, total=False):
    """The keyword arguments of ``CircuitBreaker``."""

    failure_threshold: int
    reset_timeout: Duration
    success_threshold: int
    half_open_max_calls: int
    window: Duration
    probe_timeout: Duration | None
    exclude: Exclude | tuple[Exclude, ...]
    fallback: Callable[..., Any] | None


class CircuitBreaker:
    """Guards calls by the circuit ``name``, whose state all processes share.

    It opens at ``failure_threshold`` failures without a success between them, none older than ``window`` (seconds or
    a ``timedelta``). It then refuses calls with ``CircuitOpen`` for ``reset_timeout`` (seconds), by the server's
    time; after that at most ``half_open_max_calls`` trial calls run at a time in the whole fleet, each for at most
    ``probe_timeout`` (seconds; ``DEFAULT_LOCK_TIMEOUT`` if ``None``), after which its place is given to another.
    ``success_threshold`` of them that succeed close the circuit; one that fails opens it again.

    ``exclude`` is an exception class, a function that tells of an exception whether to ignore it, or a tuple of
    these. Ignored are also cancellation, ``GeneratorExit``, ``KeyboardInterrupt`` and ``SystemExit``; any other
    exception is a failure.

    ``fallback(*args, **kwargs)`` is called with the call's arguments, and its result returned, where the circuit
    refuses a call; a failing call still raises. A context manager has no result, so it raises ``CircuitOpen`` all the
    same.

    Use ``call``, ``acall``, the breaker as a decorator (functions, methods, views, ``async def``) or as a context
    manager of either kind, which is entered and left in one thread or task. Two breakers of one name share the
    circuit, and each goes by its own options. Raises ``InvalidType`` or ``InvalidValue`` for a bad argument; opens no
    connection.
    """

    __slots__ = ("_fallback", "_judge", "_options", "_probe_timeout", "_view", "name")

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int = 5,
        reset_timeout: Duration = 30,
        success_threshold: int = 1,
        half_open_max_calls: int = 1,
        window: Duration = 60,
        probe_timeout: Duration | None = None,
        exclude: Exclude | tuple[Exclude, ...] = (),
        fallback: Callable[..., Any] | None = None,
    ) -> None:
        self.name = named(name)
        if arguments.count(failure_threshold, "failure_threshold") > MOST_FAILURES:
            raise InvalidValue(f"failure_threshold={failure_threshold!r}: at most {MOST_FAILURES}")
        self._options = Options(
            failure_threshold,
            arguments.duration_seconds(reset_timeout, "reset_timeout"),
            arguments.count(success_threshold, "success_threshold"),
            arguments.count(half_open_max_calls, "half_open_max_calls"),
            arguments.duration_seconds(window, "window"),
        )
        self._probe_timeout = (
            None if probe_timeout is None else arguments.duration_seconds(probe_timeout, "probe_timeout")
        )
        self._judge = Judge(name, exclude)
        if fallback is not None and not callable(fallback):
            raise InvalidType(f"fallback={fallback!r:.80}: a function or None is needed")
        self._fallback = fallback
        self._view = View(name)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r}>"

    # ---- calls. The first lines are the hot path: no lock, no command, one look at the clock. ----

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``fn`` with these arguments, if the circuit lets it; its result.

        Raises ``CircuitOpen`` (``retry_after`` in seconds), and whatever ``fn`` raises. Closed: no round trip; else
        at most one before and one after. If ``fn`` gives a coroutine, the outcome is that of awaiting it.
        """
        view = self._view
        view.used = now = monotonic()
        snap = view.snap
        if now >= snap.closed_until:
            try:
                snap = self._enter()
            except CircuitOpen:
                if self._fallback is None:
                    raise
                return cast("T", self._fallback(*args, **kwargs))
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            self._leave(snap, self._judge.outcome(error))
            raise
        if type(result) is CoroutineType:
            return cast("T", self._awaited(snap, cast("Awaitable[Any]", result)))
        if self._view.snap.failures or snap.probe is not None:
            self._leave(snap, "success")
        return result

    async def acall(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Asynchronous twin of ``call``, for an ``async def`` function; natively in the running loop."""
        view = self._view
        view.used = now = monotonic()
        snap = view.snap
        if now >= snap.closed_until:
            try:
                snap = await self._aenter()
            except CircuitOpen:
                if self._fallback is None:
                    raise
                instead = self._fallback(*args, **kwargs)
                return cast("T", await instead if isinstance(instead, Awaitable) else instead)
        try:
            result = await fn(*args, **kwargs)
        except GeneratorExit:
            raise  # closed from outside the loop: nothing can be awaited; a probe's lease ends by itself
        except BaseException as error:
            await self._aleave(snap, self._judge.outcome(error))
            raise
        if self._view.snap.failures or snap.probe is not None:
            await self._aleave(snap, "success")
        return result

    async def _awaited(self, snap: Snapshot, result: Awaitable[T]) -> T:
        try:
            value = await result
        except GeneratorExit:
            raise
        except BaseException as error:
            await self._aleave(snap, self._judge.outcome(error))
            raise
        if self._view.snap.failures or snap.probe is not None:
            await self._aleave(snap, "success")
        return value

    def __call__(self, fn: F) -> F:
        """Decorate ``fn``, a function or ``async def`` function; its signature stays.

        Raises ``InvalidType`` for a generator function, whose call says nothing: put a ``with`` of the breaker inside.
        """
        arguments.function(fn, f"circuit breaker {self.name!r}")
        if asynchronous(fn):

            @functools.wraps(fn)
            async def guarded(*args: Any, **kwargs: Any) -> Any:
                return await self.acall(fn, *args, **kwargs)
        else:

            @functools.wraps(fn)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                return self.call(fn, *args, **kwargs)

        return cast("F", guarded)

    def __enter__(self) -> Self:
        view = self._view
        view.used = now = monotonic()
        snap = view.snap
        if now >= snap.closed_until:
            snap = self._enter()
        _entered.set((*_entered.get(), (self, snap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        snap = self._entry()
        if snap is None or (error is None and snap.probe is None and not self._view.snap.failures):
            return
        self._leave(snap, "success" if error is None else self._judge.outcome(error))

    async def __aenter__(self) -> Self:
        view = self._view
        view.used = now = monotonic()
        snap = view.snap
        if now >= snap.closed_until:
            snap = await self._aenter()
        _entered.set((*_entered.get(), (self, snap)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        snap = self._entry()
        if snap is None or (error is None and snap.probe is None and not self._view.snap.failures):
            return
        if not isinstance(error, GeneratorExit):
            await self._aleave(snap, "success" if error is None else self._judge.outcome(error))

    def _entry(self) -> Snapshot | None:
        """Take back what the innermost ``with`` of this breaker was admitted as."""
        entries = _entered.get()
        for position in range(len(entries) - 1, -1, -1):
            if entries[position][0] is self:
                _entered.set(entries[:position] + entries[position + 1 :])
                return entries[position][1]
        return None

    # ---- what both colours share ----

    def _attached(self) -> Registry:
        registry = breaker_registry.current()
        self._view = registry.view(self.name)
        return registry

    def _enter(self) -> Snapshot:
        registry = self._attached()
        snap: Snapshot = run(registry.entering(self.name, self._options, self._probe_timeout), registry.do)
        return snap

    async def _aenter(self) -> Snapshot:
        registry = self._attached()
        snap: Snapshot = await arun(registry.entering(self.name, self._options, self._probe_timeout), registry.ado)
        return snap

    def _leave(self, snap: Snapshot, outcome: Outcome) -> None:
        registry = self._attached()
        run(registry.leaving(self.name, snap, outcome, self._options), registry.do)

    async def _aleave(self, snap: Snapshot, outcome: Outcome) -> None:
        registry = self._attached()
        await finished(arun(registry.leaving(self.name, snap, outcome, self._options), registry.ado))


def circuit_breaker(name: str, **options: Unpack[BreakerOptions]) -> CircuitBreaker:
    """A decorator: ``CircuitBreaker(name, **options)``. On a class-based view use it through ``method_decorator``."""
    return CircuitBreaker(name, **options)
