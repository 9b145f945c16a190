"""``single_flight``: identical calls that run at the same time, on any machine, run once and share the outcome.

One caller leads: it runs the function and publishes what came of it. All others wait for that. Rules of this file:

* It is deduplication, not mutual exclusion. Whenever something is in the way (time, the server, a result that can't be
  shared) the function runs for this caller alone. Nobody gets an answer that may not be theirs.
* What a function returned or raised is never replaced by a failure to share it.
* ``Policy`` names the flight of a call, ``Plan`` decides what an outcome means, ``group`` knows who waits here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import is_async_dispatch
from goscope_django.core.flow import Call, Flow, acarry_out, call, carry_out, invoke, last_call
from goscope_django.exceptions import StoreError
from goscope_django.http import requests, responses
from goscope_django.mongodb.single_flight.values import Entered
from goscope_django.process import renewal, transactions
from goscope_django.single_flight.group import Entry, Signal, group
from goscope_django.single_flight.plan import BYPASS, Bypass, Landed, Plan, Variant, marked
from goscope_django.single_flight.policy import Policy

P = ParamSpec("P")
R = TypeVar("R")

_leading: ContextVar[frozenset[object]] = ContextVar("goscope_leading", default=frozenset())


def single_flight(
    timeout: Duration = 5,
    blocking_timeout: Duration = 10,
    key: str | Callable[..., str | None] | None = None,
    user: Any = None,
    linger: Duration = 1,
    on_error: str | None = None,
    ignore_reads: Iterable[str] = (),
    *,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: identical concurrent calls run once in all processes and share what is returned or raised.

    For views (functions, methods, class-based and REST framework's, also ``async def``), and for any function if there
    is a ``key``: a text that may name the call's arguments (``"report:{year}"``), or a function of them that gives one
    (``None``: this call is not shared). Flights belong to the function by its module and qualified name; ``name``
    replaces these. A function that is made inside another one shares that name with others: with ``key`` it needs a
    ``name``.

    ``timeout``, ``blocking_timeout`` and ``linger`` are seconds (int or float) or a ``timedelta``. ``timeout`` is the
    lease, renewed while the function runs: how long callers wait for a leader that died. ``blocking_timeout`` is how
    long a caller waits before it runs the function itself. ``linger`` is how long a result is kept for those that were
    waiting when it was published. ``user`` (a value or a function of the request) replaces what tells callers apart.
    ``on_error`` is ``"raise"``, or ``"ignore"``: the function runs unshared while MongoDB can't be reached.

    A view's result goes only to callers that are alike in all that the view read of cookies, headers, ``META`` and
    attributes that middleware put on the request; others have a flight of their own. ``ignore_reads`` are names (of
    headers, cookies or attributes) in which they may differ all the same.

    Taking the lead is atomic. Two round trips for a leader, one to lead and one to publish; a process that waits sends
    one for each look, however many callers wait in it. Raises ``InvalidType`` for a call that has neither a request nor
    a ``key``, and ``StoreUnavailable`` or ``OutcomeUnknown`` while MongoDB can't be reached, unless that is ignored.
    """
    told = Policy(timeout, blocking_timeout, key, user, linger, on_error, ignore_reads, name)

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        arguments.named_function(fn, "single_flight()")
        policy = told.on(fn)
        if iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004

            @functools.wraps(fn)
            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                return await acarry_out(_shared(policy, fn, args, kwargs))

            return cast("Callable[P, R]", awrapper)

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if is_async_dispatch(fn, args):
                return acarry_out(_shared(policy, fn, args, kwargs))
            return carry_out(_shared(policy, fn, args, kwargs))

        return cast("Callable[P, R]", wrapper)

    return decorate


