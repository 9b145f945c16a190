"""For the tests of projects that use goscope_django, and for authors of other adapters.

``empty_store`` begins a test with nothing stored. ``plugin`` is a pytest plugin that registers itself: each xdist
worker gets its own key prefix. ``conformance`` has one test suite for each contract, which a new adapter subclasses.
"""

from __future__ import annotations

__all__ = ["empty_store"]


def empty_store() -> None:
    """Remove everything under this project's and worker's prefix from the test store, and forget what breakers saw.

    For ``setUp``: unlike a database, the store is not rolled back after a test. Raises ``ConfigurationError`` outside
    of a running test environment, and ``StoreError`` if MongoDB can't be reached. One or two round trips for each
    collection, not atomic.
    """
    # Imported here: pytest loads the plugin, and so this module, in every run, also of projects without Django.
    from goscope_django import conf, runtime
    from goscope_django.circuits import registry
    from goscope_django.exceptions import ConfigurationError

    settings = conf.current()
    if not settings.testing:
        raise ConfigurationError("empty_store(): no test environment runs, so this would remove the project's own data")
    runtime.adapter().wipe()
    registry.forget()
