"""URLs of stores: their schemes, what they name, and how to show them without secrets.

Rules of this file:

* It reads and checks text, and opens nothing. ``mongodb+srv`` is not resolved here, nor is ``django``, since what that
  names stands in Django's settings: ``conf`` makes the target of it.
* Pages and mails about an error show the variables of every function that was running. So what goes from function to
  function is ``Hidden`` or ``Options``, and an error is raised where the parts of a URL are out of reach.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard
from urllib.parse import parse_qsl, unquote, unquote_plus

from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb.embedded.process import NOT_ON_WINDOWS

SCHEMES: Final = ("mongodb", "mongodb+srv", "embedded", "mongomock", "django")
DEFAULT_DATABASE: Final = "goscope"
_FORBIDDEN: Final = re.compile(r'[/\\. "$*<>:|?\0]')
_ESCAPES: Final = "in a user name and a password : / ? # [ ] @ and % are written as %3A %2F %3F %23 %5B %5D %40 and %25"
_BEGINS: Final = re.compile(r"[\w+]+://")
_SECRET: Final = re.compile(r"(?i)([?&;][^=&;]*(?:password|passwd|secret|token|mechanismproperties)[^=&;]*=)[^&;]*")


def masked(url: object) -> str:
    """``url`` with passwords and tokens replaced by ``***``, however malformed it is."""
    text = url if isinstance(url, str) else repr(url)
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "", text
    if "@" in rest:
        # A password may itself hold "@" or "/": everything up to the last "@" counts as credentials.
        credentials, _, rest = rest.rpartition("@")
        user = credentials.partition(":")[0] if ":" in credentials else credentials
        rest = f"{user}:***@{rest}" if ":" in credentials else f"{user}@{rest}"
    shown = _SECRET.sub(r"\1***", f"{scheme}{mark}{rest}")
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


class Hidden(str):
    """A text whose ``repr`` shows no password: a URL is masked, anything else is not shown at all."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(str(self))) if _BEGINS.match(self) else repr("***")


class Options(dict[str, Any]):
    """Keyword arguments of a client, whose ``repr`` shows names only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<options: {', '.join(sorted(map(str, self))) or 'none'}>"


def without_secrets(text: str, url: str) -> str:
    """The driver's message about ``url``; a general one instead if it quotes what may be part of a password."""
    text = text.replace(url, masked(url))
    credentials = url.partition("://")[2].rpartition("@")[0]
    parts = re.findall(r"\w{3,}", f"{credentials.partition(':')[2]} {unquote(credentials).partition(':')[2]}")
    if any(part in text for part in parts):
        return f"it can't be read; {_ESCAPES}"
    return text[:300]


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL names. ``place`` is the URL, for ``embedded`` the folder, for ``mongomock`` the store's name."""

    scheme: Literal["mongodb", "embedded", "mongomock"]
    place: str = field(repr=False)
    database: str
    shown: str
    options: frozenset[str] = frozenset()
    """Lower-case names of the options that the URL itself sets."""
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """Keyword arguments for the client that come with the place: those of an entry of ``DATABASES``."""


def _checked_database(name: str, what: str, shown: str) -> str:
    if _FORBIDDEN.search(name) or len(name.encode(errors="replace")) > 63:
        raise ConfigurationError(
            f"{what}={shown!r}: the database name {name!r} is not allowed; up to 63 bytes without "
            f'any of / \\ . " $ * < > : | ? and space'
        )
    return name


def parse(url: object, what: str = "URL", *, base: Path | None = None) -> Target:
    """The target that ``url`` names; ``what`` is the setting's name for errors, ``base`` where relative folders begin.

    Raises ``ConfigurationError``, which names the setting, the value (secrets masked) and what is allowed.
    """
    found = _tried(url, what, base)
    del url
    if isinstance(found, ConfigurationError):
        raise found
    return found


def _tried(url: object, what: str, base: Path | None) -> Target | ConfigurationError:
    try:
        return _parsed(url, what, base)
    except ConfigurationError as error:
        return bare(error)


def bare(error: ConfigurationError) -> ConfigurationError:
    """``error`` without the functions that it went through, which hold parts of a URL, and without what it hides."""
    error.__context__ = None
    return error.with_traceback(None)