def _shared(policy: Policy, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
    """One call: what its flight gives this caller, or what the function does for this caller alone."""
    plan = yield from policy.plan(fn, args, kwargs)
    answer: Any = BYPASS if plan is None else (yield from _fly(plan))
    if plan is not None and isinstance(answer, Variant):
        plan = yield from plan.apart(answer.names)
        answer = yield from _fly(plan)
    if isinstance(answer, (Variant, Bypass)):
        return marked((yield from invoke(fn, *args, **kwargs)), "bypass", plan)
    return answer


def _fly(plan: Plan) -> Flow[Any]:
    """What the flight of ``plan`` gives this caller, ``BYPASS`` or a ``Variant``."""
    loop = yield from call(_no_loop, asyncio.get_running_loop)
    while not _alone(plan):
        entry, waiter = group.enter(plan.place, loop)
        since = None
        if waiter is not None:
            answer = yield from group.answer(entry, waiter, plan.deadline)
            if answer is Signal.AGAIN:
                continue
            if answer is not Signal.PROMOTED:
                return (yield from _accepted(plan, answer))
            since = entry.known_to(waiter)
        enter, aenter = plan.provider.enter, plan.provider.aenter
        try:
            entered = yield from call(enter, aenter, plan.key, plan.terms, since, plan.pace(entry), plan.deadline)
        except StoreError as error:
            group.settle(entry, error)
            return plan.without_server(error)
        except BaseException:
            group.leave(entry)
            raise
        plan.outage.worked()
        if entered.claim is not None:
            return (yield from _Lead(plan, entry, entered, loop).run())
        return (yield from _accepted(plan, _landed(entry, entered)))
    return BYPASS


def _accepted(plan: Plan, answer: Any) -> Flow[Any]:
    """What this caller gets of ``answer``."""
    matching: Variant | bool = True
    if isinstance(answer, Landed) and plan.request is not None and answer.kind != "unshared":
        matching = yield from plan.matches(answer)
    return (yield from invoke(plan.accept, answer, matching))


def _no_loop() -> None:
    """The event loop of a caller on a thread."""


def _alone(plan: Plan) -> bool:
    """Whether to run without the others: time is up, MongoDB can't be reached, or it would wait for itself."""
    return (
        plan.place in _leading.get() or group.undecided(plan.place) or time.monotonic() >= plan.deadline or plan.skips()
    )


def _landed(entry: Entry, entered: Entered) -> Landed | None:
    """Tell this process's waiters what was found; ``None`` if that is nothing and time is up."""
    result = entered.result
    if result is None:
        entry.flight = entered
        group.leave(entry)
        return None
    landed = Landed(result.kind, result.value, result.took)
    group.settle(entry, landed, lambda joined: entered.surely_before(joined, result))
    return landed


class _Lead:
    """One flight that is led here: runs the function, and makes known what came of it."""

    def __init__(self, plan: Plan, entry: Entry, flight: Entered, loop: asyncio.AbstractEventLoop | None) -> None:
        self.plan = plan
        self.entry = entry
        self.flight = flight
        self.loop = loop
        self.kept: renewal.Renewal

    def run(self) -> Flow[Any]:
        plan = self.plan
        self.kept = yield from call(renewal.keep, renewal.akeep, plan.renewable(self.flight), self.flight.sent)
        began, mine = time.monotonic(), _leading.set(_leading.get() | {plan.place})
        trace, used = requests.watch(plan.request) if plan.request is not None else None, None
        try:
            try:
                # Not by ``invoke``: when it passes a generator, a StopIteration becomes a RuntimeError.
                result = yield Call(plan.fn, plan.fn, *plan.args, **plan.kwargs)
                if plan.request is not None:
                    result = yield from call(responses.render, responses.arender, plan.request, result)
            finally:
                with contextlib.suppress(ValueError):  # closed in another context than it ran in
                    _leading.reset(mine)
                used = trace.end() if trace is not None else None
        except GeneratorExit:  # nothing can be awaited any more: the lease ends by itself
            self.kept.stop()
            group.conclude(self.entry, self.flight, None)
            raise
        except Exception as error:
            yield from self._end((yield from plan.failed(error, used, time.monotonic() - began)))
            raise
        except BaseException:
            yield from self._end(None)
            raise
        landed = yield from plan.land(result, used, time.monotonic() - began)
        group.close(self.entry)
        if not self._deferred(landed):
            yield from self._end(landed)
        return marked(result, "bypass" if landed.kind == "unshared" else "leader", plan)

    def _deferred(self, landed: Landed) -> bool:
        """Leave the publication to the commit, if there is one to come. What is not shared need not wait for it.

        In a task a transaction is seen only if it was begun on the event loop's own thread.
        """
        loop, plan = self.loop, self.plan
        if landed.kind == "unshared" or plan.doomed(landed) or not transactions.in_transaction():
            return False
        forget = group.decide_later(plan.place) if loop is None else lambda: None

        def end(outcome: Landed | None) -> None:
            forget()
            if loop is None:
                carry_out(self._conclude(outcome))
            else:
                asyncio.run_coroutine_threadsafe(acarry_out(self._conclude(outcome)), loop)

        if transactions.after_commit(lambda: end(landed), lambda: end(None)):
            return True
        forget()
        return False

    def _end(self, landed: Landed | None) -> Flow[None]:
        """``_conclude``, to its end even if the task is cancelled meanwhile."""
        yield from last_call(carry_out, acarry_out, self._conclude(landed))

    def _conclude(self, landed: Landed | None) -> Flow[None]:
        """Make the outcome known, or with ``None`` let somebody else lead."""
        plan, provider, answer = self.plan, self.plan.provider, landed
        group.close(self.entry)
        self.kept.stop()
        try:
            if landed is None:
                yield from call(provider.abort, provider.aabort, plan.key, self.flight, plan.terms)
            else:
                said: object
                try:
                    said = yield from self._publish(landed)
                except StoreError:
                    raise
                except Exception as error:  # noqa: BLE001 - the driver refuses what BSON can't hold in many ways
                    said = error
                answer = plan.published(said, landed)
                if answer is not landed:
                    yield from self._publish(answer)
        except StoreError as error:
            plan.not_published(error)
        finally:
            group.conclude(self.entry, self.flight, answer)

    def _publish(self, landed: Landed) -> Flow[Any]:
        plan, provider = self.plan, self.plan.provider
        parts = (landed.kind, landed.value, landed.took)
        return (yield from call(provider.publish, provider.apublish, plan.key, self.flight, *parts, plan.terms))
