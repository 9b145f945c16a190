"""``adapter.idempotency``: results by key, with a claim while the work runs.

This file checks arguments; what is sent is in ``flows``. Where a method takes ``claim`` besides ``token``, it is the
random text of the attempt (``IdempotencyClaim.claim``), and both must be the live claim's.
"""

from __future__ import annotations

import builtins
from typing import Any, Final

from goscope_django.contracts import IdempotencyClaim, IdempotencyInfo, IdempotencyRecord, Ttl
from goscope_django.core import arguments
from goscope_django.core.flow import run
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.driver.databases import store_of
from goscope_django.mongodb.driver.execute import SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY, IdempotencyFlows

_NO_TOKEN: Final = -1
"""In place of a number that no claim ever has."""


class MongoDBIdempotencyProvider:
    """``adapter.idempotency``: see ``contracts.IdempotencyProvider``. Each method is one round trip unless said.

    ``key`` is the request's; ``token`` and ``claim`` are those of ``IdempotencyClaim``. ``ttl`` is how long a result is
    kept, ``lease_ttl`` how long a claim holds unless it is extended, both in milliseconds or as a ``timedelta``. Every
    change is atomic. Every method raises ``StoreError`` if MongoDB fails or can't be reached, and ``InvalidType`` or
    ``InvalidValue`` for an argument that can't be used.
    """

    def __init__(self, store: Store, *, key_prefix: str = "", codec: Codec | None = None) -> None:
        """``MongoDBAdapter`` makes it.

        :meta private:
        """
        self.store = store
        self.flows = IdempotencyFlows(key_prefix, codec or Codec(pickle=False))

    def begin(
        self,
        key: str,
        ttl: Ttl,
        fingerprint: str | None = None,
        lease_ttl: Ttl = 60_000,
        *,
        holder: str | None = None,
    ) -> IdempotencyClaim:
        """Claim ``key``, or tell what is there. Atomic: of concurrent calls exactly one is ``started``.

        A key that was used with another ``fingerprint`` is a ``mismatch``; ``holder`` says who claims it, for
        observers. Two round trips where this process remembers a result that is gone, or the claim has to be numbered
        anew. Raises
        ``OutcomeUnknown`` if the connection broke and the outcome can't be asked for, ``Undecodable`` if the stored
        result is damaged, ``InvalidValue`` for a stored key that begins with ``claim:``.
        """
        terms = self._terms(ttl, fingerprint, lease_ttl)
        return self.store.run(self.flows.begin, arguments.key(key), *terms, holder)

    async def abegin(
        self,
        key: str,
        ttl: Ttl,
        fingerprint: str | None = None,
        lease_ttl: Ttl = 60_000,
        *,
        holder: str | None = None,
    ) -> IdempotencyClaim:
        """Async version of ``begin``."""
        return await self.store.arun(
            self.flows.begin, arguments.key(key), *self._terms(ttl, fingerprint, lease_ttl), holder
        )

    def complete(self, key: str, token: int, value: Any, ttl: Ttl | None = None, *, claim: str | None = None) -> bool:
        """Store the result ``value``; ``False`` unless ``token`` is the live claim's.

        It is kept for ``ttl`` (that of ``begin`` if ``None``).

        Raises ``InvalidValue`` for a result that does not fit in 16 MB, ``InvalidType`` for one that can't be stored.
        """
        return self.store.run(
            self.flows.complete, arguments.key(key), self._token(token), value, self._ttl(ttl), None, claim
        )

    async def acomplete(
        self, key: str, token: int, value: Any, ttl: Ttl | None = None, *, claim: str | None = None
    ) -> bool:
        """Async version of ``complete``."""
        return await self.store.arun(
            self.flows.complete, arguments.key(key), self._token(token), value, self._ttl(ttl), None, claim
        )

    def completed(self, key: str, token: int, *, claim: str) -> bool:
        """Whether the result that is there was stored by ``claim`` with ``token``. One command.

        :meta private:
        """
        return self.store.run(self.flows.completed, arguments.key(key), self._token(token), claim)

    async def acompleted(self, key: str, token: int, *, claim: str) -> bool:
        """Async version of ``completed``.

        :meta private:
        """
        return await self.store.arun(self.flows.completed, arguments.key(key), self._token(token), claim)

    def abandon(self, key: str, token: int, *, claim: str | None = None) -> bool:
        """Give the claim up without a result; ``False`` unless ``token`` is the live claim's."""
        return self.store.run(self.flows.abandon, arguments.key(key), self._token(token), claim)

    async def aabandon(self, key: str, token: int, *, claim: str | None = None) -> bool:
        """Async version of ``abandon``."""
        return await self.store.arun(self.flows.abandon, arguments.key(key), self._token(token), claim)

    def extend(self, key: str, token: int, lease_ttl: Ttl, *, claim: str | None = None) -> bool:
        """Let the claim's lease end ``lease_ttl`` from now; ``False`` unless ``token`` is the live claim's."""
        lease = arguments.ttl_milliseconds(lease_ttl, "lease_ttl")
        return self.store.run(self.flows.extend, arguments.key(key), self._token(token), lease, claim)

    async def aextend(self, key: str, token: int, lease_ttl: Ttl, *, claim: str | None = None) -> bool:
        """Async version of ``extend``."""
        lease = arguments.ttl_milliseconds(lease_ttl, "lease_ttl")
        return await self.store.arun(self.flows.extend, arguments.key(key), self._token(token), lease, claim)

    def get(self, key: str) -> IdempotencyRecord | None:
        """The result, or ``None`` if there is none yet or it has expired. A claim in progress is no result."""
        return self.store.run(self.flows.get, arguments.key(key))

    async def aget(self, key: str) -> IdempotencyRecord | None:
        """Async version of ``get``."""
        return await self.store.arun(self.flows.get, arguments.key(key))

    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Store the result ``value`` without a claim, whatever is there. ``ttl=None`` keeps it for good.

        Two round trips where Node stored a result.
        """
        self.store.run(self.flows.set, arguments.key(key), value, self._ttl(ttl))

    async def aset(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Async version of ``set``."""
        await self.store.arun(self.flows.set, arguments.key(key), value, self._ttl(ttl))

    def delete(self, key: str) -> bool:
        """Remove the result, and a claim in progress; ``True`` if there was one."""
        return self.store.run(self.flows.delete, arguments.key(key))

    async def adelete(self, key: str) -> bool:
        """Async version of ``delete``."""
        return await self.store.arun(self.flows.delete, arguments.key(key))

    def in_progress(self, key: str) -> bool:
        """Whether somebody works on ``key`` now, for callers that wait. Reads no value and changes nothing."""
        return self.store.run(self.flows.in_progress, arguments.key(key))

    async def ain_progress(self, key: str) -> bool:
        """Async version of ``in_progress``."""
        return await self.store.arun(self.flows.in_progress, arguments.key(key))

    def list(self, pattern: str | None = None, limit: int = 1_000) -> builtins.list[IdempotencyInfo]:
        """Live claims, then live results, whose whole key matches the regular expression ``pattern``, by key.

        At most ``limit``. Reads a thousand with one command, and never what is stored. The pattern is code, never a
        user's text: see ``contracts``.
        """
        return self.store.run(self.flows.list, arguments.pattern(pattern), arguments.count(limit, "limit"))

    async def alist(self, pattern: str | None = None, limit: int = 1_000) -> builtins.list[IdempotencyInfo]:
        """Async version of ``list``."""
        return await self.store.arun(self.flows.list, arguments.pattern(pattern), arguments.count(limit, "limit"))

    # Within a transaction that somebody else commits, on a client of theirs

    def transactional(self) -> None:
        """Raise ``ConfigurationError`` on a standalone server. Sends nothing once a server is known.

        :meta private:
        """
        self.store.run(self.flows.transactional)

    def enter(
        self, database: Any, session: Any, key: str, token: int, value: Any, ttl: int, fingerprint: str | None
    ) -> bool:
        """Store the result in the transaction of ``session``, on the session's ``database``. ``ttl`` in milliseconds.

        The claim stays as it is: renew it until the transaction has ended, then call ``entered`` after a commit or
        ``abandon`` after a rollback. ``False`` if there is a live result already; roll the transaction back then.
        Raises the driver's errors as they are, ``InvalidValue`` for a result that does not fit in 16 MB. One command.

        :meta private:
        """
        executor = SyncExecutor(database)
        name, number = arguments.key(key), self._token(token)
        return run(self.flows.enter(executor.clock, name, number, value, ttl, fingerprint, session), executor)

    def entered(self, key: str, token: int) -> bool:
        """After the commit: remove the claim. ``False`` if it had ended already; the result stands in any case.

        :meta private:
        """
        return self.store.run(self.flows.entered, arguments.key(key), self._token(token))

    def outcome(self, key: str, fingerprint: str | None = None) -> IdempotencyClaim:
        """What ``begin`` would tell of the record that is there, without a claim. ``in_progress`` if there is none.

        :meta private:
        """
        return self.store.run(self.flows.outcome, arguments.key(key), fingerprint)

    # Within one of MongoDB's transactions

    def transaction(self, key: str, token: int, timeout: Ttl = 60_000, *, claim: str | None = None) -> Any | None:
        """A ``pymongo`` session with a transaction that ``complete_within`` commits; ``None`` if the claim is lost.

        The claim is held for ``timeout`` from now and must not be extended until the transaction ends. Raises
        ``ConfigurationError`` where there are no transactions (standalone server, mongomock).

        :meta private:
        """
        milliseconds = arguments.ttl_milliseconds(timeout, "timeout")
        return self.store.run(self.flows.transaction, arguments.key(key), self._token(token), milliseconds, claim)

    async def atransaction(
        self, key: str, token: int, timeout: Ttl = 60_000, *, claim: str | None = None
    ) -> Any | None:
        """Async version of ``transaction``: an ``AsyncClientSession``.

        :meta private:
        """
        milliseconds = arguments.ttl_milliseconds(timeout, "timeout")
        return await self.store.arun(
            self.flows.transaction, arguments.key(key), self._token(token), milliseconds, claim
        )

    def complete_within(self, session: Any, key: str, token: int, value: Any, *, claim: str | None = None) -> bool:
        """Store the result in the transaction of ``session`` and commit it: all its writes, or none. Two round trips.

        ``False`` if ``token`` is no longer the live claim's; then, and if it raises ``StoreUnavailable``, everything is
        undone. ``OutcomeUnknown`` if the server was lost at the commit; then the stored result tells.

        :meta private:
        """
        return self.store.run(self.flows.complete, arguments.key(key), self._token(token), value, None, session, claim)

    async def acomplete_within(
        self, session: Any, key: str, token: int, value: Any, *, claim: str | None = None
    ) -> bool:
        """Async version of ``complete_within``.

        :meta private:
        """
        return await self.store.arun(
            self.flows.complete, arguments.key(key), self._token(token), value, None, session, claim
        )

    def rollback(self, session: Any) -> None:
        """Undo what was written in ``session`` and end it.

        :meta private:
        """
        self.store.run(self.flows.rollback, session)

    async def arollback(self, session: Any) -> None:
        """Async version of ``rollback``.

        :meta private:
        """
        await self.store.arun(self.flows.rollback, session)

    # Arguments

    @staticmethod
    def _terms(ttl: Ttl, fingerprint: str | None, lease_ttl: Ttl) -> tuple[int, str | None, int]:
        if fingerprint is not None:
            arguments.key(fingerprint, "fingerprint")
        return arguments.ttl_milliseconds(ttl), fingerprint, arguments.ttl_milliseconds(lease_ttl, "lease_ttl")

    @staticmethod
    def _token(token: int) -> int:
        if type(token) is not int:
            raise InvalidType(f"token={token!r}: the token of a claim (int) is needed")
        return token if 0 < token < 2**63 else _NO_TOKEN  # the driver refuses what BSON can't hold

    @staticmethod
    def _ttl(ttl: Ttl | None) -> int | None:
        return None if ttl is None else arguments.ttl_milliseconds(ttl)


class MongoDBIdempotencyAdapter(MongoDBIdempotencyProvider):
    """The idempotency provider alone, on a database: for programs that need no other.

    ``db``, ``key_prefix``, ``async_db`` and ``codec`` are those of ``MongoDBAdapter``. Making it sends nothing; raises
    ``InvalidType`` for what is no database.
    """

    def __init__(self, db: Any, key_prefix: str = "", *, async_db: Any = None, codec: Codec | None = None) -> None:
        super().__init__(store_of(db, async_db), key_prefix=arguments.key(key_prefix, "key_prefix"), codec=codec)

    def connect(self) -> None:
        """Make the collection's indexes if they are missing.

        One round trip, and one for each index that is missing. Raises ``IndexConflict`` if one has other options.
        """
        self.store.run(indexes.ensure, collection=IDEMPOTENCY)

    async def aconnect(self) -> None:
        """Async version of ``connect``."""
        await self.store.arun(indexes.ensure, collection=IDEMPOTENCY)