def _parsed(url: object, what: str, base: Path | None) -> Target:
    shown = masked(url)
    if not isinstance(url, str):
        raise ConfigurationError(f"{what}={shown}: a URL (str) is needed, not {type(url).__name__}")
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ConfigurationError(f"{what}={shown!r}: the scheme must be one of {', '.join(f'{s}://' for s in SCHEMES)}")
    place, _, query = rest.partition("?")
    if scheme.startswith("mongodb"):
        return _server(url, place, query, what, shown)
    if scheme == "django":
        raise ConfigurationError(f"{what}={shown!r}: django:// names an entry of Django's DATABASES; here is no Django")
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - {"database"})
    if unknown or (query and not given):
        names = "" if "@" in url else f" {', '.join(unknown) or query!r}"  # a part of a password, perhaps
        raise ConfigurationError(f"{what}={shown!r}: unknown option{names}; allowed is database")
    database = given.get("database", DEFAULT_DATABASE)
    if not database:
        raise ConfigurationError(f"{what}={shown!r}: database= is empty; a name is needed")
    database = _checked_database(database, what, shown)
    if scheme == "mongomock":
        return Target("mongomock", unquote(place), database, shown)
    if not place:
        raise ConfigurationError(
            f"{what}={shown!r}: a folder is needed: embedded:///absolute/dir or embedded://relative/dir"
        )
    if sys.platform == "win32":
        raise ConfigurationError(f"{what}={shown!r}: {NOT_ON_WINDOWS}")
    folder = Path(unquote(place))
    return Target("embedded", str(folder if folder.is_absolute() else (base or Path.cwd()) / folder), database, shown)


def is_django(url: object) -> TypeGuard[str]:
    """Whether ``url`` names an entry of Django's ``DATABASES``."""
    return isinstance(url, str) and url.startswith("django://")


def django_names(url: str, what: str) -> tuple[str, str | None]:
    """The alias and the database that a ``django://`` URL names. Raises ``ConfigurationError``."""
    shown, rest = masked(url), url.removeprefix("django://")
    allowed = "django://<alias> or django://<alias>/<database> is allowed"
    if "@" in rest or "?" in rest:
        raise ConfigurationError(
            f"{what}={shown!r}: credentials and options come from the entry of DATABASES; {allowed}"
        )
    alias, slash, database = rest.partition("/")
    if not alias:
        raise ConfigurationError(f"{what}={shown!r}: the alias of an entry of DATABASES is needed; {allowed}")
    if slash and not database:
        raise ConfigurationError(f"{what}={shown!r}: the database behind the alias is empty; {allowed}")
    return unquote(alias), _checked_database(unquote(database), what, shown) if database else None


def entry_target(what: str, shown: str, given: Mapping[str, Any], database: str) -> Target:
    """The target of ``given``, the keyword arguments of a client with its ``host``, on ``database``."""
    arguments = Options(given)
    host = arguments.pop("host", None) or "localhost"
    place = host if isinstance(host, str) else ",".join(map(str, host))
    query = place.partition("?")[2] if "://" in place else ""
    named = [name for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True)]
    options = frozenset(name.lower() for name in (*named, *arguments))
    return Target("mongodb", Hidden(place), _checked_database(database, what, shown), shown, options, arguments)


def given_options(target: Target, more: Mapping[str, Any]) -> dict[str, object]:
    """The options by their lower-case names (``ssl`` is ``tls``): of the place, of its arguments, and ``more``, the
    last of which holds."""
    query = target.place.partition("?")[2] if "://" in target.place else ""
    found: dict[str, object] = {}
    for layer in (parse_qsl(query.replace(";", "&")), target.arguments.items(), more.items()):
        for name, value in layer:
            lower = name.lower()
            if value is not None:
                found["tls" if lower == "ssl" else lower] = value
    return found


UNVERIFIED: Final = ("tlsInsecure", "tlsAllowInvalidCertificates", "tlsAllowInvalidHostnames")
_IMPLY_TLS: Final = ("tlscafile", "tlscrlfile", "tlscertificatekeyfile", "tlsdisableocspendpointcheck")


