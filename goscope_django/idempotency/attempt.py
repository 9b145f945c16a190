"""One attempt to do something once. It keeps the claim alive while the work runs, and writes what came of it.

Rules of this file:

* The lease is no longer renewed once the end of the claim is being written, nor while a MongoDB transaction is open.
* With ``atomic=`` the result is stored in the transaction, and the claim's document is not: its renewal goes on until
  the transaction has ended.
* The claim ends whatever happens: completed, given up, or by the end of its lease.
* What could not be written because MongoDB can't be reached is tried again in the background until the lease ends.
  Else work that is done would run again after an outage, or a key be blocked for the rest of its lease.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, TypeVar

from django.db.transaction import TransactionManagementError

from goscope_django import runtime
from goscope_django.contracts import IdempotencyClaim
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, last_call
from goscope_django.exceptions import ClaimLost, ConfigurationError, StoreError
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY, claim_key
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyProvider
from goscope_django.process import renewal
from goscope_django.process.backend_session import mongodb_session, store_database

logger = logging.getLogger("goscope.idempotency")
T = TypeVar("T")
TRANSACTION: Final = 60
"""Seconds that MongoDB gives a transaction, unless its ``transactionLifetimeLimitSeconds`` says otherwise."""


class Attempt:
    """What ``request.idempotency`` and ``current()`` give to the work while it runs.

    ``key`` is the client's or caller's key, ``name`` the stored key. ``token`` is the claim's fencing token: it grows
    with each attempt at one key, so a store that refuses older tokens refuses a worker that has been replaced.
    """

    replayed: Final = False
    """Always: what is replayed runs no work."""

    def __init__(
        self,
        provider: MongoDBIdempotencyProvider,
        name: str,
        key: str,
        claim: IdempotencyClaim,
        lease: int,
        *,
        atomic: str | None = None,
    ) -> None:
        """``idempotent`` makes it.

        :meta private:
        """
        assert claim.token is not None
        assert claim.claim is not None
        self.key = key
        self.token: int = claim.token
        self.name = name
        self._provider = provider
        self._claim = claim.claim
        self._lease = lease
        self._atomic = atomic
        self._session: Any = None
        self._renewal: renewal.Renewal | None = None
        self._renewable = renewal.Renewable(
            provider.store, IDEMPOTENCY, claim_key(provider.flows.full(name)), claim.claim, lease
        )

    def __repr__(self) -> str:
        return f"<idempotent attempt at {self.key!r}, token {self.token}>"

    @property
    def lost(self) -> bool:
        """Whether the claim has ended, or may have: somebody else may run the work. Sends nothing."""
        return self._renewal is not None and not self._renewal.check()

    @property
    def in_transaction(self) -> bool:
        """Whether a MongoDB transaction is open. It will be committed together with the result."""
        return self._session is not None or self._atomic is not None

    @contextlib.contextmanager
    def transaction(self, timeout: Duration = TRANSACTION) -> Iterator[Any]:
        """A ``pymongo`` session whose writes are committed together with the result, or not at all.

        Leaving the block commits nothing yet: that happens when the work has returned. An error that leaves the block
        undoes the writes. ``timeout`` (seconds or a ``timedelta``) is how long the claim is held for it, without
        renewal: if the worker dies, a repeat runs after that. One round trip. Raises ``ConfigurationError`` where there
        are no transactions or with ``atomic=``, which has one already; ``IdempotencyConflict`` if the claim has ended.
        """
        session = carry_out(self._open(timeout))
        try:
            yield session
        except BaseException:
            carry_out(self._undo())
            raise

    @contextlib.asynccontextmanager
    async def atransaction(self, timeout: Duration = TRANSACTION) -> AsyncIterator[Any]:
        """Async version of ``transaction``: an ``AsyncClientSession``."""
        session = await acarry_out(self._open(timeout))
        try:
            yield session
        except BaseException:
            await acarry_out(self._undo())
            raise

    def _open(self, timeout: Duration) -> Flow[Any]:
        milliseconds = arguments.duration_milliseconds(timeout, "timeout")
        if self._session is not None:
            return self._session
        if self._atomic is not None:
            raise ConfigurationError(
                f"idempotent(atomic={self._atomic!r}): the work is in a transaction of Django's connection already; "
                f"what it writes by models is committed together with the result"
            )
        self.stop()
        provider, started = self._provider, time.monotonic()
        try:
            found = yield from call(
                provider.transaction, provider.atransaction, self.name, self.token, milliseconds, claim=self._claim
            )
        except GeneratorExit:
            raise
        except BaseException:
            yield from self.keep(time.monotonic())
            raise
        if found is None:
            raise ClaimLost(
                f"idempotency key {self.key!r}: the claim with token {self.token} has ended",
                key=self.key,
                retry_after=1.0,
            )
        self._session = found
        yield from self._watch(started, milliseconds)
        return found

    def _undo(self) -> Flow[None]:
        if self._session is not None:
            self.stop()
            yield from self._rollback()
            started, provider = time.monotonic(), self._provider
            yield from call(provider.extend, provider.aextend, self.name, self.token, self._lease, claim=self._claim)
            yield from self.keep(started)

    def _rollback(self) -> Flow[None]:
        session, self._session = self._session, None
        if session is not None:
            yield from last_call(self._provider.rollback, self._provider.arollback, session)

    # For the decorator

    def keep(self, started: float) -> Flow[None]:
        """Keep the lease alive. The command that granted it was sent at ``started`` (monotonic seconds).

        :meta private:
        """
        self._renewal = yield from call(renewal.keep, renewal.akeep, self._renewable, started)

    def _watch(self, started: float, milliseconds: int) -> Flow[None]:
        """Know when a lease of ``milliseconds`` ends, without renewing it."""
        watched = replace(self._renewable, milliseconds=milliseconds)
        self._renewal = yield from call(renewal.keep, renewal.akeep, watched, started, renew=False)

    def stop(self) -> None:
        """Renew the lease no more: without another word the claim ends with it. Sends nothing.

        :meta private:
        """
        if self._renewal is not None:
            self._renewal.stop()

    def leave_to_lease(self) -> None:
        """Neither complete the claim nor give it up: repeats find it running until its lease ends. Sends nothing.

        :meta private:
        """
        self.stop()
        logger.warning("whether the work of %.200r was committed is unknown: its claim ends with its lease", self.name)

    def complete(self, value: Any) -> Flow[bool]:
        """Store the result, in the open transaction if there is one. ``False``, and an event, if the claim was lost.

        :meta private:
        """
        self.stop()
        provider, session, self._session = self._provider, self._session, None
        if session is None:
            stored = yield from last_call(
                provider.complete, provider.acomplete, self.name, self.token, value, claim=self._claim
            )
        else:
            try:
                stored = yield from last_call(
                    provider.complete_within,
                    provider.acomplete_within,
                    *(session, self.name, self.token, value),
                    claim=self._claim,
                )
            except GeneratorExit:
                raise
            except BaseException:
                yield from last_call(provider.rollback, provider.arollback, session)
                raise
        if not stored:
            runtime.emit("idempotent_lost", key=self.name, token=self.token)
        return bool(stored)

    def enter(self, value: Any, retention: int, fingerprint: str | None) -> bool:
        """Store the result in the transaction that is open on the database of ``atomic=``. One command.

        ``False``, and an event, if another worker's result is there. The renewal goes on until the transaction ends.

        :meta private:
        """
        assert self._atomic is not None
        database, session = store_database(self._atomic), mongodb_session(self._atomic)
        if session is None:
            raise TransactionManagementError(
                f"idempotency key {self.key!r:.200}: the work ended the transaction, before its result was stored"
            )
        if self._provider.enter(database, session, self.name, self.token, value, retention, fingerprint):
            return True
        runtime.emit("idempotent_lost", key=self.name, token=self.token)
        return False

    def outcome(self, fingerprint: str | None) -> IdempotencyClaim:
        """What a caller with ``fingerprint`` is told of the record that another worker made. One command.

        :meta private:
        """
        return self._provider.outcome(self.name, fingerprint)

    def entered(self) -> Flow[None]:
        """The transaction with the result is committed: remove the claim, or leave it to its lease.

        :meta private:
        """
        self.stop()
        entered = self._provider.entered
        try:
            yield from last_call(entered, entered, self.name, self.token)
        except StoreError as error:
            logger.warning("the claim on %.200r, which is done, ends with its lease: %s", self.name, error)
            yield from self._later(lambda: call(entered, entered, self.name, self.token))

    def abandon(self) -> Flow[None]:
        """Give the claim up, so that a repeat runs at once; if MongoDB can't be reached, as soon as it answers, or at
        the end of the lease.

        :meta private:
        """
        self.stop()
        try:
            yield from self._rollback()
            yield from last_call(*self._abandoning(), self.name, self.token, claim=self._claim)
        except StoreError as error:
            logger.warning("the claim on %.200r could not be given up and ends with its lease: %s", self.name, error)
            yield from self._later(lambda: call(*self._abandoning(), self.name, self.token, claim=self._claim))

    def _abandoning(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return self._provider.abandon, self._provider.aabandon

    def complete_later(self, value: Any) -> Flow[None]:
        """After a ``complete`` that failed: store the result as soon as MongoDB answers. An event if the lease ends
        before that, since a repeat runs then.

        :meta private:
        """
        provider, recorded = self._provider, False

        def again() -> Flow[None]:
            nonlocal recorded
            recorded = yield from call(
                provider.complete, provider.acomplete, self.name, self.token, value, claim=self._claim
            )
            if not recorded:  # unless an attempt whose answer did not arrive has stored it
                recorded = yield from call(
                    provider.completed, provider.acompleted, self.name, self.token, claim=self._claim
                )

        def over() -> None:
            if recorded:
                logger.info("the result of %.200r is recorded after all", self.name)
            else:
                runtime.emit("idempotent_lost", key=self.name, token=self.token)

        yield from self._later(again, over)

    def _later(self, again: Callable[[], Flow[Any]], over: Callable[[], None] | None = None) -> Flow[None]:
        """Carry ``again`` out in the background until it does not raise, or the lease has ended; then call ``over``."""
        kept = self._renewal
        left = 0.0 if kept is None else kept.deadline - renewal.now()
        if left <= 0:
            if over is not None:
                over()
            return
        end = time.monotonic() + left

        def attempt() -> Flow[bool]:
            with within(end - time.monotonic()):
                yield from again()
            return False

        what = renewal.GivenBack(
            self.name,
            str(self.token),
            max(1, int(left * 1_000)),
            lambda: carry_out(attempt()),
            lambda: acarry_out(attempt()),
        )
        yield from renewal.give_back_later(what, over)


running: ContextVar[Attempt | None] = ContextVar("goscope_idempotent_attempt", default=None)
"""The attempt whose work runs in this context."""
