"""Numbers, durations and users' text as people read them: on the dashboard (``PAGE``) and in a terminal (``TERMINAL``).

Rule of this file: what a user chose (keys, owners, notes) comes out of ``escaped``, so that nothing invisible is in it:
no NUL, no line break, nothing that steers a terminal or turns the direction of writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wording:
    """``none`` stands for what there is not, ``space`` between a number and its unit. With ``tenths`` a duration of
    less than ten seconds has them."""

    none: str
    space: str
    tenths: bool

    def duration(self, seconds: float | None) -> str:
        """Seconds in two units at most."""
        if seconds is None:
            return self.none
        whole = int(seconds)
        for size, unit, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
            if whole >= size:
                return f"{whole // size}{self.space}{unit} {whole % size // small:02d}{self.space}{part}"
        return f"{seconds:.1f}{self.space}s" if self.tenths and seconds < 10 else f"{whole}{self.space}s"

    def percent(self, part: float | None) -> str:
        """A part of 1 as a percentage."""
        return self.none if part is None else f"{100 * part:.1f}{self.space}%"


PAGE: Final = Wording(none="\u2013", space=" ", tenths=False)
TERMINAL: Final = Wording(none="-", space="", tenths=True)


def number(value: int, *, at_least: bool = False) -> str:
    """A count with separators; ``+`` where there are more still."""
    return f"{value:,}{'+' if at_least else ''}"


def escaped(value: object) -> str:
    """``value`` on one line: control and format characters and lone surrogates as escapes."""
    text = str(value)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def shortened(text: str, most: int = 200) -> str:
    """``text`` escaped, its end left out if it is longer than ``most``."""
    return escaped(text if len(text) <= most else f"{text[: most - 1]}\u2026")


def named(key: str) -> str:
    """A key in a sentence: in quotes, shortened."""
    return repr(key if len(key) <= 120 else f"{key[:119]}\u2026")
