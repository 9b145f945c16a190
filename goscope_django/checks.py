"""Django system checks of the settings and of the servers.

====================  =========  =====================================================================================
``goscope.E001``      static     ``GOSCOPE`` can't be used: an unknown key, a wrong type, a URL that is not allowed
``goscope.E002``      static     an entry of ``CACHES`` can't be used
``goscope.E003``      static     the store is ``mongomock://``, as in tests by default, and mongomock is not installed
``goscope.E005``      static     ``goscope_django.sessions`` is in use, and its cache can't hold sessions
``goscope.W005``      static     ... and ``StoreUnavailableMiddleware`` is not the first in ``MIDDLEWARE``
``goscope.W010``      database   a store can't be reached
``goscope.W011``      database   an index is missing
``goscope.W012``      database   an index exists with other options
``goscope.W013``      database   a standalone server: no transactions, and a token may repeat once a lock is gone
``goscope.W014``      database   a sharded cluster: each router has its own clock
``goscope.W015``      database   this machine's clock is off by more than a minute (it matters to Node only)
``goscope.W016``      database   a version of MongoDB that gets no security fixes any more
``goscope.W017``      database   no change streams: a near cache goes by time alone
``goscope.W018``      database   the user lacks rights that are needed
``goscope.W019``      database   a server that is not supported: too old, or not MongoDB
``goscope.W020``      static     ``ATOMIC_REQUESTS`` on a database of ``django_mongodb_backend``, where it does nothing
``goscope.W021``      static     with ``django://``: that database's ``w`` is a number, and may be less than a majority
``goscope.W022``      static     ``Vary``, ``Cache-Control`` or a permission is decorated outside of ``single_flight``
``goscope.W023``      database   a near cache on a replica set with an arbiter
``goscope.W024``      static     a near cache whose writes are not waited for until a majority has them
``goscope.W030``      deploy     the server is not on this machine, and the connection is not encrypted
``goscope.W031``      deploy     the server is not on this machine, and the URL has no credentials
``goscope.W032``      deploy     ``mongomock://`` or ``embedded://`` outside of tests and demonstrations
``goscope.W033``      deploy     a password is in a setting, and pages and mails about errors show that setting
``goscope.W034``      deploy     the connection is encrypted, but the server need not prove who it is
====================  =========  =====================================================================================

Static checks open nothing. Those that connect have the tag ``database``: they run with ``check --database default`` and
before ``migrate``. They only warn, so a migration of an SQL database works while MongoDB can't be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from django.core.checks import CheckMessage, Error, Tags
from django.core.checks import Warning as CheckWarning
from django.core.checks import register as register_check
from django.db import connections
from django.utils.module_loading import import_string

from goscope_django import conf, runtime
from goscope_django.cache import options as cache_options
from goscope_django.exceptions import (
    ConfigurationError,
    CredentialsRefused,
    GoscopeError,
    MissingRights,
    ServerNotSupported,
)
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.driver import inspection, urls
from goscope_django.process import backend
from goscope_django.single_flight import order

ENGINE: Final = "goscope_django.sessions"
ANSWERS: Final = "goscope_django.middleware.StoreUnavailableMiddleware"


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """``GOSCOPE`` and our entries in ``CACHES``."""
    found: list[CheckMessage] = [
        Error(fault.message, hint=fault.hint, obj="settings.GOSCOPE", id="goscope.E001") for fault in conf.faults()
    ]
    usable = not found
    for alias, entry in conf.our_caches().items():
        found += [
            Error(fault, obj=f"settings.CACHES[{alias!r}]", id="goscope.E002")
            for fault in cache_options.faults(entry.get("LOCATION", ""), entry)
        ]
    sound = conf.sound()
    if (path := sound.get("LOCK_BACKEND")) is not None:
        try:
            if not isinstance(import_string(path), type):
                raise ImportError(f"{path} is not a class")
        except ImportError as error:
            found.append(Error(f"GOSCOPE['LOCK_BACKEND']={path!r}: {error}", obj="settings.GOSCOPE", id="goscope.E001"))
    told = {one.msg for one in found}
    for what, url in conf.store_urls() if usable else _stores(sound):
        try:
            if usable:
                runtime.connection(url, what=what).check()
            else:
                clients.connection(url, sound["CLIENT_OPTIONS"], what=what, base=conf.base_dir()).check()
        except ConfigurationError as error:
            if not any(urls.masked(url) in text for text in told):  # a LOCATION that is no URL was named above
                found.append(Error(str(error), obj="settings.GOSCOPE", id="goscope.E001"))
    return found


def check_atomic_requests(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Databases on which ``ATOMIC_REQUESTS`` does nothing. Opens none of them."""
    hint = (
        "Remove it, and use django_mongodb_backend.transaction.atomic() where a transaction is needed; "
        "see docs/how-to/mongodb-backend.md."
    )
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['ATOMIC_REQUESTS']=True does nothing: django.db.transaction.atomic() opens no "
            f"transaction on MongoDB, so nothing that a request has written is undone when its view fails.",
            hint=hint,
            obj=f"settings.DATABASES[{alias!r}]",
            id="goscope.W020",
        )
        for alias in connections
        if connections.settings[alias].get("ATOMIC_REQUESTS") and backend.is_mongodb(connections[alias])
    ]


