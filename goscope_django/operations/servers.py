"""The servers that the settings name: their indexes, whether they answer, and the private one of ``embedded://``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from goscope_django import conf
from goscope_django.core.flow import Flow, acarry_out, carry_out
from goscope_django.exceptions import ConfigurationError, GoscopeError, IndexConflict
from goscope_django.mongodb import embedded
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.driver import inspection
from goscope_django.mongodb.driver.inspection import Probe
from goscope_django.operations.place import Place, place
from goscope_django.operations.values import Done, IndexItem, copied

ENSURE: Final = "manage.py goscope_indexes ensure"


# Indexes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIndexes:
    """The indexes of one store that the settings name. ``setting`` is which setting names it, ``url`` is masked."""

    setting: str
    url: str
    indexes: tuple[IndexItem, ...]

    @property
    def ok(self) -> bool:
        """Whether all are as they should be."""
        return all(one.state == "present" for one in self.indexes)


def index_item(state: indexes.IndexState) -> IndexItem:
    """An index as operators see it."""
    found = state.found if state.state == "different" else None
    return copied(IndexItem, state.spec, state=state.state, needed=str(state.spec), found=found)


def _stores() -> list[tuple[str, Place]]:
    return [(what, place(url, what)) for what, url in conf.store_urls()]


def check_indexes() -> list[StoreIndexes]:
    """All indexes of all stores that the settings name. Changes nothing.

    One round trip for each collection and store.
    """
    found = []
    for what, one in _stores():
        states = one.run(indexes.check)
        found.append(StoreIndexes(setting=what, url=one.shown, indexes=tuple(map(index_item, states))))
    return found


def ensure_indexes(repair: bool = False) -> list[tuple[StoreIndexes, list[Done]]]:
    """Make what is missing in all stores. Returns each store's indexes as they are then, and what was done.

    Safe to repeat. With ``repair`` an index that exists with other options is dropped and made again. Without it,
    ``IndexConflict`` is raised for the first such index, after everything else was made. Two round trips for each
    collection and store, and one for each index that is made (two where it is replaced). Not atomic as a whole.
    """
    found: list[tuple[StoreIndexes, list[Done]]] = []
    conflict: IndexConflict | None = None
    for what, one in _stores():
        try:
            before = one.run(indexes.ensure, repair=repair)
        except IndexConflict as error:
            conflict = conflict or error
            continue
        one.connection.prepared()
        done = []
        for state in before:
            if state.state != "present":
                word = "made" if state.state == "missing" else "replaced"
                target = f"{state.spec.collection}.{state.spec.name}"
                done.append(Done(action="ensure_indexes", target=target, count=1, message=f"{target}: {word}."))
        after = tuple(map(index_item, one.run(indexes.check)))
        found.append((StoreIndexes(setting=what, url=one.shown, indexes=after), done))
    if conflict is not None:
        raise conflict
    return found


# Whether the server is there


def ping(seconds: float = 2.0) -> None:
    """Return if the server answers within ``seconds``; one round trip. Raises ``StoreUnavailable`` if not."""
    carry_out(place().reach(seconds))


async def aping(seconds: float = 2.0) -> None:
    """Async version of ``ping``."""
    await acarry_out(place().reach(seconds))


def probe(seconds: float = 2.0, slow: float = 0.5) -> Probe:
    """Whether the server is ``ok``, ``slow`` or ``down``. One round trip to the primary.

    ``slow`` means that it took more than ``slow`` seconds, or did not answer within ``seconds``. Raises
    ``ImproperlyConfigured`` for settings that can't be used, and nothing else.
    """
    return carry_out(_probe(seconds, slow))


async def aprobe(seconds: float = 2.0, slow: float = 0.5) -> Probe:
    """Async version of ``probe``."""
    return await acarry_out(_probe(seconds, slow))


def _probe(seconds: float, slow: float) -> Flow[Probe]:
    here = place()
    if here.mock:
        return Probe("ok", 0.0)
    try:
        latency = yield from here.ask(seconds, inspection.ping)
    except GoscopeError as error:
        return inspection.judged(error, seconds)
    if latency <= slow:
        return Probe("ok", latency)
    return Probe("slow", latency, f"the server took {latency:.2f} seconds to answer; more than {slow:g} is slow")


# The private server


@dataclass(frozen=True, slots=True, kw_only=True)
class MongodStatus:
    """What runs in the folder of ``embedded://``. ``users`` are the ids of the processes that use it now."""

    directory: str
    running: bool
    pid: int | None
    uri: str | None
    version: str | None
    users: tuple[int, ...]
    log: str


def _folder() -> str:
    url = conf.current().url
    target = conf.target(url, "GOSCOPE['URL']")
    if target.scheme != "embedded":
        raise ConfigurationError(
            f"GOSCOPE['URL']={target.shown!r}: only the server of an embedded:// URL is started and stopped here, and "
            f"this is another one"
        )
    return target.place


def mongod_status() -> MongodStatus:
    """What runs in the folder of ``GOSCOPE["URL"]``. Changes nothing, and asks the server for its version alone: one
    round trip. Raises ``ConfigurationError`` for other URLs."""
    found = embedded.status(_folder())
    return copied(MongodStatus, found, directory=str(found.directory), log=str(found.log_path))


@contextmanager
def mongod_running() -> Iterator[MongodStatus]:
    """Use the private server, and start it if it does not run. At the end it is ended, unless somebody else uses it.

    Changes nothing that is stored; round trips as for ``mongod_status``. Raises ``MongodError``, and
    ``ConfigurationError`` for other URLs.
    """
    with embedded.start(_folder()):
        yield mongod_status()


def mongod_start() -> MongodStatus:
    """Start the private server unless it runs, and leave it running in the background.

    It then stays until ``mongod_stop``, whether anybody uses it or not. Changes nothing that is stored; round trips as
    for ``mongod_status``. Raises ``MongodError``, and ``ConfigurationError`` for other URLs.
    """
    embedded.launch(_folder())
    return mongod_status()


def mongod_stop() -> bool:
    """End the private server, whoever uses it; ``False`` if none ran. Its data are kept. Sends nothing to it.

    Raises ``MongodError``, and ``ConfigurationError`` for other URLs.
    """
    return embedded.stop(_folder())


def mongod_log(lines: int = 20) -> list[str]:
    """The last ``lines`` lines of the private server's log. Changes nothing.

    Round trips and errors are those of ``mongod_status``.
    """
    path = Path(mongod_status().log)
    return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
