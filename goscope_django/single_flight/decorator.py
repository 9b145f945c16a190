"""``single_flight``: identical calls that run at the same time, anywhere in the fleet, run once and share the outcome.

Rules of this file:

* It is deduplication, not mutual exclusion. Whenever something is in the way (time, the server, an unshareable result)
  the function runs, for this caller alone; nobody gets an answer that may not be theirs.
* What a function returned or raised is never replaced by a failure to share it.
* The two colours differ in ``await`` alone; ``single_flight_plan`` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from goscope_django.core import arguments
from goscope_django.core.colours import finished, is_async_dispatch
from goscope_django.exceptions import StoreError
from goscope_django.http import requests, responses
from goscope_django.mongodb.single_flight.values import Entered
from goscope_django.process import renewal, transactions
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight.group import Entry, Signal
from goscope_django.single_flight.plan import BYPASS, Bypass, Landed, Plan, Variant, marked
from goscope_django.single_flight.policy import Policy, make_policy

P = ParamSpec("P")
R = TypeVar("R")
VARIANTS: Final = 1
"""How often a caller whose headers differ from the leader's looks for a flight of its own kind."""

logger = logging.getLogger("goscope.single_flight")
_leading: ContextVar[frozenset[object]] = ContextVar("goscope_leading", default=frozenset())


