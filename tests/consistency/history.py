"""The history of a run: what clients asked for, when, and what came of it, one line of JSON each.

Rules of this file:

* A line is written by one ``write`` to a file of the process's own, so a process that is killed loses none.
* Instants are monotonic, in seconds: all processes of a machine share that clock, and no wrong clock touches it.
* An outcome is ``ok``, ``fail`` (nothing was changed) or ``unknown``. What has no answer, or an unknown one, may take
  effect at any later time: its end is infinity. ``bug`` is an error that no documentation knows.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from goscope_django.core.flow import Flow
from goscope_django.exceptions import OutcomeUnknown, StoreError, StoreUnavailable

NEVER: Final = math.inf


@dataclass(frozen=True)
class Operation:
    """One call of one client. ``name`` is ``<kind>.<verb>``; ``result`` is what a checker needs of the answer."""

    number: str
    client: str
    name: str
    key: str
    began: float
    ended: float = NEVER
    outcome: str = "unknown"
    result: Any = None
    args: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    def __str__(self) -> str:
        end = "..." if self.ended == NEVER else f"{self.ended:.4f}"
        said = f" {self.error}" if self.error else ""
        given = f" {self.args}" if self.args else ""
        return (
            f"{self.began:.4f}-{end} {self.client} {self.name} {self.key}{given}: {self.outcome} {self.result!r}{said}"
        )


@dataclass
class Answer:
    """How a recorded call ended: ``ok`` with its ``value``, or not. ``number`` names the call in the history."""

    number: str
    ok: bool = False
    value: Any = None


class Recorder:
    """Writes the history of one client. Threads may share it."""

    def __init__(self, path: Path, client: str) -> None:
        self.client = client
        self._numbers = itertools.count(1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _write(self, **line: Any) -> None:
        os.write(self._file, json.dumps(line, default=str).encode() + b"\n")

    def begin(self, name: str, key: str, args: dict[str, Any]) -> str:
        """Write that a call begins; its number."""
        number = f"{self.client}.{next(self._numbers)}"
        self._write(at=time.monotonic(), begin=name, number=number, client=self.client, key=key, args=args)
        return number

    def end(self, number: str, outcome: str, result: Any = None, error: str = "") -> None:
        """Write what came of it."""
        self._write(at=time.monotonic(), end=outcome, number=number, result=result, error=error)

    def note(self, name: str, key: str = "", result: Any = None, **args: Any) -> None:
        """Write something that has happened at once."""
        self.end(self.begin(name, key, args), "ok", result)

    def call(
        self,
        name: str,
        key: str,
        flow: Flow[Any],
        shown: Callable[[Any], Any] = lambda value: value,
        expected: dict[type[BaseException], Any] | None = None,
        **args: Any,
    ) -> Flow[Answer]:
        """Run ``flow`` as one call. ``shown`` makes its answer plain; ``expected`` errors are answers, too."""
        return self.finish(self.begin(name, key, args), flow, shown, expected)

    def finish(
        self,
        number: str,
        flow: Flow[Any],
        shown: Callable[[Any], Any] = lambda value: value,
        expected: dict[type[BaseException], Any] | None = None,
    ) -> Flow[Answer]:
        """``call`` for one that has begun already."""
        try:
            value = yield from flow
        except GeneratorExit:
            raise
        except BaseException as error:
            return self._failed(number, error, expected or {})
        self.end(number, "ok", shown(value))
        return Answer(number, True, value)

    def _failed(self, number: str, error: BaseException, expected: dict[type[BaseException], Any]) -> Answer:
        for kind, value in expected.items():
            if isinstance(error, kind):
                self.end(number, "ok", value)
                return Answer(number, True, value)
        said = f"{type(error).__name__}: {error!s:.300}"
        if isinstance(error, StoreUnavailable):
            self.end(number, "fail", error=said)
        elif isinstance(error, OutcomeUnknown) or type(error) is StoreError:
            self.end(number, "unknown", error=said)
        else:
            self.end(number, "bug", error=said)
        return Answer(number)


def read(paths: Iterable[Path]) -> list[Operation]:
    """All operations of these files, by the time at which they began. A torn last line is left out."""
    begun: dict[str, dict[str, Any]] = {}
    ends: dict[str, dict[str, Any]] = {}
    for path in paths:
        for text in path.read_bytes().split(b"\n")[:-1]:
            line = json.loads(text)
            (begun if "begin" in line else ends)[line["number"]] = line
    found = []
    for number, line in begun.items():
        end = ends.get(number)
        known = end is not None and end["end"] in ("ok", "fail")
        found.append(
            Operation(
                number=number,
                client=line["client"],
                name=line["begin"],
                key=line["key"],
                began=line["at"],
                ended=end["at"] if end is not None and known else NEVER,
                outcome="unknown" if end is None else end["end"],
                result=None if end is None else end["result"],
                args=line["args"],
                error="" if end is None else end["error"],
            )
        )
    return sorted(found, key=lambda one: one.began)
