"""Run the benchmarks: ``python -m benchmarks [--quick] [--million] [cache|locks|...]``.

They start the servers that they need: a private mongod and, if one is installed, a redis-server. The exit
code is 1 if a goal that must be met was missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import django
from django.conf import settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help="which parts to run; all but scale if none is named")
    parser.add_argument("--quick", action="store_true", help="three rounds: to see that it runs, not to quote")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--million", action="store_true", help="also at a million entries (minutes)")
    chosen = parser.parse_args()
    from benchmarks import cache, harness, near, signing
    from goscope_django.mongodb import embedded

    with (
        tempfile.TemporaryDirectory(prefix="goscope-bench-") as folder,
        cache.redis() as port,
        embedded.start(Path(folder) / "db") as server,
    ):
        base = server.uri.replace("/?", "/{}?")
        url = base.format("bench")
        caches = {**cache.settings_for(url, port), **signing.settings_for(f"{url}&w=1")}
        caches |= near.settings_for(f"{url}&w=1")
        for name in ("few", "many"):
            caches[name] = {
                "BACKEND": "goscope_django.cache.MongoDBCache",
                "LOCATION": base.format(name) + "&w=1",
                "TIMEOUT": None,
            }
        settings.configure(
            SECRET_KEY="benchmarks",
            GOSCOPE={"URL": url},
            CACHES=caches,
            INSTALLED_APPS=["goscope_django"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/cache.sqlite3"}},
            USE_TZ=True,
        )
        django.setup()
        return _run(
            chosen,
            harness.Report(rounds=3, seconds=0.1) if chosen.quick else harness.Report(rounds=chosen.rounds),
            url,
            port,
        )


def _run(chosen: argparse.Namespace, report: object, url: str, port: int | None) -> int:  # noqa: C901 - one line for each part
    from pymongo import MongoClient

    from benchmarks import (
        abstraction,
        breaker,
        cache,
        checkpoints,
        dashboard,
        flights,
        handoff,
        idempotency,
        locks,
        near,
        renewal,
        scale,
        signing,
    )
    from benchmarks.harness import Report

    assert isinstance(report, Report)
    parts = set(chosen.parts)
    client: MongoClient[dict[str, Any]] = MongoClient(url)
    with client:
        client.admin.command("setParameter", 1, wiredTigerEngineRuntimeConfig="cache_size=2G")
        if not parts or "cache" in parts:
            cache.run(report, url, client, "bench")
        if not parts or "near" in parts:
            near.run(report, client, "bench", f"{url}&w=1", port)
        if not parts or "signing" in parts:
            signing.run(report)
        if not parts or "locks" in parts:
            locks.run(report, client, "bench")
        if not parts or "abstraction" in parts:
            abstraction.report()
        if not parts or "handoff" in parts:
            handoff.run(report, url, port, quick=chosen.quick)
        if not parts or "breaker" in parts:
            breaker.run(report, url)
        if not parts or "flights" in parts:
            flights.run(report, url, quick=chosen.quick)
        if not parts or "idempotency" in parts:
            idempotency.run(report, url, client, "bench")
        if not parts or "checkpoints" in parts:
            checkpoints.run(report, url, client, "bench", quick=chosen.quick)
        if not parts or "renewal" in parts:
            renewal.run(report, url, quick=chosen.quick)
        if not parts or "dashboard" in parts:
            dashboard.run(report, client, "bench")
        if chosen.million or "scale" in parts:
            scale.run(report)
    print()
    for one in report.missed:
        print(f"MISSED: {one}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
