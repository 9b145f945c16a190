"""Decides what ``idempotent`` does: run, replay, wait or refuse. The same flows serve views and functions.

Rules of this file:

* Another payload under the same key is refused first (422), then a call while the first one runs (409); otherwise the
  result is replayed.
* The view's answer is kept, client errors included. Not kept, so that a repeat runs: server errors, exceptions, and
  401, 403 and 429. What this module itself answers is not kept either.
* Work that was done but whose answer can't be kept (a large or streaming response) is recorded as done: it never runs
  again.
* Inside a transaction the result is recorded after the commit. A rollback gives the claim up. While it is unknown
  whether it was committed, the claim is left to its lease.
* With ``atomic=`` the result is recorded in the transaction. The claim goes after its commit or rollback; where nobody
  can say which it was, with its lease.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from django.db.transaction import TransactionManagementError

from goscope_django import conf, runtime
from goscope_django.contracts import IdempotencyClaim
from goscope_django.core import arguments, decorating
from goscope_django.core.arguments import Duration
from goscope_django.core.decorating import Template
from goscope_django.core.flow import Flow, Pause, call, carry_out, invoke, perform
from goscope_django.exceptions import (
    ClaimLost,
    ConfigurationError,
    IdempotencyError,
    InvalidType,
    InvalidValue,
    StoreError,
    Undecodable,
    told,
)
from goscope_django.http import requests, responses
from goscope_django.http.problems import problem
from goscope_django.idempotency import answers, payload
from goscope_django.idempotency.attempt import Attempt, logger, running
from goscope_django.mongodb.document.failures import of_the_driver
from goscope_django.mongodb.driver.commits import is_transient
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyProvider
from goscope_django.process import counters, holder, transactions
from goscope_django.process.backend_session import atomic, mongodb_session, require_store
from goscope_django.process.outage import outage

METHODS: Final = frozenset({"POST", "PATCH"})
AWAY: Final = 5
"""Seconds after which to try again while MongoDB can't be reached."""

_PAUSE: Final = (0.02, 0.25)
"""Seconds between two looks of a caller that waits: the first pause, and the longest."""


def _no_transaction(*_: Any, **__: Any) -> bool:
    """Async version of ``after_commit``: a coroutine is in no transaction of Django."""
    return False


