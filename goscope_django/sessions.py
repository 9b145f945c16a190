"""Django's sessions in MongoDB: ``SESSION_ENGINE = "goscope_django.sessions"``, in the cache ``SESSION_CACHE_ALIAS``.

With Django's own engine for caches an outage looks like an empty session, and everybody is signed out for good. Here it
is an error. Rules of this file:

* The server is always asked, and while it can't be reached every method raises ``StoreUnavailable``, whatever the
  cache's ``ON_ERROR`` says. A method that raised leaves this object as it was: a failed ``flush`` keeps the session.
* What is stored is signed for its session. The store has a hash of a session's key, never the key: who can read the
  database, or lists the cache's keys, can't take over a session.
* Each method is one round trip: a session is saved only where it still is, in one atomic step.
* Each process remembers since when its sessions can't be read, for those who look into it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from django.contrib.sessions.backends.base import VALID_KEY_CHARS, CreateError, SessionBase, UpdateError
from django.core import signing
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.utils.crypto import get_random_string

from goscope_django import conf, runtime
from goscope_django.cache import MongoDBCache
from goscope_django.core.arguments import shown_key
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import ConfigurationError, StoreError

__all__ = ["SessionStore", "acount_sessions", "count_sessions"]

PREFIX: Final = "goscope.session:"
"""What the cache's keys of sessions begin with."""
_KEY_LENGTH: Final = 32
_ATTEMPTS: Final = 100
_SALT: Final = "goscope_django.sessions"


