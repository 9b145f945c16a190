"""A check for ``django-health-check`` 4 (the extra ``health``).

>>> HealthCheckView.as_view(checks=["goscope_django.integrations.health.MongoDB"])

It tells a server that is down (``Unavailable``) from one that is slow (``Warning``). The package's own cache check
can't do that: it knows the errors of Redis only, and with ``ON_ERROR = "ignore"`` it sees a cache that works.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from django.core.exceptions import ImproperlyConfigured

from goscope_django import operations
from goscope_django.exceptions import GoscopeError
from goscope_django.integrations import needed

with needed("django-health-check", "goscope-django[health]"):
    from health_check.base import HealthCheck
    from health_check.exceptions import ServiceUnavailable, ServiceWarning

__all__ = ["MongoDB"]


@dataclasses.dataclass
class MongoDB(HealthCheck):  # type: ignore[misc]  # it carries no type hints
    """The server of ``GOSCOPE["URL"]``: one round trip, and with ``indexes`` one for each collection. Changes nothing.

    * ``slow``: an answer that takes more than so many seconds is a warning.
    * ``timeout``: how long it may take altogether (a ``timedelta``; 2 seconds). A server that took the connection and
      has not answered by then is slow, too.
    * ``indexes``: also warn of indexes that are missing or differ.

    It runs on a thread with the process's own client. So it measures a command, not the making of a connection.
    """

    slow: float = dataclasses.field(default=0.5, repr=False)
    indexes: bool = dataclasses.field(default=False, repr=False)
    timeout: dt.timedelta = dataclasses.field(default=dt.timedelta(seconds=2), repr=False)

    def run(self) -> None:
        """Raises ``ServiceUnavailable`` or ``ServiceWarning``; their messages name no credentials.

        Changes nothing. Round trips are those of the class.
        """
        try:
            found = operations.probe(self.timeout.total_seconds(), self.slow)
        except ImproperlyConfigured as error:
            raise ServiceUnavailable(f"the settings can't be used: {error}") from error
        if found.health == "down":
            raise ServiceUnavailable(found.reason)
        if found.health == "slow":
            raise ServiceWarning(found.reason)
        if self.indexes:
            self._look_at_indexes()

    def _look_at_indexes(self) -> None:
        try:
            stores = operations.check_indexes()
        except GoscopeError as error:
            raise ServiceUnavailable(str(error)) from error
        wrong = [f"{one.collection}.{one.name}" for store in stores for one in store.indexes if one.state != "present"]
        if wrong:
            raise ServiceWarning(f"{len(wrong)} indexes are missing or differ: {', '.join(wrong)}")
