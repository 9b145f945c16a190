"""Run by the interpreter of a clean environment, inside a new Django project that has the installed package."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from pathlib import Path

# What extras install, and what a project installs to use a helper. None of it is in the clean environment.
OPTIONAL = {"celery", "health_check", "hypothesis", "mongomock", "prometheus_client", "pytest", "rest_framework"}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    sys.path.insert(0, str(Path.cwd()))
    import django

    django.setup()
    import goscope_django

    where = Path(goscope_django.__file__ or "").resolve()
    if Path(sys.prefix).resolve() not in where.parents:
        raise SystemExit(f"goscope_django comes from {where}, not from the environment {sys.prefix}")
    imported, waiting = [], []
    for found in pkgutil.walk_packages(goscope_django.__path__, "goscope_django."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL:
                raise
            waiting.append(found.name)
        else:
            imported.append(found.name)
    print(f"{len(imported)} modules imported, without their extras: {', '.join(waiting) or 'none'}")

    from django.core.cache import cache

    cache.set("greeting", {"text": "hello", "to": ("whole", "world")}, 60)
    found = cache.get("greeting")
    if found != {"text": "hello", "to": ("whole", "world")}:
        raise SystemExit(f"the cache gave back {found!r}")
    if not cache.add("once", 1) or cache.add("once", 2) or cache.incr("once") != 2:
        raise SystemExit("add and incr are wrong")
    print("cache works")


if __name__ == "__main__":
    main()
