"""What all commands of an operator share: their output, their questions, their exit codes.

==== =============================================================================================
0    all is well, and what was asked for is done
1    a check failed, the named thing is not there, or it has changed since it was seen
2    wrong usage or settings, or the server can't be reached: nothing can be told
141  whoever read the output went away (``| head``): as shells report it of a program that a closed pipe ended
==== =============================================================================================

With ``--json`` there is exactly one JSON document on stdout, with a ``schema_version``, also for a failure
(``error``). Messages and questions go to stderr. Text from users is shown with its control characters escaped: a key
can't steer a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from goscope_django.exceptions import (
    ConfigurationError,
    GoscopeError,
    IndexConflict,
    InvalidType,
    InvalidValue,
    NotFound,
    StateChanged,
    StoreError,
)
from goscope_django.operations import SCHEMA_VERSION, plain

WIDTH: Final = 80
FAILED, UNKNOWN, NO_READER = 1, 2, 141
LARGEST_LIMIT: Final = 10**9
_FAILED: Final = (NotFound, StateChanged, IndexConflict)
_USAGE: Final = (ConfigurationError, InvalidType, InvalidValue, ImproperlyConfigured)


class Error(CommandError):
    """What ends a command with an exit code other than 0, after its output."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message, returncode=code)
        self.code = code


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    if isinstance(error, CommandError):
        return error.returncode
    return FAILED if isinstance(error, _FAILED) else UNKNOWN


class OperatorCommand(BaseCommand):
    """A command whose subclass has ``act``, which prints either the JSON document or the same as text."""

    requires_system_checks = ()  # bad settings get a message of their own, and nothing else matters here
    _as_json = False

    @staticmethod
    def add_json(parser: Any) -> None:
        """Add ``--json``. To each subparser, so that it may stand behind the verb."""
        parser.add_argument("--json", action="store_true", dest="as_json", help="One JSON document on stdout.")

    @staticmethod
    def add_no_input(parser: Any) -> None:
        """Add ``--no-input``."""
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="Do not ask for confirmation."
        )

    def verbs(self, parser: CommandParser) -> Callable[..., CommandParser]:
        """Let the command have verbs: a function that adds one."""
        group = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        def add(name: str, text: str, *, asks: bool = False) -> CommandParser:
            one: CommandParser = group.add_parser(name, help=text, description=text)
            self.add_json(one)
            if asks:
                self.add_no_input(one)
            return one

        return add

    def run_from_argv(self, argv: list[str]) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # it was closed by whoever started us
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (open as long as the process runs)
                setattr(self, name, OutputWrapper(getattr(sys, name)))
            elif isinstance(stream, TextIOWrapper):  # what the terminal's encoding lacks is shown as an escape
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                super().run_from_argv(argv)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (1, 2):  # so that what is still to be flushed at the end fails no more
                os.dup2(nowhere, descriptor)
            sys.exit(NO_READER)

    def handle(self, *args: Any, **options: Any) -> None:
        self._as_json = bool(options.get("as_json"))
        try:
            self.act(**options)
        except (GoscopeError, ImproperlyConfigured, CommandError) as error:
            code = exit_code(error)
            if self._as_json and not getattr(error, "shown", False):
                self.document({"error": {"type": type(error).__name__, "message": str(error)}})
            raise Error(self.explained(error), code) from error

    def act(self, **options: Any) -> None:
        """Do it. Raises ``Error`` and our errors."""
        raise NotImplementedError

    @staticmethod
    def explained(error: BaseException) -> str:
        """The message for an operator: what is wrong, and what to do about it."""
        if isinstance(error, (*_FAILED, CommandError)):
            return str(error)
        if isinstance(error, ImproperlyConfigured):
            return f"{str(error).rstrip('.')}. `manage.py check` shows all that is wrong with the settings."
        if isinstance(error, _USAGE) or not isinstance(error, StoreError):
            return str(error)
        return f"{error}. Is the server running and reachable? `manage.py goscope_status` tells more."

    # Output

    def document(self, content: dict[str, Any]) -> None:
        """Print the one JSON document."""
        shown = {"schema_version": SCHEMA_VERSION, **plain(content)}
        self.stdout.write(json.dumps(shown, indent=2 if self.stdout.isatty() else None, ensure_ascii=True))

    def failed(self, message: str, code: int = FAILED) -> Error:
        """An ``Error`` whose output is on stdout already."""
        error = Error(message, code)
        error.shown = True  # type: ignore[attr-defined]
        return error

    def line(self, text: str = "", style: Callable[[str], str] | None = None) -> None:
        """A line for people; with ``--json`` there are none on stdout."""
        if not self._as_json:
            self.stdout.write(text, style)

    def note(self, text: str) -> None:
        """A message beside the output."""
        self.stderr.write(text, self.style.NOTICE)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[object]], *, flexible: int = 0) -> None:
        """A table that fits ``WIDTH`` columns; the column number ``flexible`` gives way first."""
        for number, text in enumerate(tabulated(headers, rows, flexible)):
            self.line(text, self.style.MIGRATE_HEADING if number == 0 else None)

    # Questions

    def confirm(self, question: str, *, interactive: bool) -> None:
        """Ask, unless ``--no-input``. Raises ``Error`` with code 1 for any answer but yes (Ctrl-C is one), with 2
        where nobody can answer."""
        if not interactive:
            return
        if not sys.stdin.isatty():
            raise Error(f"{question} There is nobody to ask here: say --no-input to go ahead.", UNKNOWN)
        try:  # from the question on: Ctrl-C may come as soon as it is read
            self.stderr.write(f"{question} Type 'yes' to go ahead: ", ending="")
            self.stderr.flush()
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            answer = ""
            self.stderr.write("")
        if answer.strip().lower() not in ("y", "yes"):
            raise Error("Nothing was done.", FAILED)


