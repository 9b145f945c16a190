"""The decorator ``idempotent``. The first call with a key runs and its result is kept; every repeat gets that result.

It follows the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header-07) and
Stripe's API.

Rule of this file: the decorator and nothing else; ``policy`` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from goscope_django.conf import OnError
from goscope_django.core import arguments, decorating
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import is_async_dispatch
from goscope_django.core.flow import acarry_out, carry_out
from goscope_django.idempotency.attempt import Attempt, running
from goscope_django.idempotency.policy import Policy

P = ParamSpec("P")
R = TypeVar("R")
OnConflict = Literal["reject", "wait"]


def current() -> Attempt | None:
    """The attempt whose work runs here (the innermost one), else ``None``. In a view also ``request.idempotency``.

    Raises nothing and sends nothing.
    """
    return running.get()


def idempotent(
    timeout: Duration = 86_400,
    required: bool = False,
    key: str | Callable[..., Any] | None = None,
    user: Any = None,
    lease: Duration | None = None,
    on_error: OnError | None = None,
    atomic: str | None = None,
    *,
    on_conflict: OnConflict = "reject",
    blocking_timeout: Duration = 10,
    fingerprint: bool | Callable[..., Any] | None = None,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a view or a function, ``def`` or ``async def``: it runs once for each key.

    A *view* (anything that is called with a request) reads the ``Idempotency-Key`` header of POST and PATCH. Without
    the header it runs as usual, or gives 400 if ``required``. ``key(request)`` replaces the header. ``user`` (a value
    or ``user(request)``) says to whom the key belongs. A *function* needs ``key``: a text that names its parameters
    (``"charge:{order_id}"``) or a function of its arguments. Any result is kept, also ``None`` and ``False``. Records
    belong to the function by its module and qualified name; ``name`` replaces these. A function that is made inside
    another one, or a lambda, shares its qualified name with others: with ``key`` it needs a ``name``.

    ``timeout`` is how long a result is kept, ``lease`` how long a claim outlives its worker (``DEFAULT_LOCK_TIMEOUT``
    if not given), ``blocking_timeout`` how long ``on_conflict="wait"`` waits for the result of a running call. All
    three are seconds or a ``timedelta``. With ``on_error="ignore"`` the function also runs while MongoDB can't be
    reached. ``fingerprint`` tells payloads apart: of a view the whole request, or what a function of the request
    returns; of a function its arguments if ``True``, or what a function of them returns.

    ``atomic`` is the alias of a database of ``django_mongodb_backend``. The call then runs in that backend's
    transaction, or joins the open one, and the result is stored in it: what the function wrote and its result are there
    together or not at all. It needs ``GOSCOPE["URL"] = "django://<alias>"`` and a replica set, and raises
    ``ImproperlyConfigured`` for anything else, ``async def`` included. A response that is not kept rolls the
    transaction back; a transaction that was open before is left to whoever opened it. Errors of the transaction are
    raised as they are: those with the label ``TransientTransactionError`` say that the whole call may be tried again.

    A view answers errors with ``application/problem+json``: 400, 409 (with ``Retry-After``), 422 or 503. A function
    raises ``IdempotencyConflict``, ``IdempotencyMismatch``, ``IdempotencyError`` (done, but the result was not kept) or
    ``StoreError``. Claiming a key is atomic. A first run costs two round trips, a repeat one; with
    ``atomic`` four, the commit included.
    """
    decorating.no_function(timeout, "idempotent", "@idempotent()")
    told = Policy(
        timeout=timeout,
        required=required,
        key=key,
        user=user,
        lease=lease,
        on_error=on_error,
        atomic=atomic,
        on_conflict=on_conflict,
        blocking_timeout=blocking_timeout,
        fingerprint=fingerprint,
        name=name,
    )

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        arguments.named_function(func, "idempotent()")
        if iscoroutinefunction(func):
            told.refuse_async()
        policy = told.on(func)
        if iscoroutinefunction(func):

            @wraps(func)
            async def awrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await acarry_out(policy.of(func, args, kwargs))

            return cast("Callable[P, R]", awrapper)

        @wraps(func)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_async_dispatch(func, args):
                policy.refuse_async()
                return cast("R", acarry_out(policy.of(func, args, kwargs)))
            return cast("R", carry_out(policy.of(func, args, kwargs)))

        return wrapper

    return decorate