def single_flight(
    timeout: float | timedelta = 5,
    blocking_timeout: float | timedelta = 10,
    key: str | Callable[..., str | None] | None = None,
    user: Any = None,
    linger: float | timedelta = 1,
    on_error: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: identical concurrent calls run once in the whole fleet and share what is returned or raised.

    For views (functions, methods, class-based and REST framework's, also ``async def``), and for any function if there
    is a ``key``: a text, or a function of the call's arguments that gives one (``None``: this call is not shared).

    ``timeout`` is the lease in seconds, renewed while the function runs: how long a dead leader is waited for.
    ``blocking_timeout``, in seconds, is how long a caller waits before it runs the function itself. ``linger`` is how
    long a result is kept, in seconds, for those that were waiting when it was published. ``user`` (a value or a
    function of the request) replaces what tells callers apart. ``on_error`` is ``"raise"`` or ``"ignore"`` (run without
    the server).

    One command to lead and one to publish; a process that waits sends one for each look, however many callers it has.
    Raises ``InvalidType`` for a call that is no view's and has no ``key``, and ``StoreUnavailable`` or
    ``OutcomeUnknown`` if the server is away and that is not ignored.
    """
    policy = make_policy(timeout, blocking_timeout, key, user, linger, on_error)

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        arguments.named_function(fn, "single_flight()")
        if iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004

            @functools.wraps(fn)
            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                return await _acall(policy, fn, args, kwargs)

            return cast("Callable[P, R]", awrapper)

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if is_async_dispatch(fn, args):
                return _acall(policy, fn, args, kwargs)
            return _call(policy, fn, args, kwargs)

        return cast("Callable[P, R]", wrapper)

    return decorate


# Synchronous


def _call(policy: Policy, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan = policy.plan(fn, args, kwargs)
    answer: Any = BYPASS if plan is None else _fly(plan)
    for _ in range(VARIANTS):
        if isinstance(answer, Variant) and plan is not None:
            plan = plan.variant(answer)
            answer = _fly(plan)
    if isinstance(answer, (Variant, Bypass)):
        return marked(fn(*args, **kwargs), "bypass", plan)
    return answer


def _fly(plan: Plan) -> Any:
    """What the flight of ``plan`` gives this caller, ``BYPASS`` or a ``Variant``."""
    group = single_flight_group.group
    while not _alone(plan, group):
        entry, waiter = group.enter(plan.place)
        since = None
        if waiter is not None:
            answer = group.answer(entry, waiter, plan.deadline)
            if answer is Signal.AGAIN:
                continue
            if answer is not Signal.PROMOTED:
                return plan.accept(answer)
            since = entry.known_to(waiter)
        try:
            entered = plan.provider.enter(plan.key, plan.terms, since, plan.pace(entry), plan.deadline)
        except StoreError as error:
            group.settle(entry, error)
            return plan.without_server(error)
        except BaseException:
            group.leave(entry)
            raise
        plan.outage.worked()
        if entered.claim is not None:
            return _lead(plan, entry, entered)
        return plan.accept(_landed(plan, group, entry, entered))
    return BYPASS


def _lead(plan: Plan, entry: Entry, flight: Entered) -> Any:
    group = single_flight_group.group
    kept = renewal.keep(plan.renewable(flight), flight.sent)
    began, mine = time.monotonic(), _leading.set(_leading.get() | {plan.place})
    trace, used = requests.watch(plan.request) if plan.request is not None else None, None
    try:
        try:
            result = plan.fn(*plan.args, **plan.kwargs)
            if plan.request is not None:
                result = responses.render(plan.request, result)
        finally:
            _leading.reset(mine)
            used = trace.end() if trace is not None else None
    except Exception as error:
        _conclude(plan, entry, flight, kept, plan.failed(error, used, time.monotonic() - began))
        raise
    except BaseException:
        _conclude(plan, entry, flight, kept, None)
        raise
    landed = plan.land(result, used, time.monotonic() - began)
    group.close(entry)
    if not _deferred(plan, entry, flight, kept, landed):
        _conclude(plan, entry, flight, kept, landed)
    return marked(result, "bypass" if landed.kind == "unshared" else "leader", plan)


def _deferred(plan: Plan, entry: Entry, flight: Entered, kept: renewal.Renewal, landed: Landed) -> bool:
    """Leave the publication to the commit, if there is one to come; what is not shared need not wait for it."""
    if landed.kind == "unshared" or plan.doomed(landed) or not transactions.in_transaction():
        return False
    forget = single_flight_group.group.decide_later(plan.place)

    def end(outcome: Landed | None) -> None:
        forget()
        _conclude(plan, entry, flight, kept, outcome)

    if transactions.after_commit(lambda: end(landed), lambda: end(None)):
        return True
    forget()
    return False


def _conclude(plan: Plan, entry: Entry, flight: Entered, kept: renewal.Renewal, landed: Landed | None) -> None:
    """Make the outcome known, or with ``None`` let somebody else lead."""
    group = single_flight_group.group
    group.close(entry)
    kept.stop()
    answer = landed
    try:
        if landed is None:
            plan.provider.abort(plan.key, flight, plan.terms)
        else:
            try:
                said: object = plan.provider.publish(plan.key, flight, *landed.parts(), plan.terms)
            except Exception as error:  # noqa: BLE001 - the driver refuses what BSON can't hold in many ways
                said = plan.refused(error)
            answer = plan.published(said, landed)
            if answer is not landed:
                plan.provider.publish(plan.key, flight, *answer.parts(), plan.terms)
    except StoreError as error:
        plan.not_published(error)
    finally:
        group.conclude(entry, flight, answer)


# Asynchronous


async def _acall(policy: Policy, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan = await policy.aplan(fn, args, kwargs)
    answer: Any = BYPASS if plan is None else await _afly(plan)
    for _ in range(VARIANTS):
        if isinstance(answer, Variant) and plan is not None:
            plan = plan.variant(answer)
            answer = await _afly(plan)
    if isinstance(answer, (Variant, Bypass)):
        return marked(await fn(*args, **kwargs), "bypass", plan)
    return answer


async def _afly(plan: Plan) -> Any:
    group = single_flight_group.group
    while not _alone(plan, group):
        entry, waiter = group.enter(plan.place, asyncio.get_running_loop())
        since = None
        if waiter is not None:
            answer = await group.aanswer(entry, waiter, plan.deadline)
            if answer is Signal.AGAIN:
                continue
            if answer is not Signal.PROMOTED:
                return plan.accept(answer)
            since = entry.known_to(waiter)
        try:
            entered = await plan.provider.aenter(plan.key, plan.terms, since, plan.pace(entry), plan.deadline)
        except StoreError as error:
            group.settle(entry, error)
            return plan.without_server(error)
        except BaseException:
            group.leave(entry)
            raise
        plan.outage.worked()
        if entered.claim is not None:
            return await _alead(plan, entry, entered)
        return plan.accept(_landed(plan, group, entry, entered))
    return BYPASS


async def _alead(plan: Plan, entry: Entry, flight: Entered) -> Any:
    group = single_flight_group.group
    kept = renewal.akeep(plan.renewable(flight), flight.sent)
    began, mine = time.monotonic(), _leading.set(_leading.get() | {plan.place})
    trace, used = requests.watch(plan.request) if plan.request is not None else None, None
    try:
        try:
            result = await plan.fn(*plan.args, **plan.kwargs)
            if plan.request is not None:
                result = await responses.arender(plan.request, result)
        finally:
            with contextlib.suppress(ValueError):  # closed in another context than it ran in
                _leading.reset(mine)
            used = trace.end() if trace is not None else None
    except Exception as error:
        await finished(_aconclude(plan, entry, flight, kept, plan.failed(error, used, time.monotonic() - began)))
        raise
    except GeneratorExit:  # nothing can be awaited any more: the lease ends by itself
        kept.stop()
        group.conclude(entry, flight, None)
        raise
    except BaseException:
        await finished(_aconclude(plan, entry, flight, kept, None))
        raise
    landed = plan.land(result, used, time.monotonic() - began)
    group.close(entry)
    if not _adeferred(plan, entry, flight, kept, landed):
        await finished(_aconclude(plan, entry, flight, kept, landed))
    return marked(result, "bypass" if landed.kind == "unshared" else "leader", plan)


def _adeferred(plan: Plan, entry: Entry, flight: Entered, kept: renewal.Renewal, landed: Landed) -> bool:
    """As ``_deferred``. A transaction is seen here only if it was begun on the event loop's own thread."""
    if landed.kind == "unshared" or plan.doomed(landed) or not transactions.in_transaction():
        return False
    loop = asyncio.get_running_loop()

    def end(outcome: Landed | None) -> None:
        asyncio.run_coroutine_threadsafe(_aconclude(plan, entry, flight, kept, outcome), loop)

    return transactions.after_commit(lambda: end(landed), lambda: end(None))


async def _aconclude(plan: Plan, entry: Entry, flight: Entered, kept: renewal.Renewal, landed: Landed | None) -> None:
    group = single_flight_group.group
    group.close(entry)
    kept.stop()
    answer = landed
    try:
        if landed is None:
            await plan.provider.aabort(plan.key, flight, plan.terms)
        else:
            try:
                said: object = await plan.provider.apublish(plan.key, flight, *landed.parts(), plan.terms)
            except Exception as error:  # noqa: BLE001 - the driver refuses what BSON can't hold in many ways
                said = plan.refused(error)
            answer = plan.published(said, landed)
            if answer is not landed:
                await plan.provider.apublish(plan.key, flight, *answer.parts(), plan.terms)
    except StoreError as error:
        plan.not_published(error)
    finally:
        group.conclude(entry, flight, answer)


def _alone(plan: Plan, group: single_flight_group.Group) -> bool:
    """Whether to run without the others: time is up, the server is away, or one would wait for oneself."""
    return (
        plan.place in _leading.get() or group.undecided(plan.place) or time.monotonic() >= plan.deadline or plan.skips()
    )


def _landed(plan: Plan, group: single_flight_group.Group, entry: Entry, entered: Entered) -> Landed | None:
    """Tell this process's waiters what was found; ``None`` if that is nothing and time is up."""
    result = entered.result
    if result is None:
        entry.flight = entered
        group.leave(entry)
        return None
    landed = Landed(result.kind, result.value, result.took)
    group.settle(entry, landed, lambda joined: entered.surely_before(joined, result))
    return landed
