"""Says in a few words why something failed, for operators: an exception's type and text, and where it was raised.

Rules of this file:

* Never an argument, a local variable or a line of source is in it. A trace has file names, line numbers and functions.
* The text is the exception's own, and may have anything in it. So what looks like a secret, a credential, a person or a
  value in quotes is taken out; what the interpreter says of *names* (a missing attribute or module) is kept. An
  exception whose text is nothing but a value (``KeyError``) has no text.
* Nothing here raises, whatever an exception's ``__str__`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from traceback import walk_tb
from typing import Final

LONGEST: Final = 200
"""Characters of a text."""

FRAMES: Final = 8
"""Frames of a trace: the last ones."""

HIDDEN: Final = "***"
_OF_NAMES: Final = (AttributeError, ImportError, NameError, TypeError)
_MARKED: Final = (
    r"(?:[\w-]{0,30}(?:pass(?:word|wd|phrase|code)|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"credential|authorization|cookie|session(?:[_-]?(?:id|key))?|signature)|"
    r"(?:[\w-]{0,30}[_-])?(?:auth|pwd|pass|sig|jwt|otp|pin|iban|ssn))"
    r"s?(?:[_-]\w{1,30}){0,3}"
)
_CLEANED: Final = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), put)
    for pattern, put in (
        (r"\b((?:[a-z][a-z0-9+.-]*:)?//)[^\s/@'\"]*@", rf"\1{HIDDEN}@"),  # of a URL the user and the password
        (r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", rf"\1?{HIDDEN}"),  # and its query
        (r"\b(bearer|basic|digest|negotiate)\s+[^\s,;'\"]+", rf"\1 {HIDDEN}"),
        (rf"(\b{_MARKED}['\"]?\s*(?:=|:|\bis\b)\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&)\]}}]+)", rf"\1{HIDDEN}"),
        (r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+", HIDDEN),  # an e-mail address
        (r"\b\d(?:[ -]?\d){11,}\b", HIDDEN),  # a card's or an account's number
        (r"\beyJ[\w-]+(?:\.[\w-]+)*", HIDDEN),  # a JSON web token
        (r"(?<![\w+=-])(?=[\w+=-]*\d)(?=[\w+=-]*[a-z])[\w+=-]{20,}", HIDDEN),  # random text
    )
)
_QUOTED: Final = re.compile(
    r"""(?<!\w)'(?:[^'\\]|\\.)*(?:'(?!\w)|\Z)|(?<!\w)"(?:[^"\\]|\\.)*(?:"(?!\w)|\Z)|\u201c[^\u201d]*(?:\u201d|\Z)""",
    re.DOTALL,
)
"""What stands in quotes, also where its end was cut off. An apostrophe inside a word is none."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something failed: the exception's type, and its text, which may be empty."""

    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.type}: {self.text}" if self.text else self.type


def reason(error: BaseException) -> Reason:
    """The type and the cleaned, shortened text of ``error``."""
    return Reason(type(error).__name__[:LONGEST], _text(error))


def trace(error: BaseException) -> list[str]:
    """Where ``error`` was raised: ``shop/tasks.py:42 in charge`` for each of the last ``FRAMES`` frames, outermost
    first."""
    found = []
    for frame, line in walk_tb(error.__traceback__):
        code = frame.f_code
        file = "/".join(PurePath(code.co_filename).parts[-2:])
        found.append(_short(f"{file}:{line} in {code.co_qualname}"))
        del found[:-FRAMES]
    return found


def _text(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return ""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  whatever a user's exception does
        return ""
    text = text[: 3 * LONGEST]
    for pattern, put in _CLEANED:
        text = pattern.sub(put, text)
    if not isinstance(error, _OF_NAMES):
        text = _QUOTED.sub(HIDDEN, text)
    return _short(" ".join(text.split()))


def _short(text: str) -> str:
    if not text.isprintable():
        text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
