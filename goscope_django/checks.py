"""Django system checks of the settings and of the servers.

====================  =========  =====================================================================================
``goscope.E001``      static     ``GOSCOPE`` can't be used: an unknown key, a wrong type, a URL that is not allowed
``goscope.E002``      static     an entry of ``CACHES`` can't be used
``goscope.W010``      database   a store can't be reached
``goscope.W011``      database   an index is missing
``goscope.W012``      database   an index exists with other options
``goscope.W013``      database   a standalone server: no transactions, and a token may repeat once a lock is gone
``goscope.W014``      database   a sharded cluster: each router has its own clock
``goscope.W015``      database   this machine's clock is off by more than a minute (it matters to Node only)
``goscope.W020``      static     ``Vary``, ``Cache-Control`` or a permission is decorated outside of ``single_flight``
``goscope.W030``      deploy     the server is not on this machine, and the connection is not encrypted
``goscope.W031``      deploy     the server is not on this machine, and the URL has no credentials
``goscope.W032``      deploy     ``mongomock://`` or ``embedded://`` outside of tests and demonstrations
====================  =========  =====================================================================================

Static checks open nothing. Those that connect have the tag ``database``: they run with ``check --database default`` and
before ``migrate``. They only warn, so a migration of an SQL database works while MongoDB can't be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags
from django.core.checks import Warning as CheckWarning
from django.core.checks import register as register_check
from django.utils.module_loading import import_string

from goscope_django import conf, runtime
from goscope_django.cache import options as cache_options
from goscope_django.exceptions import ConfigurationError, GoscopeError
from goscope_django.mongodb.driver import inspection, urls
from goscope_django.single_flight import order


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """``GOSCOPE`` and our entries in ``CACHES``."""
    found: list[CheckMessage] = [
        Error(fault.message, hint=fault.hint, obj="settings.GOSCOPE", id="goscope.E001") for fault in conf.faults()
    ]
    for alias, entry in conf.our_caches().items():
        try:
            cache_options.cache_options(entry.get("LOCATION", ""), entry)
        except conf.BadSettings as error:
            found.append(Error(str(error), obj=f"settings.CACHES[{alias!r}]", id="goscope.E002"))
    if not found:
        path = conf.current().lock_backend
        try:
            if not isinstance(import_string(path), type):
                raise ImportError(f"{path} is not a class")
        except ImportError as error:
            found.append(Error(f"GOSCOPE['LOCK_BACKEND']={path!r}: {error}", obj="settings.GOSCOPE", id="goscope.E001"))
        for what, url in conf.store_urls():
            try:
                runtime.connection(url, what=what).check()
            except ConfigurationError as error:
                found.append(Error(str(error), obj="settings.GOSCOPE", id="goscope.E001"))
    return found


def check_stores(app_configs: Any = None, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """The checks that connect: at most two seconds for each store."""
    if not databases:
        return []
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    found: list[CheckMessage] = []
    for what, url in stores:
        try:
            view = runtime.connection(url, what=what).inspect(2.0)
        except conf.BadSettings:
            continue
        except GoscopeError as error:
            hint = "Is it running? Are the URL, user and password right?"
            found.append(CheckWarning(f"{what}: {error}", hint=hint, id="goscope.W010"))
            continue
        found += _judged(what, view)
    return found


def _judged(what: str, view: inspection.ServerView) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    hint = "manage.py goscope_indexes ensure"
    for index in view.indexes:
        if index.state == "missing":
            text = f"{what}: index {index.spec.name} of {index.spec.collection} is missing."
            found.append(CheckWarning(text, hint=hint, id="goscope.W011"))
        elif index.state == "different":
            text = (
                f"{what}: index {index.spec.name} of {index.spec.collection}: needed {index.spec}, found {index.found}."
            )
            found.append(CheckWarning(text, hint=f"{hint} --repair", id="goscope.W012"))
    if view.topology == "standalone":
        text = f"{what}: a standalone server. A fencing token may repeat once its lock's document is gone."
        found.append(CheckWarning(text, hint="Make it a replica set; one node suffices.", id="goscope.W013"))
    if view.topology == "sharded":
        text = f"{what}: a sharded cluster. The routers' clocks must agree well within a lease."
        found.append(CheckWarning(text, hint="See docs/how-to/sharding.md.", id="goscope.W014"))
    if abs(view.clock_offset) > 60:
        text = f"{what}: this machine's clock differs from the server's by {view.clock_offset:.0f} seconds."
        found.append(CheckWarning(text, hint="Run NTP on both.", id="goscope.W015"))
    return found


def check_security(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """What is allowed, but not safe in production."""
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    found: list[CheckMessage] = []
    for what, url in stores:
        try:
            target = urls.parse(url, what, base=conf.base_dir())
        except GoscopeError:
            continue
        if target.scheme != "mongodb":
            text = f"{what}={target.shown!r} is meant for tests and demonstrations."
            found.append(CheckWarning(text, hint="Use a MongoDB server of your own.", id="goscope.W032"))
            continue
        if urls.is_local(url):
            continue
        options = {name.lower() for name in conf.current().client_options} | target.options
        if not url.startswith("mongodb+srv:") and not options & {"tls", "ssl"}:
            text = f"{what}: the connection to another machine is not encrypted."
            found.append(CheckWarning(text, hint="Add tls=true to the URL.", id="goscope.W030"))
        if "@" not in url and not options & {"username", "authmechanism", "tlscertificatekeyfile"}:
            text = f"{what}: no credentials for a server on another machine."
            found.append(
                CheckWarning(text, hint="Turn on access control; see docs/reference/settings.md.", id="goscope.W031")
            )
    return found


def check_views(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Decorators on the wrong side of ``single_flight``, on the views of ``ROOT_URLCONF``."""
    try:
        found = list(order.misplaced())
    except Exception:  # noqa: BLE001  a URLconf that can't be imported is told by Django's own checks
        return []
    why = {"permission": "It decides before reads are recorded, so why it let a caller through is not compared."}
    late = "It comes too late: the response was published without it."
    return [
        CheckWarning(
            f"{one.route!r} ({one.view}): {one.decorator} ({one.kind}) is outside of single_flight. "
            f"{why.get(one.kind, late)}",
            hint=f"Write @single_flight() above @{one.decorator}. See docs/how-to/single-flight.md.",
            id="goscope.W020",
        )
        for one in found
    ]


def register() -> None:
    """Register all checks with Django."""
    register_check(check_settings, Tags.caches)
    register_check(check_stores, Tags.database)
    register_check(check_views, Tags.urls)
    register_check(check_security, Tags.security, deploy=True)
