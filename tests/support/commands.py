"""The commands that a client sends, for tests that count them or look at their content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.test import override_settings
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from goscope_django import conf

OWN = frozenset({"hello", "isMaster", "ismaster", "endSessions", "killCursors", "saslStart", "saslContinue"})
_ENVELOPE = frozenset(
    {"$db", "lsid", "$clusterTime", "txnNumber", "maxTimeMS", "writeConcern", "$readPreference", "readConcern"}
)


class Recorder(CommandListener):
    """Remembers commands as they are sent, those that a driver sends of its own accord left out."""

    def __init__(self) -> None:
        self.events: list[CommandStartedEvent] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in OWN:
            self.events.append(event)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def clear(self) -> None:
        """Forget what was sent."""
        self.events.clear()

    @property
    def names(self) -> list[str]:
        """The commands' names, in the order in which they were sent."""
        return [event.command_name for event in self.events]

    @property
    def commands(self) -> list[dict[str, Any]]:
        """The commands as documents."""
        return [dict(event.command) for event in self.events]


def explainable(command: dict[str, Any]) -> dict[str, Any]:
    """The command without what belongs to its sending: as ``explain`` takes it."""
    return {name: value for name, value in command.items() if name not in _ENVELOPE}


def single(command: dict[str, Any]) -> list[dict[str, Any]]:
    """``command`` once for each of its statements, since ``explain`` takes only one."""
    for name in ("deletes", "updates"):
        if name in command:
            return [{**command, name: [one]} for one in command[name]]
    return [command]


def stages(plan: dict[str, Any]) -> set[str]:
    """The names of all stages in a plan (or in the whole answer of ``explain``)."""
    found = set()
    for name, value in plan.items():
        if name == "stage":
            found.add(str(value))
        elif isinstance(value, dict):
            found |= stages(value)
        elif isinstance(value, list):
            for one in value:
                if isinstance(one, dict):
                    found |= stages(one)
    return found


@contextmanager
def on_server(
    url: str, *, caches: dict[str, dict[str, Any]] | None = None, client_options: Any = None, **goscope: Any
) -> Iterator[None]:
    """Let the project's settings lead to ``url``: ``goscope`` are more keys of ``GOSCOPE``, ``caches`` entries.

    Keys have no prefix of the test worker's, as they are looked at here as they are stored: each worker has a server of
    its own.
    """
    backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    entries = {name: {**backend, **entry} for name, entry in (caches or {"default": {}}).items()}
    settings = {"TEST": {"URL": url}, "CLIENT_OPTIONS": client_options or {}, **goscope}
    before, conf.test_prefix = conf.test_prefix, ""
    try:
        with override_settings(GOSCOPE=settings, CACHES=entries):
            yield
    finally:
        conf.test_prefix = before
        conf.reset()
