"""Settings of a project whose commands are run as subprocesses: real ones, not those of a test run."""

from __future__ import annotations

import json
import os
from typing import Any

SECRET_KEY = "of-a-project-" + "x" * 50
USE_TZ = True
INSTALLED_APPS = ["goscope_django"]
GOSCOPE: dict[str, Any] = {"URL": os.environ["OPERATED_URL"], **json.loads(os.environ.get("OPERATED_GOSCOPE", "{}"))}
CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "goscope_django.cache.MongoDBCache", **json.loads(os.environ.get("OPERATED_CACHE", "{}"))}
}
if json.loads(os.environ.get("OPERATED_STRICT", "false")):
    from pymongo.server_api import ServerApi

    GOSCOPE["CLIENT_OPTIONS"] = {"server_api": ServerApi("1", strict=True, deprecation_errors=True)}
