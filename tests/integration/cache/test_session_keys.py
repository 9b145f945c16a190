"""A session's key signs its holder in, so it is shown as a hash: in logs, signals, errors and by commands."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.sessions.backends import cache as cache_engine
from django.contrib.sessions.backends import cached_db
from django.core.cache import cache
from django.core.management import call_command

from goscope_django import operations, signals
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb.codec.plain import RESERVED
from tests.support.commands import on_server

SESSION = "k3jd02ldmcnbvhgfyturieowpqlaksjd"
KEYS = (
    f"{cache_engine.KEY_PREFIX}{SESSION}",
    f"{cached_db.KEY_PREFIX}{SESSION}",
    f"shop.session:{SESSION}",
    f"SESSIONS/{SESSION}",
)


@pytest.fixture(autouse=True)
def server(mongo_url: str, database: Any) -> Iterator[Any]:
    with on_server(mongo_url):
        yield database


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_session_is_a_hash_where_it_is_shown(
    key: str, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def receive(key: str, **_: Any) -> None:
        told.append(key)

    cache.set(key, "x")
    signals.cache_entry_forged.connect(receive)
    try:
        server["go_goscope_cache"].update_many({}, {"$set": {"value": {RESERVED: 99}}})
        with caplog.at_level(logging.DEBUG, "goscope"):
            assert cache.get(key) is None
            assert cache.get_many([key]) == {}
    finally:
        signals.cache_entry_forged.disconnect(receive)
    assert len(told) == 2 and SESSION not in str(told) and "sha256-" in told[0]
    assert "cache_entry_forged" in caplog.text and SESSION not in caplog.text
    for call in (lambda: cache.incr(key), lambda: cache.incr_version(f"{key}0"), lambda: cache.set(key, "x" * 2**24)):
        with pytest.raises(InvalidValue) as caught:
            call()
        assert SESSION not in str(caught.value)


def test_commands_show_hashes_and_take_them() -> None:
    for key in KEYS:
        cache.set(key, 1)
    cache.set("other", 1)
    out = StringIO()
    for extra in ([], ["--json"]):
        out = StringIO()
        call_command("goscope_cache", "keys", *extra, stdout=out)
        assert SESSION not in out.getvalue() and "other" in out.getvalue()
    shown = json.loads(out.getvalue())["keys"]
    assert len(set(shown)) == len(KEYS) + 1
    first = arguments.shown_key(KEYS[0])
    assert first in shown
    assert operations.delete_cache_keys("default", [first]).count == 1
    assert KEYS[0] not in cache and KEYS[1] in cache


@pytest.mark.parametrize("key", ["user:1", "session", "obsession", f"goscope.session:{'0' * 64}", "session:short"])
def test_other_keys_are_shown_as_they_are(key: str) -> None:
    assert arguments.shown_key(key) == key
