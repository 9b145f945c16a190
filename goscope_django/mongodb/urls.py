"""URLs of stores: their schemes, what they name, and how they look with their secrets masked.

Rule of this file: it parses and judges text; it opens nothing. ``mongodb+srv`` is not resolved here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from goscope_django.exceptions import ConfigurationError

SCHEMES: Final = ("mongodb", "mongodb+srv", "embedded", "mongomock")
DEFAULT_DATABASE: Final = "goscope"
_FORBIDDEN: Final = re.compile(r'[/\\. "$*<>:|?\0]')
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


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL names. ``place`` is the URL, for ``embedded`` the folder, for ``mongomock`` the store's name."""

    scheme: Literal["mongodb", "embedded", "mongomock"]
    place: str = field(repr=False)
    database: str
    shown: str
    options: frozenset[str] = frozenset()
    """Lower-case names of the options that the URL itself sets."""


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
    shown = masked(url)
    if not isinstance(url, str):
        raise ConfigurationError(f"{what}={shown}: a URL (str) is needed, not {type(url).__name__}")
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ConfigurationError(f"{what}={shown!r}: the scheme must be one of {', '.join(f'{s}://' for s in SCHEMES)}")
    place, _, query = rest.partition("?")
    if scheme.startswith("mongodb"):
        return _server(url, place, query, what, shown)
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - {"database"})
    if unknown or (query and not given):
        raise ConfigurationError(
            f"{what}={shown!r}: unknown option {', '.join(unknown) or query!r}; allowed is database"
        )
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
    folder = Path(unquote(place))
    return Target("embedded", str(folder if folder.is_absolute() else (base or Path.cwd()) / folder), database, shown)


def _server(url: str, place: str, query: str, what: str, shown: str) -> Target:
    # Slashes in credentials must be escaped, so the first one after the last "@" ends the hosts.
    hosts, _, path = place.rpartition("@")[2].partition("/")
    if not hosts:
        raise ConfigurationError(f"{what}={shown!r}: a host is needed: mongodb://host:port/database")
    database = unquote(path)
    if not database:
        raise ConfigurationError(f"{what}={shown!r}: a database is needed as the path: mongodb://host:port/database")
    options = frozenset(name.lower() for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True))
    return Target("mongodb", url, _checked_database(database, what, shown), shown, options)


def is_local(url: str) -> bool:
    """Whether every host of a ``mongodb://`` URL is this machine (a loopback address or a socket)."""
    if not url.startswith("mongodb://"):
        return False
    hosts = url.removeprefix("mongodb://").partition("?")[0].rpartition("@")[2].partition("/")[0]
    return all(
        host.lower().startswith(("localhost", "127.", "[::1]")) or host.lower().startswith("%2f")
        for host in hosts.split(",")
    )
