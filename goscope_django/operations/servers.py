"""Indexes, and the private ``mongod`` of ``embedded://``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from goscope_django import conf
from goscope_django.exceptions import ConfigurationError, GoscopeError, IndexConflict
from goscope_django.mongodb import embedded
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.driver import inspection as probing
from goscope_django.mongodb.driver import urls
from goscope_django.mongodb.driver.inspection import Probe
from goscope_django.mongodb.driver.limits import within
from goscope_django.operations.place import Place, place
from goscope_django.operations.values import Done, IndexItem

ENSURE = "manage.py goscope_indexes ensure"
REPAIR = indexes.REPAIR


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MongodStatus:
    """What runs over the folder of ``embedded://``. ``users`` are ids of the processes that use it now."""

    directory: str
    running: bool
    pid: int | None
    uri: str | None
    version: str | None
    users: tuple[int, ...]
    log: str


def index_item(state: indexes.IndexState) -> IndexItem:
    """An index as operators see it."""
    spec = state.spec
    return IndexItem(
        collection=spec.collection,
        name=spec.name,
        state=state.state,
        needed=str(spec),
        found=state.found if state.state == "different" else None,
    )


def _stores() -> list[tuple[str, Place]]:
    return [(what, place(url, what)) for what, url in conf.store_urls()]


def check_indexes() -> list[StoreIndexes]:
    """All indexes of all stores that the settings name. Changes nothing; one command for each collection and store."""
    found = []
    for what, one in _stores():
        states = one.run(indexes.check)
        found.append(StoreIndexes(setting=what, url=one.shown, indexes=tuple(map(index_item, states))))
    return found


def ensure_indexes(repair: bool = False) -> list[tuple[StoreIndexes, list[Done]]]:
    """Make what is missing in all stores; each store's indexes as they are afterwards, and what was done.

    Idempotent. With ``repair`` an index that exists with other options is dropped and made anew; without,
    ``IndexConflict`` is raised for the first such one, after everything else was made.
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


def ping(seconds: float = 2.0) -> None:
    """Reach the server within ``seconds``: one round trip. Raises ``StoreUnavailable``."""
    place().reach(seconds)


async def aping(seconds: float = 2.0) -> None:
    """Asynchronous twin of ``ping``."""
    await place().areach(seconds)


def _probed(latency: float, slow: float) -> Probe:
    if latency <= slow:
        return Probe("ok", latency)
    return Probe("slow", latency, f"the server took {latency:.2f} seconds to answer; more than {slow:g} is slow")


def probe(seconds: float = 2.0, slow: float = 0.5) -> Probe:
    """Whether the server is ``ok``, ``slow`` (no answer within ``seconds``, or one that took more than ``slow``
    seconds) or ``down``. One command to the primary. Raises ``ImproperlyConfigured`` for settings that can't be used,
    nothing else."""
    here = place()
    if here.mock:
        return Probe("ok", 0.0)
    try:
        with within(seconds):
            return _probed(here.store.run(probing.ping), slow)
    except GoscopeError as error:
        return probing.judged(error, seconds)


async def aprobe(seconds: float = 2.0, slow: float = 0.5) -> Probe:
    """Asynchronous twin of ``probe``."""
    here = place()
    if here.mock:
        return Probe("ok", 0.0)
    try:
        with within(seconds):
            return _probed(await here.store.arun(probing.ping), slow)
    except GoscopeError as error:
        return probing.judged(error, seconds)


# The private server


def _folder() -> str:
    url = conf.current().url
    target = urls.parse(url, "GOSCOPE['URL']", base=conf.base_dir())
    if target.scheme != "embedded":
        raise ConfigurationError(
            f"GOSCOPE['URL']={target.shown!r}: only the server of an embedded:// URL is started and stopped here; this "
            f"one is run by somebody else"
        )
    return target.place


def mongod_status() -> MongodStatus:
    """What runs over the folder of ``GOSCOPE["URL"]``. Changes nothing. Raises ``ConfigurationError`` for other
    URLs."""
    found = embedded.status(_folder())
    return MongodStatus(
        directory=str(found.directory),
        running=found.running,
        pid=found.pid,
        uri=found.uri,
        version=found.version,
        users=found.users,
        log=str(found.log_path),
    )


@contextmanager
def mongod_running() -> Iterator[MongodStatus]:
    """Use the private server, started if need be; at the end leave it, which ends it if nobody else uses it."""
    with embedded.start(_folder()):
        yield mongod_status()


def mongod_start() -> MongodStatus:
    """Start the private server, or find it running, and leave it running in the background without being its user.

    It then stays, whoever uses it meanwhile, until ``mongod_stop``. Raises ``MongodError``.
    """
    embedded.launch(_folder())
    return mongod_status()


def mongod_stop() -> bool:
    """End the private server, whoever uses it; ``False`` if none ran. Its data stay. Raises ``MongodError``."""
    return embedded.stop(_folder())


def mongod_log(lines: int = 20) -> list[str]:
    """The last lines of its log."""
    path = Path(mongod_status().log)
    return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
