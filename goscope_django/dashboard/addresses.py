"""The addresses of things: ``lock/report~20daily/``. Any key makes one segment of a path that nothing alters.

Rules of this file:

* Letters, digits, ``-``, ``_``, ``.``, ``:`` and ``@`` stand for themselves, every other byte of UTF-8 is ``~`` and two
  hexadecimal digits. So there is no slash, no NUL and no ``%`` in it. A lone ``~`` is the empty key.
* A key that would make an address too long for some server has none. It is posted instead.
"""

from __future__ import annotations

import re
from typing import Final

from goscope_django.operations.details import KINDS

NOUNS: Final = KINDS
"""What has an address."""

LONGEST: Final = 1_000
"""Characters of a segment, at most."""

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:@")
_ESCAPE: Final = re.compile(rb"~([0-9A-Fa-f]{2})")


def encoded(key: str) -> str | None:
    """The segment of a path for ``key``; ``None`` if it would be too long."""
    raw = key.encode("utf-8", "surrogatepass")
    if len(raw) > LONGEST:
        return None
    found = "".join(chr(byte) if byte in _PLAIN else f"~{byte:02X}" for byte in raw) or "~"
    if not found.strip("."):
        found = found.replace(".", "~2E")  # browsers and servers resolve dots
    return found if len(found) <= LONGEST else None


def decoded(segment: str) -> str:
    """The opposite of ``encoded``; what was typed by hand stands for itself. Raises ``ValueError`` for what is no
    text."""
    if segment == "~":
        return ""
    raw = segment.encode()
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw).decode()
