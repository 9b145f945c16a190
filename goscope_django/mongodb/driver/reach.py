"""Whether a client's servers can be reached. While none can, calls fail at once and do not wait for a server each.

The first call of an outage waits for a server as long as the client's options say. Rules of this file:

* What is asked is what the driver's monitoring knows already. No command is sent for it.
* The driver looks rarely for a server that nobody waits for. So now and then those who call wait a moment, together,
  which makes it look. As soon as it sees a server everybody goes on as ever.
* Only the first command of an operation may fail so: one that is under way has all of its time, to find out what
  became of it. Renewals of leases are never refused; they have time limits of their own.
* A read that a secondary may answer is let through while there is one.
* There is no lock: all that two callers at the same moment can spoil is when the next look begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pymongo
from pymongo import ReadPreference
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from goscope_django.core.flow import Flow, Query, invoke
from goscope_django.mongodb.document.failures import NoServer, said
from goscope_django.mongodb.driver import limits

LOOK: Final = 0.6
"""Seconds for which callers wait for a server together. The driver looks every half second while somebody waits."""
PAUSE: Final = 1.0
"""Seconds after such a look in which nobody waits."""
ENOUGH: Final = 0.9
"""A call that has waited for this share of the client's patience has shown that there is no server. One whose caller
gave it less time has not."""


class Reach:
    """What is known of one client's servers.

    ``patience``: for how many seconds a call waits for one. ``preference``: which servers can answer a query, as a read
    preference.
    """

    __slots__ = ("_client", "_looked", "_patience", "_preference", "_reason", "_since", "away")

    def __init__(self, client: Any, patience: float, preference: Callable[[Query[Any]], Any]) -> None:
        self._client = client
        self._patience = patience
        self._preference = preference
        self._looked = self._since = 0.0
        self._reason = ""
        self.away = False
        """Whether the last call that needed the primary, or any server, has found none."""

    def sees(self, query: Query[Any] | None = None) -> bool:
        """Whether the driver knows a server for ``query``, or else a primary. Sends nothing."""
        preference = ReadPreference.PRIMARY if query is None else self._preference(query)
        return bool(self._client.topology_description.has_readable_server(preference))

    @property
    def since(self) -> datetime | None:
        """Since when no server was found, by this process's clock; ``None`` if the last call found one."""
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._since) if self.away else None

    def last_write(self) -> datetime | None:
        """The latest write that a member has, by the driver's monitoring, while it sees members but no primary.

        A primary writes something every ten seconds at least. So it tells when the last one was there.
        """
        if self.sees():
            return None
        members = self._client.topology_description.server_descriptions().values()
        written = [one.last_write_date for one in members if one.last_write_date]
        return datetime.fromtimestamp(max(written), UTC) if written else None

    def failed(self, query: Query[Any], error: PyMongoError, took: float) -> None:
        """``query`` failed after ``took`` seconds. If it found no server the next calls don't wait for one."""
        if isinstance(error, NoServer) or took < self._patience * ENOUGH or self.sees(query):
            return
        now = time.monotonic()
        # A connection that broke proves less than a search for a server: the next callers look for one first.
        self._looked = now if isinstance(error, ServerSelectionTimeoutError) else now - PAUSE
        if not self.away:
            self._since, self.away = now, True
        self._reason = said(error)

    def worked(self) -> None:
        """A server has answered. As long as it is a secondary, writes go on failing at once."""
        self.away = not self.sees()

    def ask(self, query: Query[Any]) -> Flow[None]:
        """To be run while ``away``, before ``query``, an operation's first. Raises ``NoServer`` if there is none."""
        if limits.urgent() or self.sees(query):
            return
        now = time.monotonic()
        if now >= self._looked + PAUSE:
            self._looked = now + LOOK
        if now < self._looked:
            try:
                with pymongo.timeout(self._looked - now):
                    yield from invoke(getattr, self._client, "is_primary")
            except PyMongoError:
                pass  # nothing was asked but whether there is a server, which is looked at now
            if self.sees(query):
                return
        away = time.monotonic() - self._since
        raise NoServer(f"{self._reason} (for {away:.1f} s; until the driver sees one, calls fail at once)")