class Policy:
    """What one decorator was told, checked. Raises ``InvalidType`` or ``InvalidValue``, naming the argument."""

    def __init__(
        self,
        *,
        timeout: Duration,
        required: bool,
        key: Any,
        user: Any,
        lease: Duration | None,
        on_error: str | None,
        atomic: str | None,
        on_conflict: str,
        blocking_timeout: Duration,
        fingerprint: Any,
        name: str | None = None,
    ) -> None:
        self.timeout = arguments.duration_milliseconds(timeout, "timeout")
        self.lease = None if lease is None else arguments.duration_milliseconds(lease, "lease")
        patience = arguments.duration_seconds(blocking_timeout, "blocking_timeout", zero=True)
        if key is not None and not isinstance(key, str) and not callable(key):
            raise InvalidType(f"key={key!r:.80}: a text that names parameters, or a function, is needed")
        if fingerprint is not None and not isinstance(fingerprint, bool) and not callable(fingerprint):
            raise InvalidType(f"fingerprint={fingerprint!r:.80}: True, False or a function is needed")
        if on_error is not None:
            conf.on_error(on_error, "on_error")
        if on_conflict not in ("reject", "wait"):
            raise InvalidValue(f"on_conflict={on_conflict!r:.80}: 'reject' or 'wait' is allowed")
        if atomic is not None and on_error == "ignore":
            raise InvalidValue("on_error='ignore' and atomic=: without MongoDB there is no transaction")
        self.atomic = None if atomic is None else arguments.key(atomic, "atomic")
        self.required = arguments.flag(required, "required")
        self.key = key
        self.user = user
        self.ignore = on_error == "ignore"
        self.wait = patience if on_conflict == "wait" else 0.0
        self.fingerprint = fingerprint
        self.name = None if name is None else arguments.key(name, "name")

    def on(self, func: Callable[..., Any]) -> Policy:
        """This policy for ``func``. Raises ``InvalidValue`` for a key that names none of its parameters."""
        one = copy.copy(self)
        one.key = decorating.keyed(self.key, func, "idempotent(): key")
        if self.key is not None:
            decorating.own_name(func, self.name, "idempotent()")
        if self.name is None:
            one.name = f"{func.__module__}.{getattr(func, '__qualname__', type(func).__qualname__)}"
        return one

    def of(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow[Any]:
        """The flow of one call."""
        if self.atomic is not None:
            require_store(self.atomic, f"idempotent(atomic={self.atomic!r})")
        request = requests.find(args, kwargs)
        work = invoke(func, *args, **kwargs)
        if request is None:
            return self._function(func, args, kwargs, work)
        one = self
        if isinstance(self.key, Template):
            if self.key.constant is not None:
                raise InvalidType(f"key={self.key.constant!r:.80}: all requests would have this key; name a parameter")
            one = copy.copy(self)
            one.key = lambda _: self.key(*args, **kwargs)
        return one._view(request, work)

    def refuse_async(self) -> None:
        """Raise ``ImproperlyConfigured`` (``BadSettings``) with ``atomic=``: those transactions are synchronous."""
        if self.atomic is not None:
            raise conf.BadSettings(
                f"idempotent(atomic={self.atomic!r}): a function or view that is `async def` can't take part in a "
                f"transaction of django_mongodb_backend; write it as `def`"
            )

    # Views

    def _view(self, request: Any, work: Flow[Any]) -> Flow[Any]:
        inner: Any = requests.plain(request)
        if isinstance(getattr(inner, "idempotency", None), Attempt):
            return (yield from work)  # decorated twice: the outer claim holds
        inner.idempotency = None
        if inner.method not in METHODS:
            return (yield from work)
        try:
            key = self._key_of(request)
        except InvalidValue as error:
            return problem(400, "idempotency-key-malformed", "Idempotency-Key is malformed", str(error))
        if key is None:
            if not self.required:
                return (yield from work)
            detail = f"This operation needs an {payload.HEADER} header, so that a repeat does no harm."
            return problem(400, "idempotency-key-missing", "Idempotency-Key is missing", detail)
        caller = yield from requests.caller(request, self.user, alone=True)
        name = payload.stored_key(request, key, caller.scope)
        seen = None if self.fingerprint is False else self._fingerprint_of(request)
        try:
            found = yield from self._begin(name, key, seen)
        except Undecodable as error:
            logger.error("the record of %.200r can't be read: %s", name, error)
            return answers.not_kept()
        except StoreError as error:
            logger.error("no claim on %.200r: %s", name, error)
            detail = "The request was not carried out, since it could not be recorded. Try again."
            return problem(503, "idempotency-unavailable", "Temporarily unavailable", detail, retry_after=AWAY)
        if found is None:
            return (yield from work)
        if not isinstance(found, Attempt):
            return answers.answer(name, found)
        inner.idempotency = found
        with holder.serving(inner):
            if self.atomic is not None:
                rendered = self._rendered(request, work)
                done = yield from self._once(found, seen, rendered, answers.kept_if_any)
                return done.value if isinstance(done, Done) else answers.answer(name, done)
            return (yield from self._attempted(request, found, work))

    def _key_of(self, request: Any) -> str | None:
        if self.key is None:
            header = requests.plain(request).headers.get(payload.HEADER)
            return None if header is None else payload.parse_key(header)
        key = self.key(request)
        return None if key is None else arguments.key(key)

    def _fingerprint_of(self, request: Any) -> str:
        if callable(self.fingerprint):
            return _condensed(self.fingerprint(request))
        return payload.fingerprint(request)

    def _attempted(self, request: Any, attempt: Attempt, work: Flow[Any]) -> Flow[Any]:
        try:
            response = yield from _working(attempt, self._rendered(request, work))
        except ClaimLost as error:
            if error.key != attempt.key:
                raise
            return answers.undone()
        if not answers.is_kept(response):
            yield from attempt.abandon()
            return response
        value = answers.kept(response)

        def done() -> None:
            carry_out(self._record(attempt, value, response))

        if (yield from self._deferred(attempt, done)):
            return response
        return (yield from self._record(attempt, value, response))

    def _rendered(self, request: Any, work: Flow[Any]) -> Flow[Any]:
        response = yield from work
        if responses.is_response(response):
            return (yield from call(responses.render, responses.arender, request, response))
        return response

    def _record(self, attempt: Attempt, value: Any, response: Any) -> Flow[Any]:
        together = attempt.in_transaction
        if (yield from _stored(attempt, value)):
            return response
        if together:
            return answers.undone()
        if responses.is_response(response):
            response[answers.STORED] = "false"
        return response

    # Functions

    def _function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], work: Flow[Any]
    ) -> Flow[Any]:
        key, seen = self._call_of(func, args, kwargs)
        name = f"{self.name} {key}"
        try:
            found = yield from self._begin(name, key, seen)
        except Undecodable as error:
            raise IdempotencyError(
                f"idempotency key {key!r:.200} is done, but its result can't be read", key=key
            ) from error
        if found is None:
            return (yield from work)
        if not isinstance(found, Attempt):
            return answers.result_of(name, key, found)
        if self.atomic is not None:
            one = yield from self._once(found, seen, work, lambda value: {"result": value})
            return one.value if isinstance(one, Done) else answers.result_of(name, key, one)
        value = yield from _working(found, work)

        def done() -> None:
            carry_out(_stored(found, {"result": value}))

        if (yield from self._deferred(found, done)):
            return value
        together = found.in_transaction
        if not (yield from _stored(found, {"result": value})) and together:
            raise ClaimLost(f"idempotency key {key!r:.200}: its writes were undone", key=key, retry_after=1.0)
        return value

    def _call_of(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, str | None]:
        """The key of a call, and its fingerprint."""
        if self.key is None:
            raise InvalidType("idempotent(): a function that is called without a request needs key=")
        key = arguments.key(self.key(*args, **kwargs))
        if not self.fingerprint:
            return key, None
        if callable(self.fingerprint):
            return key, _condensed(self.fingerprint(*args, **kwargs))
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        return key, _condensed(bound.arguments)

    # Both

    def _begin(self, name: str, key: str, seen: str | None) -> Flow[Attempt | IdempotencyClaim | None]:
        """Our own attempt, kept alive; else the record that is there; ``None``: run without the server."""
        state = outage("idempotency")
        if self.ignore and state.skips():
            return None
        provider = runtime.adapter().idempotency
        lease = self.lease or round(conf.current().default_lock_timeout * 1_000)
        if self.atomic is not None:
            try:
                provider.transactional()
            except ConfigurationError as error:
                raise conf.BadSettings(f"idempotent(atomic={self.atomic!r}): {error}") from None
        try:
            started, claim = yield from self._claim(provider, name, seen, lease)
        except StoreError as error:
            if not self.ignore:
                raise
            state.failed(error)
            return None
        state.worked()
        if claim.outcome != "started":
            return claim
        attempt = Attempt(provider, name, key, claim, lease, atomic=self.atomic)
        yield from attempt.keep(started)
        counters.count("idempotent_run")
        return attempt

    def _claim(
        self, provider: MongoDBIdempotencyProvider, name: str, seen: str | None, lease: int
    ) -> Flow[tuple[float, IdempotencyClaim]]:
        """When ``begin`` was sent, and what it said. ``on_conflict="wait"`` waits while another call runs."""
        deadline, who = time.monotonic() + self.wait, holder.describe()
        while True:
            started = time.monotonic()
            claim = yield from call(provider.begin, provider.abegin, name, self.timeout, seen, lease, holder=who)
            if claim.token is not None and time.monotonic() - started >= lease / 1_000:
                # The answer came after the end of the lease: somebody else may run by now, so we don't.
                yield from Attempt(provider, name, name, claim, lease).abandon()
                claim = IdempotencyClaim("in_progress", retry_after=0.0)
            if claim.outcome != "in_progress" or started >= deadline:
                return started, claim
            pause, longest = _PAUSE
            while (left := deadline - time.monotonic()) > 0:
                yield from perform(Pause(min(left, pause * random.uniform(0.5, 1.0))))
                if not (yield from call(provider.in_progress, provider.ain_progress, name)):
                    break
                pause = min(longest, pause * 1.5)

    def _once(
        self, attempt: Attempt, seen: str | None, work: Flow[Any], pack: Callable[[Any], dict[str, Any] | None]
    ) -> Flow[Done | IdempotencyClaim]:
        """The work and its record in one transaction; another worker's record if that was first.

        ``pack`` gives what is recorded of a result, ``None`` for one that is not kept.
        """
        alias, ending = str(self.atomic), _Ending(attempt)
        joined = mongodb_session(alias) is not None
        done = Done()
        try:
            with atomic(alias):
                ends = (ending.committed, ending.undone, alias)
                ending.waits = transactions.after_commit(*ends, unknown=attempt.leave_to_lease)
                done.value = yield from _working(attempt, work, give_up=False)
                value = pack(done.value)
                if value is not None:
                    if not self._enter(attempt, value, seen):
                        raise _Overtaken
                    ending.recorded = True
                elif not joined:
                    raise _NotKept
        except _NotKept:
            return done
        except _Overtaken as overtaken:
            if not joined:
                found = _record_of(attempt, seen)
                if found.outcome != "in_progress" or overtaken.conflict is None:
                    return found
            if overtaken.conflict is not None:
                raise overtaken.conflict from None
            raise ClaimLost(
                f"idempotency key {attempt.key!r:.200}: another worker did it; roll this transaction back",
                key=attempt.key,
                retry_after=1.0,
            ) from None
        finally:
            if not ending.waits:
                carry_out(attempt.abandon())
        return done

    def _enter(self, attempt: Attempt, value: dict[str, Any], seen: str | None) -> bool:
        try:
            return attempt.enter(value, self.timeout, seen)
        except Exception as error:
            if is_transient(error):
                raise _Overtaken(error) from error
            if of_the_driver(error) or isinstance(error, TransactionManagementError):
                raise
            logger.error("the result of %.200r can't be kept: %s", attempt.name, told(error))
            return attempt.enter({"dropped": type(error).__name__}, self.timeout, seen)

    def _deferred(self, attempt: Attempt, done: Callable[[], None]) -> Flow[bool]:
        """Whether the end waits for a commit. Then ``done`` is called after it."""

        def undone() -> None:
            carry_out(attempt.abandon())

        # While nobody knows whether the work was committed, its claim is neither completed nor given up.
        unknown = attempt.leave_to_lease
        return bool((yield from call(transactions.after_commit, _no_transaction, done, undone, unknown=unknown)))