def encrypted(target: Target, options: Mapping[str, object]) -> bool:
    """Whether the connection is encrypted. ``options`` are ``given_options``. As for the driver, ``tls`` decides, and
    where it is not said another option of TLS turns it on, and so does ``mongodb+srv``."""
    if "tls" in options:
        return _true(options["tls"])
    implied = any(_true(options.get(name)) for name in (*_IMPLY_TLS, *map(str.lower, UNVERIFIED)))
    return implied or target.place.startswith("mongodb+srv:")


def unverified(options: Mapping[str, object]) -> list[str]:
    """The options by which a server is not asked to prove who it is."""
    return [name for name in UNVERIFIED if _true(options.get(name.lower()))]


def _true(value: object) -> bool:
    return value.lower() not in ("", "false") if isinstance(value, str) else bool(value)


def names_user(place: str) -> bool:
    """Whether a ``mongodb://`` URL has a user. An ``@`` in an option is none."""
    return bool(place.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[0].partition(":")[0])


def secrets_of(url: str) -> set[str]:
    """The passwords and tokens in ``url``, as they are written and as they are."""
    credentials = url.partition("://")[2].rpartition("@")[0]
    found = {credentials.partition(":")[2]}
    found |= {text.partition("=")[2] for text in re.split("[?&;]", url) if _SECRET.match(f"?{text}")}
    return {text for one in found if one for text in (one, unquote(one), unquote_plus(one))}


def commit_concern(target: Target) -> object:
    """The ``w`` that the place or its arguments give, as a number where it is one; ``None`` if they don't."""
    given = given_options(target, {}).get("w")
    return int(given) if isinstance(given, str) and given.isdecimal() else given


def path_of(url: str) -> str:
    """The database in the path of a ``mongodb://`` URL, or an empty text."""
    return unquote(url.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[2])


def _server(url: str, place: str, query: str, what: str, shown: str) -> Target:
    credentials, _, place = place.rpartition("@")
    if re.search(r"[/@]|:.*:|%(?![0-9a-fA-F]{2})", credentials):
        raise ConfigurationError(f"{what}={shown!r}: {_ESCAPES}")
    hosts, _, path = place.partition("/")
    if not hosts:
        raise ConfigurationError(f"{what}={shown!r}: a host is needed: mongodb://host:port/database")
    database = unquote(path)
    if not database:
        raise ConfigurationError(f"{what}={shown!r}: a database is needed as the path: mongodb://host:port/database")
    database = _checked_database(database, what, shown)
    given = parse_qsl(query.replace(";", "&"), keep_blank_values=True)
    if url.startswith("mongodb+srv://") and re.search(r"[,:]", hosts):
        raise ConfigurationError(f"{what}={shown!r}: mongodb+srv:// takes one name of a host, without a port")
    if url.startswith("mongodb://"):  # what stands behind mongodb+srv:// only a name server knows
        _ask_driver(url, query, what, shown)
    return Target("mongodb", Hidden(url), database, shown, frozenset(name.lower() for name, _ in given))


def _ask_driver(url: str, query: str, what: str, shown: str) -> None:
    """Raise if the driver refuses the hosts or the value of an option. It ignores options that it does not know."""
    try:
        parse_uri(url, validate=False)
        for option in filter(None, re.split("[&;]", query)):
            if option.lower().startswith("compressors="):
                continue  # one that is not installed is passed over with a warning, once, by the client
            try:
                parse_uri(f"mongodb://host/?{option}", warn=False)
            except DriverConfigurationError as error:
                if "Unknown option" not in str(error):
                    raise
    except (PyMongoError, OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{what}={shown!r}: {without_secrets(str(error), url)}") from None


def is_local(url: str) -> bool:
    """Whether every host of a ``mongodb://`` URL, or of a list of hosts, is this machine: ``localhost`` itself, a
    loopback address or a socket."""
    scheme, mark, rest = url.partition("://")
    if mark and scheme != "mongodb":
        return False
    hosts = rest.partition("?")[0].partition("/")[0].rpartition("@")[2] if mark else url
    return all(map(_is_here, hosts.split(",")))


def _is_here(host: str) -> bool:
    if host.lower().startswith("%2f") or host.endswith(".sock"):
        return True
    if host.startswith("["):
        host, _, port = host[1:].partition("]")
        if port and not port.startswith(":"):
            return False
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:  # a name, and what that is only a name server knows
        return False
    return address.is_loopback or bool(address.version == 6 and address.ipv4_mapped and address.ipv4_mapped.is_loopback)