def _stores(sound: dict[str, Any]) -> list[tuple[str, str]]:
    """The store of ``GOSCOPE``, if what it is made of has no fault while other keys have one."""
    if not {"URL", "TEST", "CLIENT_OPTIONS"} <= sound.keys():
        return []
    return [("GOSCOPE['URL']", sound["TEST"].get("URL", "mongomock://") if conf.testing() else sound["URL"])]


def check_tests(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Whether the store that is in force needs mongomock, and it is missing. Django's test runner asks before tests."""
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    hint = "pip install mongomock, or let GOSCOPE['TEST']['URL'] name a server. See docs/how-to/testing.md."
    return [
        Error(
            f"{what}: the store is {urls.masked(url)!r}{' under test' if conf.testing() else ''}, and mongomock is not "
            f"installed.",
            hint=hint,
            obj="settings.GOSCOPE",
            id="goscope.E003",
        )
        for what, url in stores
        if url.startswith("mongomock:") and find_spec("mongomock") is None
    ]


def check_sessions(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """The cache of sessions and the middleware that answers for them, where ``goscope_django.sessions`` is in use."""
    if conf.session_engine() != ENGINE:
        return []
    from goscope_django import sessions

    if (text := sessions.fault()) is not None:
        return [Error(text, obj="settings.SESSION_CACHE_ALIAS", id="goscope.E005")]
    if conf.middleware()[:1] != [ANSWERS]:
        text = f"While MongoDB can't be reached, sessions raise StoreUnavailable. {ANSWERS} answers 503 then."
        return [CheckWarning(text, hint="Put it first in MIDDLEWARE.", obj="settings.MIDDLEWARE", id="goscope.W005")]
    return []


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
            found.append(CheckWarning(f"{what}: {error}", hint=_hint(error), id=_ids(error)))
            continue
        found += _judged(what, view)
        if view.arbiters and (aliases := _near_aliases(url)):
            text = (
                f"{what}: the replica set has an arbiter, and CACHES {aliases} keeps near entries. With one member of "
                f"those with data down it may take writes that no majority has; they are told to no near cache."
            )
            hint = "Put a member with data in place of the arbiter. See docs/how-to/make-it-fast.md."
            found.append(CheckWarning(text, hint=hint, id="goscope.W023"))
    return found


def _near_aliases(url: str) -> str:
    """The aliases on the store ``url`` that have a near cache, as text."""
    found = []
    for alias, entry in conf.our_caches().items():
        try:
            near = cache_options.cache_options(entry.get("LOCATION", ""), entry).near
        except conf.BadSettings:
            continue
        if near is not None and (entry.get("LOCATION") or conf.current().url) == url:
            found.append(repr(alias))
    return ", ".join(found)


def check_near(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Whether a failover may take back what near caches were told of, or were not."""
    found: list[CheckMessage] = []
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    for what, url in stores:
        try:
            concern = urls.given_options(conf.target(url, what), conf.current().client_options).get("w")
        except ConfigurationError:
            continue
        aliases = _near_aliases(url)
        if aliases and str(concern) in ("0", "1"):
            text = (
                f"{what}: w={concern}, and CACHES {aliases} keeps near entries. A write that a failover takes back is "
                f"told to no near cache."
            )
            hint = "Leave w out, or say w=majority. See docs/how-to/make-it-fast.md."
            found.append(CheckWarning(text, hint=hint, obj="settings.CACHES", id="goscope.W024"))
    return found


def _hint(error: GoscopeError) -> str:
    if isinstance(error, CredentialsRefused):
        return "Check the user, the password and authSource in the URL or in CLIENT_OPTIONS."
    if isinstance(error, (MissingRights, ServerNotSupported)):
        return "See docs/how-to/servers.md."
    return "Is it running? Are the host and port right, and may this machine connect to it?"


def _ids(error: GoscopeError) -> str:
    if isinstance(error, MissingRights):
        return "goscope.W018"
    return "goscope.W019" if isinstance(error, ServerNotSupported) else "goscope.W010"


_FINDINGS = {
    "end of life": "goscope.W016",
    "standalone": "goscope.W013",
    "no change streams": "goscope.W017",
    "not supported": "goscope.W019",
    "rights": "goscope.W018",
}


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
    found += [CheckWarning(f"{what}: {one.text}", hint=one.cure, id=_FINDINGS[one.kind]) for one in view.findings]
    if view.topology == "sharded":
        text = f"{what}: a sharded cluster. The routers' clocks must agree well within a lease."
        found.append(CheckWarning(text, hint="See docs/how-to/sharding.md.", id="goscope.W014"))
    if abs(view.clock_offset) > 60:
        text = f"{what}: this machine's clock differs from the server's by {view.clock_offset:.0f} seconds."
        found.append(CheckWarning(text, hint="Run NTP on both.", id="goscope.W015"))
    return found


def check_durability(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Whether what is committed together with business data may be taken back by a failover."""
    try:
        url = conf.current().url
        concern = urls.commit_concern(conf.target(url)) if urls.is_django(url) else None
    except ConfigurationError:
        return []
    if not isinstance(concern, int):
        return []
    text = (
        f"GOSCOPE['URL']={url!r}: that entry of DATABASES has w={concern}. A failover may take back what "
        f"idempotent(atomic=) and track(atomic=True) have committed."
    )
    hint = "Leave w out, or say w='majority'."
    return [CheckWarning(text, hint=hint, obj="settings.DATABASES", id="goscope.W021")]


def check_security(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """What is allowed, but not safe in production."""
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    found: list[CheckMessage] = []
    for what, url in stores:
        try:
            target = conf.target(url, what)
        except GoscopeError:
            continue
        if target.scheme != "mongodb":
            text = f"{what}={target.shown!r} is meant for tests and demonstrations."
            found.append(CheckWarning(text, hint="Use a MongoDB server of your own.", id="goscope.W032"))
            continue
        if urls.is_local(target.place):
            continue
        options = urls.given_options(target, conf.current().client_options)
        if not urls.encrypted(target, options):
            text = f"{what}: the connection to another machine is not encrypted."
            found.append(CheckWarning(text, hint="Add tls=true to the URL.", id="goscope.W030"))
        elif loose := urls.unverified(options):
            text = f"{what}: {', '.join(loose)} is set, so whoever answers in place of the server is believed."
            hint = "Remove it, and name the authority that signed the server's certificate: tlsCAFile."
            found.append(CheckWarning(text, hint=hint, id="goscope.W034"))
        if not urls.names_user(target.place) and not any(map(options.get, _IDENTITIES)):
            text = f"{what}: no credentials for a server on another machine."
            found.append(
                CheckWarning(text, hint="Turn on access control; see docs/reference/settings.md.", id="goscope.W031")
            )
    return found


_IDENTITIES: Final = ("username", "authmechanism", "tlscertificatekeyfile")


def check_reports(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Whether Django's pages and mails about errors would show a password of ours."""
    try:
        stores = conf.store_urls()
    except conf.BadSettings:
        return []
    from goscope_django import debug

    shown = debug.shown_settings()
    return [
        CheckWarning(
            f"{what} holds a password, and Django shows that setting on its page about an error and in its mail to "
            f"ADMINS.",
            hint=f"Set DEFAULT_EXCEPTION_REPORTER_FILTER = {debug.FILTER!r}, and give the user and the password in "
            f"GOSCOPE['CLIENT_OPTIONS']. See docs/how-to/secrets.md.",
            obj="settings.DEFAULT_EXCEPTION_REPORTER_FILTER",
            id="goscope.W033",
        )
        for what, url in stores
        if any(secret in shown for secret in urls.secrets_of(url) if len(secret) >= debug.LEAST)
    ]


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
            id="goscope.W022",
        )
        for one in found
    ]


def register() -> None:
    """Register all checks with Django."""
    register_check(check_settings, Tags.caches)
    register_check(check_atomic_requests, Tags.compatibility)
    register_check(check_durability, Tags.caches)
    register_check(check_near, Tags.caches)
    register_check(check_tests, Tags.caches)
    register_check(check_sessions, Tags.caches)
    register_check(check_stores, Tags.database)
    register_check(check_views, Tags.urls)
    register_check(check_security, Tags.security, deploy=True)
    register_check(check_reports, Tags.security, deploy=True)
