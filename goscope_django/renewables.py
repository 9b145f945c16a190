"""What can be renewed: a leased document of ours, many with one command, or a lease of somebody else's store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from goscope_django.mongodb.lease import Lease, renew_all
from goscope_django.mongodb.limits import within
from goscope_django.mongodb.store import Store


@dataclass(frozen=True, slots=True)
class Renewable:
    """A leased document, found by ``name`` (``key`` or ``_id``) and held by ``claim``."""

    store: Store
    collection: str
    key: str
    claim: str
    milliseconds: int
    name: str = "key"
    lease: Lease = field(default_factory=Lease)
    lane: ClassVar[str] = "renewal"

    @property
    def kind(self) -> Hashable:
        """Equal for what one command can renew together."""
        return (id(self.store), self.collection, self.name, self.lease, self.milliseconds)

    def _arguments(self, group: Sequence[Any]) -> tuple[str, str, Lease, list[tuple[str, str]], int]:
        return self.collection, self.name, self.lease, [(one.key, one.claim) for one in group], self.milliseconds

    def renew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Renew ``group`` (all of this kind) within ``seconds``; the claims that still hold theirs."""
        with within(seconds):
            return self.store.run(renew_all, *self._arguments(group))

    async def arenew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Asynchronous twin of ``renew``."""
        with within(seconds):
            return await self.store.arun(renew_all, *self._arguments(group))


@dataclass(frozen=True, slots=True, eq=False)
class Extendable:
    """A lease that is renewed by a call of its own, which returns whether it is still held."""

    key: str
    claim: str
    milliseconds: int
    extend: Callable[[], bool]
    aextend: Callable[[], Awaitable[bool]]
    lane: ClassVar[str] = "backend-renewal"

    @property
    def kind(self) -> Hashable:
        """Never equal to another's."""
        return id(self)

    def renew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Renew this lease; its claim if it is still held."""
        return frozenset([self.claim] if self.extend() else ())

    async def arenew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        """Asynchronous twin of ``renew``."""
        return frozenset([self.claim] if await self.aextend() else ())
