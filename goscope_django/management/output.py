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

import contextlib
import json
import os
import shutil
import sys
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from goscope_django import operations
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
from goscope_django.operations import SCHEMA_VERSION, AttentionItem, Details, Done, plain
from goscope_django.operations.attention import holder
from goscope_django.operations.convert import hint
from goscope_django.operations.details import Kind
from goscope_django.operations.values import LockItem, Section, TaskItem
from goscope_django.operations.wording import TERMINAL, escaped, number

WIDTH: Final = 80
"""Columns where the output is no terminal."""

NARROWEST: Final = 40
LINES: Final = 24
SMALLEST: Final = 8
"""Columns that are left of a table's column, if there is room for so much of each."""

READABLE: Final = 24
"""Columns of a key that are left before other columns than the owner's are cut."""

FAILED, UNKNOWN, NO_READER = 1, 2, 141
LARGEST_LIMIT: Final = 10**9
duration, percent = TERMINAL.duration, TERMINAL.percent

_GONE: Final[Mapping[str, str]] = {
    "lock": "lock {!r} is not held (any more)",
    "circuit": "circuit {!r} does not exist: nothing was ever recorded under that name",
    "task": "task {!r} does not exist",
    "idempotency": "idempotency record {!r} does not exist (any more)",
}
"""What ``show`` says of a thing that is not there."""

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
    full = False
    """Nothing is cut (``--full``)."""

    page: list[str] | None = None
    """Lines are collected here instead of being printed."""

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
        OperatorCommand.add_full(parser)

    @staticmethod
    def add_full(parser: Any) -> None:
        """Add ``--full``."""
        parser.add_argument("--full", action="store_true", help="Cut nothing, however long the lines get.")

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
        self.as_json, self.full = bool(options.get("as_json")), bool(options.get("full"))
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
            self.note(f"{len(found.items)} of {number(found.matching)}; go on with --after {found.next!r}.")

    def document(self, content: dict[str, Any]) -> None:
        """Print the one JSON document."""
        shown = {"schema_version": SCHEMA_VERSION, **plain(content)}
        self.stdout.write(json.dumps(shown, indent=2 if self.stdout.isatty() else None, ensure_ascii=True))

    def failed(self, message: str, code: int = FAILED) -> Error:
        """An ``Error`` whose output is on stdout already."""
        return Error(message, code, shown=True)

    def line(self, text: str = "", style: Callable[[str], str] | None = None) -> None:
        """Print a line for people; nothing with ``--json``."""
        if self.page is not None:
            self.page.append(style(text) if style else text)
        elif not self.as_json:
            self.stdout.write(text, style)

    def width(self) -> int:
        """The columns that there are: the terminal's, or ``WIDTH`` where there is none."""
        return max(NARROWEST, self._terminal().columns)

    def _terminal(self) -> os.terminal_size:
        with contextlib.suppress(OSError, ValueError):
            if self.stdout.isatty():
                found = os.get_terminal_size(self.stdout.fileno())
                if found.columns and found.lines:
                    return found
                return shutil.get_terminal_size((WIDTH, LINES))
        return os.terminal_size((WIDTH, LINES))

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Print ``facts``, each with its name in front, as lines of this width."""
        for name, value in facts:
            label = f"  {name:<13} "
            self.wrapped(f"{label}{escaped('-' if value is None else value)}", indent=" " * len(label))

    def wrapped(self, text: str, style: Callable[[str], str] | None = None, indent: str = "  ") -> None:
        """Print ``text`` on as many lines as it needs, those after the first behind ``indent``."""
        for one in folded(text, self.width(), indent) if not self.full else [text]:
            self.line(one, style)

    def needs(self, items: Iterable[AttentionItem]) -> None:
        """Print what needs attention, each with what to do about it. A command is whole: it is there to be copied."""
        for one in items:
            self.wrapped(f"! {one.sentence}", self.style.WARNING)
            self.wrapped(f"  {one.action}")
            if one.command is not None:
                self.line(f"    {escaped(one.command)}", self.style.MIGRATE_LABEL)

    def locks(self, items: Iterable[LockItem]) -> None:
        """Print held locks as a table."""
        self.table(
            ("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"),
            [
                (
                    one.key,
                    one.owner if self.full else holder(one.owner),
                    one.token,
                    duration(one.held_for),
                    duration(one.expires_in),
                )
                for one in items
            ],
            cut=(1,),
        )

    @staticmethod
    def one(kind: Kind, key: str) -> Details:
        """Everything known of one thing. Raises ``NotFound``, but for a lock that somebody waits for or lost lately."""
        found = operations.details(kind, key)
        if found.item is None and not (kind == "lock" and found.known):
            raise NotFound(_GONE[kind].format(key), target=key)
        return found

    @staticmethod
    def known(found: Details) -> dict[str, Any]:
        """What the JSON document of ``show`` has beside the item itself."""
        names = ("generated_at", "attention", "waits", "losses", "timeline", "docs")
        return {name: getattr(found, name) for name in names}

    def timeline(self, found: Details) -> None:
        """Print what happened to one thing, the newest first."""
        if found.timeline:
            self.line()
            self.line("Timeline", self.style.MIGRATE_HEADING)
        for one in found.timeline:
            self.wrapped(f"  {moment(one.at)}  {one.text}", indent=" " * 23)

    def note(self, text: str) -> None:
        """Print a message to stderr."""
        self.stderr.write(text, self.style.NOTICE)

    def table(
        self, headers: Sequence[str], rows: Iterable[Sequence[object]], *, cut: Sequence[int] = (), key: int = 0
    ) -> None:
        """Print a table as wide as the terminal at most.

        Where that is not enough, its columns ``cut`` are cut first, then a long ``key``, then all. ``--full`` cuts
        nothing.
        """
        width = None if self.full else self.width()
        for at, text in enumerate(tabulated(headers, rows, width, cut, key)):
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


def tabulated(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    width: int | None = WIDTH,
    cut_first: Sequence[int] = (),
    key: int = 0,
) -> list[str]:
    """The lines of a table of at most ``width`` columns (``None``: of as many as it needs)."""
    cells = [[escaped("-" if cell is None else cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(headers, *cells, strict=True)]
    others = [at for at in reversed(range(len(widths))) if at != key and at not in cut_first]
    order = [*cut_first, *others, key]
    first = [*((SMALLEST, at) for at in cut_first), (READABLE, key)]  # a cut token or time is no use to anybody
    for least, at in [*first, *((SMALLEST, at) for at in order), *((1, at) for at in order)]:
        over = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
        if over > 0:
            widths[at] = max(min(least, widths[at]), widths[at] - over)
    lines = []
    for row in ([*headers], *cells):
        fitted = [cut(cell, width) for cell, width in zip(row, widths, strict=True)]
        padded = [cell + " " * (width - columns(cell)) for cell, width in zip(fitted, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def folded(text: str, width: int, indent: str = "  ") -> list[str]:
    """``text`` on lines of at most ``width`` columns, broken between words where that is possible."""
    lines: list[str] = []
    left = text
    while columns(left) > width:
        head = cut(left, width + 1)[:-1]  # as much as fits
        space = head.rfind(" ", len(indent) + 1)
        at = space if space > len(head) // 2 else len(head)
        lines.append(left[:at].rstrip())
        left = indent + left[at:].lstrip()
    return [*lines, left]


def next_try(seconds: float | None) -> str:
    """When an open circuit lets a trial call through."""
    return "now" if seconds == 0 else duration(seconds)


def rate(one: TaskItem) -> str:
    """How fast a task goes on; what it was says nothing of one that does not run."""
    return "-" if one.rate is None or one.status != "running" else f"{one.rate:.1f}/s"


def time_left(one: TaskItem) -> str:
    """How long a task that runs will still take."""
    return duration(one.estimated_time_remaining if one.status == "running" else None)


def last_heard_of(one: TaskItem) -> str:
    """How long ago the worker of a task gave a sign of life, if it should."""
    return duration(one.heartbeat_age if one.status in ("running", "stalled") else None)


def moment(at: datetime | None) -> str:
    """An instant, in UTC."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


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