class SessionStore(SessionBase):
    """One session; see Django's ``SessionBase`` for the methods, each of which has an async version.

    ``session_key`` is the session's key, ``None`` for a new one. Raises ``ImproperlyConfigured`` where the cache of
    ``SESSION_CACHE_ALIAS`` is not of this package. Making the object sends nothing.

    Each method is one round trip and atomic, but ``cycle_key``, which is two. Each raises ``StoreUnavailable``, or
    another ``StoreError``, if MongoDB can't be reached or fails.
    """

    def __init__(self, session_key: str | None = None) -> None:
        self._store = session_cache()
        super().__init__(session_key)

    def load(self) -> dict[str, Any]:
        """The session's data; empty for one that is not there, has expired or is not signed by us."""
        return carry_out(self._load())

    async def aload(self) -> dict[str, Any]:
        """Async version of ``load``."""
        return await acarry_out(self._load())

    def _load(self) -> Flow[dict[str, Any]]:
        key = self.session_key
        found = None if key is None else (yield from _asked(self._store.get, self._store.aget, _place(key)))
        data = None if key is None or found is None else self._opened(key, found)
        if data is None:
            self._session_key = None
            return {}
        return data

    def save(self, must_create: bool = False) -> None:
        """Store the session. Raises ``CreateError`` with ``must_create`` if there is one, else ``UpdateError`` if there
        is none any more. Atomic."""
        carry_out(self._save(must_create))

    async def asave(self, must_create: bool = False) -> None:
        """Async version of ``save``."""
        await acarry_out(self._save(must_create))

    def _save(self, must_create: bool) -> Flow[None]:
        key = self.session_key
        if key is None:
            yield from call(self.create, self.acreate)
            return
        data = yield from call(
            self._get_session,  # type: ignore[attr-defined]  # Django's backends use it, the stubs don't know it
            self._aget_session,  # type: ignore[attr-defined]
            no_load=must_create,
        )
        age = yield from call(self.get_expiry_age, self.aget_expiry_age)
        store = self._store
        if not (
            yield from _asked(
                *(store.set, store.aset),
                *(_place(key), self._sealed(key, data), age),
                nx=must_create,
                xx=not must_create,
            )
        ):
            raise CreateError if must_create else UpdateError

    def create(self) -> None:
        """Store this session under a new key."""
        carry_out(self._create())

    async def acreate(self) -> None:
        """Async version of ``create``."""
        await acarry_out(self._create())

    def _create(self) -> Flow[None]:
        before = self.session_key
        try:
            for _ in range(_ATTEMPTS):
                self._session_key = get_random_string(_KEY_LENGTH, VALID_KEY_CHARS)
                try:
                    yield from call(self.save, self.asave, must_create=True)
                except CreateError:
                    continue
                self.modified = True
                return
            raise RuntimeError("no free key for a session was found")
        except BaseException:
            self._session_key = before
            raise

    def exists(self, session_key: str | None) -> bool:
        """Whether there is a live session of the key ``session_key``."""
        return carry_out(self._exists(session_key))

    async def aexists(self, session_key: str | None) -> bool:
        """Async version of ``exists``."""
        return await acarry_out(self._exists(session_key))

    def _exists(self, session_key: str | None) -> Flow[bool]:
        store = self._store
        return bool(session_key) and (yield from _asked(store.has_key, store.ahas_key, _place(str(session_key))))

    def delete(self, session_key: str | None = None) -> None:
        """Remove the session of the key ``session_key``, or this one if that is ``None``."""
        carry_out(self._delete(session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        """Async version of ``delete``."""
        await acarry_out(self._delete(session_key))

    def _delete(self, session_key: str | None) -> Flow[None]:
        key = self.session_key if session_key is None else session_key
        if key:
            yield from _asked(self._store.delete, self._store.adelete, _place(key))

    def flush(self) -> None:
        """Remove this session and forget its data. If it can't be removed nothing is forgotten: nobody is told that
        they are logged out while the session still works."""
        carry_out(self._flush())

    async def aflush(self) -> None:
        """Async version of ``flush``."""
        await acarry_out(self._flush())

    def _flush(self) -> Flow[None]:
        yield from call(self.delete, self.adelete)
        self.clear()
        self._session_key = None

    @classmethod
    def clear_expired(cls) -> None:
        """Remove expired sessions now, as ``manage.py clearsessions`` does. MongoDB does so by itself each minute.

        Not atomic as a whole.
        """
        session_cache().remove_expired(PREFIX)

    @classmethod
    async def aclear_expired(cls) -> None:
        """Async version of ``clear_expired``."""
        await session_cache().aremove_expired(PREFIX)

    def _sealed(self, key: str, data: dict[str, Any]) -> str:
        return signing.dumps(data, salt=f"{_SALT}:{key}", serializer=self.serializer, compress=True)

    def _opened(self, key: str, stored: object) -> dict[str, Any] | None:
        try:
            if not isinstance(stored, str):
                raise signing.BadSignature
            data = signing.loads(stored, salt=f"{_SALT}:{key}", serializer=self.serializer)
        except signing.BadSignature:
            logging.getLogger("django.security.SuspiciousSession").warning("Session data corrupted")
            message = "the session is not signed by us for this key"
            runtime.emit("cache_entry_forged", key=shown_key(_place(key)), reason="forged", message=message)
            return None
        except Exception:  # noqa: BLE001  signed, but of another serializer: an empty session, as in Django
            return None
        return data if isinstance(data, dict) else None


def _place(session_key: str) -> str:
    return PREFIX + hashlib.sha256(session_key.encode("utf-8", "surrogatepass")).hexdigest()


_since: datetime | None = None


def _asked(plain: Callable[..., Any], twin: Callable[..., Any], *args: Any, **kwargs: Any) -> Flow[Any]:
    global _since
    try:
        found = yield from call(plain, twin, *args, **kwargs)
    except StoreError:
        if _since is None:
            _since = datetime.now(UTC)
        raise
    _since = None
    return found


def unreadable_since() -> datetime | None:
    """When this process first failed to read or write a session, if it has not succeeded since. By its own clock."""
    return _since


def session_cache() -> MongoDBCache:
    """The cache of sessions, one that always asks the server. Raises ``ImproperlyConfigured`` if it is not ours."""
    alias = conf.session_cache_alias()
    found = caches[alias]
    if not isinstance(found, MongoDBCache):
        raise ImproperlyConfigured(
            f"SESSION_CACHE_ALIAS={alias!r}: goscope_django.sessions needs a cache whose BACKEND is {conf.BACKEND}, "
            f"not {type(found).__name__}"
        )
    if found.options.max_entries:
        raise ImproperlyConfigured(TOO_FEW.format(alias=alias))
    return found.strict()


def count_sessions() -> int:
    """How many live sessions there are. One round trip. Raises as the sessions do."""
    return session_cache().count_keys(PREFIX)


async def acount_sessions() -> int:
    """Async version of ``count_sessions``."""
    return await session_cache().acount_keys(PREFIX)


TOO_FEW: Final = (
    "CACHES[{alias!r}] holds sessions and has MAX_ENTRIES: people would be signed out to make room. Give sessions an "
    "alias of their own (SESSION_CACHE_ALIAS) without MAX_ENTRIES."
)


def fault() -> str | None:
    """What is wrong with the cache of sessions, if this engine is in use: for the system checks. Opens nothing."""
    if conf.session_engine() != __name__:
        return None
    try:
        session_cache()
    except (ImproperlyConfigured, ConfigurationError) as error:
        return str(error)
    return None
