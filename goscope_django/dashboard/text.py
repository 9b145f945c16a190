"""Values as text for the page.

Rule of this file: what a user chose (keys, owners, notes) comes out of ``visible``, and the templates escape it for
HTML.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Final

from django.utils import formats, timezone

from goscope_django.operations.wording import PAGE, escaped, number

__all__ = ["NONE", "duration", "mark", "minute", "moment", "number", "percent", "process_of", "size", "visible"]

_PROCESS: Final = re.compile(r"([^\s,:]{1,100}:[0-9]{1,10})(?=,|$)")

LONGEST: Final = 160
"""Characters of a key that are shown."""

NONE: Final = PAGE.none
duration: Final = PAGE.duration
"""As the page's script writes it, too."""
percent: Final = PAGE.percent


def visible(value: object, longest: int = LONGEST) -> str:
    """``value`` on one line, without what is invisible. Of a long one its beginning, and its length."""
    text = "" if value is None else str(value)
    shown = escaped(text[:longest])
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def mark(*parts: object) -> str:
    """An id for an element of the page, the same for the same thing at every refresh."""
    joined = "\0".join(str(part) for part in parts)
    return "g" + hashlib.blake2s(joined.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def process_of(holder: str | None) -> str | None:
    """``host:pid`` at the beginning of a holder's description; ``None`` where there is none."""
    found = _PROCESS.match(holder or "")
    return found[1] if found else None


def size(value: int) -> str:
    """Bytes in a unit that suits them."""
    amount = float(value)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1_000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1_000
    return f"{amount:.1f} TB"


def minute(value: datetime) -> str:
    """The time of day of an instant in the project's time zone, to the minute."""
    return _local(value).strftime("%H:%M")


def moment(value: datetime | None, *, zone: bool = False) -> str:
    """An instant in the project's time zone: the time alone if it is of today, with the zone's name if ``zone``."""
    if value is None:
        return NONE
    now = datetime.now(timezone.get_current_timezone())  # Django's own functions for this want USE_TZ
    local = _local(value)
    clock = local.strftime("%H:%M:%S %Z" if zone else "%H:%M:%S")
    return clock if local.date() == now.date() else f"{formats.date_format(local, 'SHORT_DATE_FORMAT')} {clock}"


def _local(value: datetime) -> datetime:
    try:
        return value.astimezone(timezone.get_current_timezone())
    except OverflowError:  # the first and the last day of the calendar, in a zone that is on another one
        return value
