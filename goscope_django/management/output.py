"""What all our commands share: their output, their questions and their exit codes.

==== =============================================================================================
0    all is well, and what was asked for is done
1    a check failed, the named thing is not there, or it has changed since it was seen
2    wrong usage or settings, or the server can't be reached: nothing can be told
141  whoever read the output stopped reading (``| head``); shells say the same of a program that a closed pipe ended
==== =============================================================================================

Rules of this file:

* With ``--json`` there is exactly one JSON document on stdout, with a ``schema_version``, also for a failure
  (``error``). Messages and questions go to stderr.
* Text of users is shown with its control characters escaped: a key can't steer a terminal.
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
    CredentialsRefused,
    GoscopeError,
    IndexConflict,
    InvalidType,
    InvalidValue,
    MissingRights,
    NotFound,
    ServerNotSupported,
    StateChanged,
    StoreError,
)
from goscope_django.operations import SCHEMA_VERSION, Done, plain
from goscope_django.operations.convert import hint
from goscope_django.operations.values import Section
from goscope_django.operations.wording import TERMINAL, escaped, number

WIDTH: Final = 80
FAILED, UNKNOWN, NO_READER = 1, 2, 141
LARGEST_LIMIT: Final = 10**9
duration, percent = TERMINAL.duration, TERMINAL.percent

_FAILED: Final = (NotFound, StateChanged, IndexConflict)
_USAGE: Final = (ConfigurationError, InvalidType, InvalidValue, ImproperlyConfigured)


class Error(CommandError):
    """Ends a command with the exit code ``code``. ``shown``: its JSON document is on stdout already."""

    def __init__(self, message: str, code: int = FAILED, *, shown: bool = False) -> None:
        super().__init__(message, returncode=code)
        self.code = code
        self.shown = shown


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    if isinstance(error, CommandError):
        return error.returncode
    return FAILED if isinstance(error, _FAILED) else UNKNOWN


class OperatorCommand(BaseCommand):
    """A command. Its subclass has ``act``, which prints either the JSON document or the same as text.

    ``as_json`` says which of the two.
    """

    requires_system_checks = ()  # bad settings get a message of their own, and nothing else matters here
    as_json = False

    @staticmethod
    def add_json(parser: Any) -> None:
        """Add ``--json``."""
        parser.add_argument("--json", action="store_true", dest="as_json", help="One JSON document on stdout.")

    @staticmethod
    def add_no_input(parser: Any) -> None:
        """Add ``--no-input``."""
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="Do not ask for confirmation."
        )

    def verbs(self, parser: CommandParser) -> Callable[..., CommandParser]:
        """Give the command verbs. Returns a function that adds one; it has ``--json``, so that it may stand behind the
        verb, and with ``asks`` also ``--no-input``."""
        group = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        def add(name: str, text: str, *, asks: bool = False) -> CommandParser:
            one: CommandParser = group.add_parser(name, help=text, description=text)
            self.add_json(one)
            if asks:
                self.add_no_input(one)
            return one

        return add

    @staticmethod
    def add_paging(parser: CommandParser, things: str, name: str, searched: str) -> None:
        """Add ``--search``, ``--limit`` and ``--after`` for a list of ``things``, each of which has a ``name``."""
        parser.add_argument("--search", default="", help=f"Only those with this text in their {searched}.")
        parser.add_argument("--limit", type=positive, default=100, help=f"{things} to list at most (default: 100).")
        parser.add_argument("--after", help=f"Go on behind this {name}.")

    def run_from_argv(self, argv: list[str]) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # it was closed by whoever started us
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  open as long as the process runs
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
            for descriptor in (1, 2):  # so that what is flushed at the end does not fail again
                os.dup2(nowhere, descriptor)
            sys.exit(NO_READER)

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json = bool(options.get("as_json"))
        try:
            self.act(**options)
        except (GoscopeError, ImproperlyConfigured, CommandError) as error:
            code = exit_code(error)
            if self.as_json and not getattr(error, "shown", False):
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
        if isinstance(error, (CredentialsRefused, MissingRights)):
            return f"{str(error).rstrip('.')}. {hint('', error)}"
        if isinstance(error, ServerNotSupported):
            return str(error)
        return f"{error}. Is the server running and reachable? `manage.py goscope_status` tells more."

    # Output

    def done(self, done: Done) -> None:
        """Print what an action did."""
        if self.as_json:
            self.document({"done": done})
        self.line(done.message, self.style.SUCCESS)

    def more(self, found: Section[Any]) -> None:
        """Say how the list goes on, if it does."""
        if found.next is not None:
            self.note(f"{len(found.items)} of {number(found.total)}; go on with --after {found.next!r}.")

    def document(self, content: dict[str, Any]) -> None:
        """Print the one JSON document."""
        shown = {"schema_version": SCHEMA_VERSION, **plain(content)}
        self.stdout.write(json.dumps(shown, indent=2 if self.stdout.isatty() else None, ensure_ascii=True))

    def failed(self, message: str, code: int = FAILED) -> Error:
        """An ``Error`` whose output is on stdout already."""
        return Error(message, code, shown=True)

    def line(self, text: str = "", style: Callable[[str], str] | None = None) -> None:
        """Print a line for people; nothing with ``--json``."""
        if not self.as_json:
            self.stdout.write(text, style)

    def note(self, text: str) -> None:
        """Print a message to stderr."""
        self.stderr.write(text, self.style.NOTICE)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[object]], *, flexible: int = 0) -> None:
        """Print a table of at most ``WIDTH`` columns; where it is too wide, its column ``flexible`` is cut first."""
        for at, text in enumerate(tabulated(headers, rows, flexible)):
            self.line(text, self.style.MIGRATE_HEADING if at == 0 else None)

    # Questions

    def confirm(self, question: str, *, interactive: bool) -> None:
        """Ask, unless ``--no-input`` was given. Raises ``Error``: with code 1 for any answer but yes (Ctrl-C is one),
        with code 2 where nobody can answer."""
        if not interactive:
            return
        if not sys.stdin.isatty():
            raise Error(f"{question} There is nobody to ask here: give --no-input to go ahead.", UNKNOWN)
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


def positive(text: str) -> int:
    """An argument: a whole number from 1 to ``LARGEST_LIMIT``."""
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
