"""``adapter.cache``, the cache for programs without Django.

Rule of this file: it checks arguments and puts the prefix before keys. What is sent is said in ``flows``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from goscope_django.contracts import Ttl
from goscope_django.core import arguments
from goscope_django.mongodb.cache.flows import MISSING, CacheFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.driver.store import Store


class MongoDBCacheProvider:
    """``adapter.cache``: see ``contracts.CacheProvider``. Each method is one round trip; ``keys`` is one for each
    thousand, and one.

    ``key`` is the entry's, ``ttl`` milliseconds or a ``timedelta``. Every change of one entry is atomic. Every method
    raises ``InvalidType`` or ``InvalidValue`` for arguments that can't be used, and ``StoreError`` if MongoDB fails or
    can't be reached.
    """

    def __init__(self, store: Store, *, key_prefix: str = "", codec: Codec | None = None) -> None:
        """``MongoDBAdapter`` makes it.

        :meta private:
        """
        self.store = store
        self.flows = CacheFlows(codec or Codec(pickle=False))
        self.prefix = f"{key_prefix}cache:"

    def _stored(self, key: str) -> str:
        return self.prefix + arguments.key(key)

    @staticmethod
    def _ttl(ttl: Ttl | None) -> int | None:
        return None if ttl is None else arguments.ttl_milliseconds(ttl)

    def get(self, key: str) -> Any:
        """The value; ``None`` if it is missing, expired or can't be decoded."""
        found = self.store.run(self.flows.get, self._stored(key))
        return None if found is MISSING else found

    async def aget(self, key: str) -> Any:
        """Async version of ``get``."""
        found = await self.store.arun(self.flows.get, self._stored(key))
        return None if found is MISSING else found

    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Store ``value`` for ``ttl``, forever if ``None``.

        Raises ``InvalidValue`` over 16 MB; then no value is left.
        """
        self.store.run(self.flows.set, self._stored(key), value, self._ttl(ttl))

    async def aset(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Async version of ``set``."""
        await self.store.arun(self.flows.set, self._stored(key), value, self._ttl(ttl))

    def delete(self, key: str) -> bool:
        """Remove the entry; ``True`` if there was a live one."""
        return self.store.run(self.flows.delete, self._stored(key))

    async def adelete(self, key: str) -> bool:
        """Async version of ``delete``."""
        return await self.store.arun(self.flows.delete, self._stored(key))

    def has(self, key: str) -> bool:
        """Whether there is a live entry."""
        return self.store.run(self.flows.has, self._stored(key))

    async def ahas(self, key: str) -> bool:
        """Async version of ``has``."""
        return await self.store.arun(self.flows.has, self._stored(key))

    def clear(self) -> int:
        """Remove all entries of this prefix; how many there were. Not atomic as a whole."""
        return self.store.run(self.flows.delete_range, self.prefix)

    async def aclear(self) -> int:
        """Async version of ``clear``."""
        return await self.store.arun(self.flows.delete_range, self.prefix)

    def _matching(self, found: Iterable[str], pattern: str | None) -> list[str]:
        test, cut = arguments.pattern(pattern), len(self.prefix)
        keys = [one[cut:] for one in found]
        return keys if test is None else [key for key in keys if test.fullmatch(key)]

    def keys(self, pattern: str | None = None) -> list[str]:
        """Live keys that match the regular expression ``pattern`` as a whole, in order.

        The pattern is code, never a user's text: see ``contracts``.
        """
        arguments.pattern(pattern)
        return self._matching(self.store.run(self.flows.keys, self.prefix), pattern)

    async def akeys(self, pattern: str | None = None) -> list[str]:
        """Async version of ``keys``."""
        arguments.pattern(pattern)
        return self._matching(await self.store.arun(self.flows.keys, self.prefix), pattern)