class _NotKept(Exception):
    """Leaves the block of a transaction whose result is not kept, so that nothing else of it is."""


class _Overtaken(Exception):
    """Leaves the block of a transaction whose record is there already, or just being written (``conflict``)."""

    def __init__(self, conflict: Exception | None = None) -> None:
        super().__init__(conflict)
        self.conflict = conflict


class Done:
    """What the work gave."""

    value: Any = None


def _record_of(attempt: Attempt, seen: str | None) -> IdempotencyClaim:
    """The record that another worker made meanwhile, as a caller with the fingerprint ``seen`` is told of it."""
    try:
        return attempt.outcome(seen)
    except Undecodable as error:
        logger.error("the record of %.200r can't be read: %s", attempt.name, error)
        return IdempotencyClaim("completed")
    except StoreError as error:
        logger.error("the record of %.200r was not found: %s", attempt.name, error)
        return IdempotencyClaim("in_progress", retry_after=1.0)


class _Ending:
    """What becomes of a claim at the end of the transaction that its result is in."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.recorded = False
        """Whether the result is in the transaction."""
        self.waits = False
        """Whether one of the two functions below will be called, or the outcome of the commit is unknown."""

    def committed(self) -> None:
        carry_out(self._attempt.entered() if self.recorded else self._attempt.abandon())

    def undone(self) -> None:
        carry_out(self._attempt.abandon())


def _working(attempt: Attempt, work: Flow[Any], *, give_up: bool = True) -> Flow[Any]:
    """The work's result; the claim is given up if it raises, unless ``give_up`` is false."""
    token = running.set(attempt)
    try:
        result = yield from work
        if inspect.iscoroutine(result):
            result.close()  # its body has not even begun
            raise InvalidType(f"idempotent(): {attempt.name:.200} gave a coroutine, but is no coroutine function")
        return result
    except GeneratorExit:  # nothing can be awaited any more: the lease ends by itself
        attempt.stop()
        raise
    except BaseException:
        if give_up:
            yield from attempt.abandon()
        raise
    finally:
        with contextlib.suppress(ValueError):  # closed in another context than it ran in
            running.reset(token)


def _stored(attempt: Attempt, value: Any) -> Flow[bool]:
    """Whether the result was recorded. One that can't be kept is recorded as done, without its value."""
    together = attempt.in_transaction
    try:
        try:
            return (yield from attempt.complete(value))
        except StoreError:
            raise
        except Exception as error:
            if together:
                yield from attempt.abandon()
                raise
            logger.error("the result of %.200r can't be kept: %s", attempt.name, told(error))
            value = {"dropped": type(error).__name__}
            return (yield from attempt.complete(value))
    except StoreError as error:
        logger.error("the result of %.200r is not recorded yet: %s", attempt.name, error)
        if together:
            runtime.emit("idempotent_lost", key=attempt.name, token=attempt.token)
        else:
            yield from attempt.complete_later(value)
        return False


def _condensed(given: Any) -> str:
    if isinstance(given, (str, bytes)):
        return hashlib.sha256(given.encode() if isinstance(given, str) else given).hexdigest()
    return payload.of_value(given)
