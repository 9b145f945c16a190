"""Patterns for keys, as Redis knows them.

Rule of this file: a pattern is matched here, in the process. The server only gets the prefix that every match has.
"""

from __future__ import annotations

import re
from typing import Final

from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue

_SPECIAL: Final = re.compile(r"[*?\[\\]")


class Glob:
    """A pattern: ``*``, ``?``, ``[abc]``, ``[^a]``, ``[a-z]``; ``\\`` takes the next character as it is.

    ``prefix`` is what every match begins with. ``only_prefix`` is true if every key with this prefix matches. Raises
    ``InvalidType`` for anything but text, ``InvalidValue`` for a pattern that is none.
    """

    def __init__(self, pattern: object) -> None:
        if not isinstance(pattern, str):
            raise InvalidType(f"pattern={pattern!r:.80}: a glob (str) such as 'user:*' is needed")
        arguments.key(pattern, "pattern")
        self.prefix = pattern[: match.start()] if (match := _SPECIAL.search(pattern)) else pattern
        self.only_prefix = pattern == f"{self.prefix}*"
        self._match = re.compile(_regex(pattern), re.DOTALL).fullmatch

    def matches(self, key: str, start: int = 0) -> bool:
        """Whether ``key`` from ``start`` on matches as a whole."""
        return self.only_prefix or self._match(key, start) is not None


def _end_of_class(pattern: str, at: int) -> int:
    """Where the class that begins at ``at`` ends with ``]``; 0 if nowhere. A ``]`` at its start is a member."""
    at += pattern[at : at + 1] == "^"
    first = at
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at if at < len(pattern) else 0


def _class(inner: str) -> str:
    negated = inner.startswith("^")
    parts, at = [], int(negated)
    while at < len(inner):
        at += inner[at] == "\\" and at + 1 < len(inner)
        if inner[at + 1 : at + 2] == "-" and at + 2 < len(inner):
            parts.append(f"{re.escape(inner[at])}-{re.escape(inner[at + 2])}")
            at += 3
        else:
            parts.append(re.escape(inner[at]))
            at += 1
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _regex(pattern: str) -> str:
    parts, at = [], 0
    while at < len(pattern):
        char, at = pattern[at], at + 1
        if char == "*":
            parts.append(".*")
        elif char == "?":
            parts.append(".")
        elif char == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        elif char == "[" and (end := _end_of_class(pattern, at)):
            parts.append(_class(pattern[at:end]))
            at = end + 1
        else:
            parts.append(re.escape(char))
    text = "".join(parts)
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidValue(f"pattern={pattern!r:.80}: not a glob: {error}") from None
    return text
