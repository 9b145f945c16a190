"""Values as text for people.

Rule of this file: what a user chose (keys, owners, notes) is escaped by the templates and comes out of ``visible``
first, so that nothing invisible is in it: no NUL, no line break, nothing that turns the direction of writing.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from django.utils import formats, timezone

LONGEST: Final = 160
"""Characters of a key that are shown."""

NONE: Final = "\u2013"
"""Stands for what there is not."""


def visible(value: object, longest: int = LONGEST) -> str:
    """``value`` on one line: control and format characters as escapes, and of a long one its beginning and length."""
    text = "" if value is None else str(value)
    size, text = len(text), text[:longest]
    if not text.isprintable():
        text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    return text if size <= longest else f"{text}… ({size:,} characters)"


def mark(*parts: object) -> str:
    """A name for an element of the page that stands for the same thing at every refresh."""
    joined = "\0".join(str(part) for part in parts)
    return "g" + hashlib.blake2s(joined.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def duration(seconds: float | None) -> str:
    """A duration in two units at most, as the page's script writes it, too."""
    if seconds is None:
        return NONE
    whole = int(seconds)
    for size, unit, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small:02d} {part}"
    return f"{whole} s"


def number(value: int, *, at_least: bool = False) -> str:
    """A count with separators; ``+`` where there are more still."""
    return f"{value:,}{'+' if at_least else ''}"


def percent(part: float | None) -> str:
    """A part of one as a percentage."""
    return NONE if part is None else f"{100 * part:.1f} %"


def size(value: int) -> str:
    """Bytes in a unit that suits them."""
    amount = float(value)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1_000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1_000
    return f"{amount:.1f} TB"


def moment(value: datetime | None, *, zone: bool = False) -> str:
    """An instant in the project's time zone: the time alone if it is of today, with the zone's name if asked for."""
    if value is None:
        return NONE
    here = timezone.get_current_timezone()
    now = datetime.now(here)  # Django's own functions for this want USE_TZ
    try:
        local = value.astimezone(here)
    except OverflowError:  # the first and the last day of the calendar, in a zone that is on another one
        local = value
    clock = local.strftime("%H:%M:%S %Z" if zone else "%H:%M:%S")
    return clock if local.date() == now.date() else f"{formats.date_format(local, 'SHORT_DATE_FORMAT')} {clock}"
