"""Where a cache keeps its entries: the store that the settings name, and what happens while MongoDB can't be reached.

Rules of this file:

* Settings are looked at when a key is made (``resolve``), so that ``override_settings`` works; ``run`` uses what was
  found then.
* While MongoDB can't be reached an operation raises, or with ``ON_ERROR="ignore"`` gives what it was told to.
* So it does, without asking, while the server answers nobody in time (``overload``); but not for who ``insists``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from goscope_django import conf, runtime
from goscope_django.cache.near import Near, near
from goscope_django.cache.options import CacheOptions
from goscope_django.cache.overload import Overload, overload
from goscope_django.core.flow import Flow, call
from goscope_django.exceptions import Contended, PoolExhausted, StoreError
from goscope_django.mongodb.cache.stream import stream
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver import urls
from goscope_django.mongodb.driver.store import Store
from goscope_django.process.counters import Alias
from goscope_django.process.outage import Outage, outage

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")

FEATURE: Final = "cache"


class Backing:
    """The store of one cache object. ``prefix`` is what its stored keys begin with, ``url`` where they are.

    ``near`` is what this process keeps of it, ``None`` without the option. ``settings`` are those that were looked at.
    """

    store: Store
    prefix: str
    tags_prefix: str
    url: str
    near: Near | None = None

    def __init__(
        self,
        options: CacheOptions,
        fault: conf.BadSettings | None,
        key_prefix: str,
        figures: Alias,
        naming: tuple[object, ...] = (),
    ) -> None:
        """``naming`` tells cache objects apart that make other stored keys of the same key."""
        self.figures = figures
        self._naming = naming
        self._options = options
        self._fault = fault
        self._feature = f"{FEATURE}.{key_prefix}" if key_prefix else FEATURE
        self.settings: conf.Settings | None = None
        self._outage: Outage | None = None
        self._overload = Overload(counts=False)
        self.insists = False
        """Whether the server is asked in any case."""

    def resolve(self) -> None:
        """Look at the settings as they are now. Raises ``ImproperlyConfigured`` if they, or the entry in ``CACHES``,
        can't be used."""
        settings = conf.current()
        if settings is self.settings:
            return
        if self._fault is not None:
            raise conf.BadSettings(str(self._fault))
        self.store = runtime.store(self._options.location or None, "CACHES LOCATION")
        self.prefix = f"{settings.key_prefix}cache:"
        self.tags_prefix = f"{settings.key_prefix}tag:"
        self.url = self._options.location or settings.url
        ignores = (self._options.on_error or settings.on_error) == "ignore"
        self._outage = outage(self._feature, self.url) if ignores else None
        self._overload = Overload(counts=False) if self.insists else overload(self.url)
        self.near = self._near()
        self.settings = settings

    def _near(self) -> Near | None:
        location = self._options.location
        if self._options.near is None:
            return None
        place = urls.Hidden(self.url)
        changes = stream(place, self.prefix, lambda: runtime.connection(location or None, "CACHES LOCATION"))
        return near(place, self.prefix, self._options, self._naming, self.figures, changes)

    @property
    def ignores(self) -> bool:
        """Whether operations go on while MongoDB can't be reached (``ON_ERROR="ignore"``)."""
        return self._outage is not None

    @property
    def degraded(self) -> bool:
        """Whether operations go on without MongoDB at this moment."""
        if self._outage is None:
            return False
        return self._outage.away or self._overload.open

    # Each operation of the cache passes here, so this pair is written by hand: 0.3 microseconds of CPU sync, 0.5 async.
    # As a flow of calls it takes 2.0 and 3.4; all that ``get`` does above the store takes 3.1 and 3.4.

    def run(
        self, absent: D, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | D:
        """Run a flow on the store; ``absent`` is given where MongoDB can't be reached and that is ignored."""
        if (self._outage is not None or self._overload.open) and self._skips():
            return absent
        try:
            found = self.store.run(operation, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  raised by _failed
            self._failed(error)
            return absent
        if self._outage is not None or self._overload.timeouts:
            self._worked()
        return found

    async def arun(
        self, absent: D, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | D:
        """Async version of ``run``."""
        if (self._outage is not None or self._overload.open) and self._skips():
            return absent
        try:
            found = await self.store.arun(operation, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  raised by _failed
            self._failed(error)
            return absent
        if self._outage is not None or self._overload.timeouts:
            self._worked()
        return found

    def ask(self, absent: Any, operation: Callable[..., Flow[Any]], *args: Any) -> Flow[Any]:
        """``run`` as a part of a flow."""
        return call(self.run, self.arun, absent, operation, *args)

    def _skips(self) -> bool:
        """Whether not to ask the server; raises instead where errors are not ignored."""
        away = self._outage is not None and self._outage.away
        if away and self._outage is not None and self._outage.skips():
            self.figures.error()
            return True
        # Whom an outage lets try is not kept from it.
        refusal = None if away or not self._overload.open else self._overload.refusal()
        if refusal is None:
            return False
        self.figures.error()
        if self._outage is None:
            raise refusal
        return True

    def _worked(self) -> None:
        if self._overload.timeouts:
            self._overload.answered()
        if self._outage is not None:
            self._outage.worked()

    def _failed(self, error: BaseException) -> None:
        """Raise the error, or take note of it where it is ignored."""
        if not isinstance(error, StoreError):
            self._overload.unknown()
            raise error
        self.figures.error()
        self._overload.failed(error)
        if self._outage is None or isinstance(error, Contended):  # the server is there, and so is the number
            raise error
        if not isinstance(error, PoolExhausted):  # which says nothing of the server: others go on using it
            self._outage.failed(error)