# Text


def escaped(value: object) -> str:
    """``value`` as text of one line: control characters and lone surrogates as escapes."""
    text = str(value)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(one: str) -> int:
    if unicodedata.category(one) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def cut(text: str, width: int) -> str:
    """``text`` in ``width`` columns, its end cut off if need be."""
    if columns(text) <= width:
        return text
    left = width - 1
    for at, one in enumerate(text):
        left -= _columns(one)
        if left < 0:
            return f"{text[:at]}…"
    return text


def tabulated(headers: Sequence[str], rows: Iterable[Sequence[object]], flexible: int = 0) -> list[str]:
    """The lines of a table of at most ``WIDTH`` columns."""
    cells = [[escaped("-" if cell is None else cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(headers, *cells, strict=True)]
    order = [flexible, *(at for at in range(len(widths)) if at != flexible)]
    for at in order:
        over = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if over > 0:
            widths[at] = max(min(8, widths[at]), widths[at] - over)
    lines = []
    for row in ([*headers], *cells):
        fitted = [cut(cell, width) for cell, width in zip(row, widths, strict=True)]
        padded = [cell + " " * (width - columns(cell)) for cell, width in zip(fitted, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def duration(seconds: float | None) -> str:
    """A duration in two units at most."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for size, unit, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // small:02d}{part}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"


def number(value: int, *, at_least: bool = False) -> str:
    """A count with separators; ``+`` where there are more still."""
    return f"{value:,}{'+' if at_least else ''}"


def percent(part: float | None) -> str:
    """A part of one as a percentage."""
    return "-" if part is None else f"{100 * part:.1f}%"


def positive(text: str) -> int:
    """An argument: a whole number from 1 to a thousand millions."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= LARGEST_LIMIT:
        raise ArgumentTypeError(f"{text!r}: a whole number from 1 to {LARGEST_LIMIT} is needed")
    return value


def whole(text: str) -> int:
    """An argument: a whole number from 0 to 2**63 - 1."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise ArgumentTypeError(f"{text!r}: a whole number from 0 to 2**63 - 1 is needed")
    return int(text)


def seconds(text: str) -> float:
    """An argument: a duration of 0.2 to 3,600 seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.2 <= value <= 3_600:
        raise ArgumentTypeError(f"{text!r}: seconds from 0.2 to 3600 are needed")
    return value
