"""Patterns for keys, as Redis knows them.

Rules of this file: a pattern is matched here, in the process. The server only gets the prefix that every match has.
A pattern may come from outside, so matching takes at most (length of the key) times (length of the pattern) steps.
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
        if self.only_prefix:
            return key.startswith(self.prefix, start)
        return self._match(key, start) is not None


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
    """Between two stars all have a fixed length. So the first place where such a part fits is as good as any later one,
    and is never given up again: that is what the atomic groups say. Only the last part has to be at the end."""
    parts, at, stars = [""], 0, False
    while at < len(pattern):
        char, at = pattern[at], at + 1
        if char == "*":
            if parts[-1] or not stars:
                parts.append("")
            stars = True
        elif char == "?":
            parts[-1] += "."
        elif char == "\\" and at < len(pattern):
            parts[-1] += re.escape(pattern[at])
            at += 1
        elif char == "[" and (end := _end_of_class(pattern, at)):
            parts[-1] += _class(pattern[at:end])
            at = end + 1
        else:
            parts[-1] += re.escape(char)
    text = parts[0]
    if stars:
        text += "".join(f"(?>.*?{part})" for part in parts[1:-1]) + ".*" + parts[-1]
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidValue(f"pattern={pattern!r:.80}: not a glob: {error}") from None
    return text
