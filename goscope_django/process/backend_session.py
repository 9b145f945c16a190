"""One transaction of ``django_mongodb_backend`` for what must be stored together with business data, or not at all.

Rules of this file:

* The store must be the deployment of that database: ``GOSCOPE["URL"] = "django://<alias>"``. What has to be part of the
  transaction is sent by the backend's own client; everything else goes through ours.
* A transaction that is open is joined. Else one is opened here, and after it nothing of it is left on the connection.
* The errors of the driver are raised as they are. A caller may look at their labels and try the whole again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError

from goscope_django import conf
from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb.driver import urls
from goscope_django.process import backend


def require_store(alias: str, what: str) -> None:
    """Raise ``ImproperlyConfigured`` (``BadSettings``) unless the store is ``django://<alias>``. Sends nothing."""
    settings = conf.current()
    key = "GOSCOPE['TEST']['URL']" if settings.testing else "GOSCOPE['URL']"
    if not urls.is_django(settings.url) or urls.django_names(settings.url, key)[0] != alias:
        raise conf.BadSettings(
            f"{what}: {key}='django://{alias}' is needed, since one transaction can't span two deployments, and it is "
            f"{urls.masked(settings.url)!r}"
        )
    try:
        conf.target(settings.url, key)
    except ConfigurationError as error:
        raise conf.BadSettings(str(error)) from None


def mongodb_session(alias: str) -> Any:
    """The driver's session of the transaction that is open on ``alias``; ``None`` if there is none. Sends nothing."""
    connection = connections[alias]
    return backend.open_session(connection) if backend.is_mongodb(connection) else None


def store_database(alias: str) -> Any:
    """The store's database as the backend's client sees it, for what is sent with ``mongodb_session(alias)``."""
    target = conf.target(conf.current().url)
    connection: Any = connections[alias]
    connection.ensure_connection()
    return connection.connection[target.database]


@contextlib.contextmanager
def atomic(alias: str) -> Iterator[None]:
    """The backend's ``atomic(alias)``. After a commit that failed the connection is as it was before the block.

    Raises ``TransactionManagementError`` in a block whose transaction has ended before the block.
    """
    connection: Any = connections[alias]
    if backend.open_session(connection) is not None:
        with backend.block(connection):
            yield
        return
    if connection.session is not None:
        backend.bury(connection, connection.session)
    if connection.in_atomic_block_mongo:
        raise TransactionManagementError(
            f"the transaction on {alias!r} has ended before its block: leave the block first"
        )
    try:
        with backend.block(connection):
            yield
    finally:
        if connection.session is not None and backend.open_session(connection) is None:
            backend.bury(connection, connection.session)
            connection.run_on_commit = []  # hooks of a commit that failed: the next one would run them
