"""Which process answers. Every page shows it, since the demo is about what processes share."""

from __future__ import annotations

import os

from django.http import HttpRequest
from django.utils import timezone


def stamp() -> dict[str, object]:
    """This process and the time, for a result that other visitors may see later."""
    return {"process": os.getpid(), "at": timezone.now()}


def server(request: HttpRequest) -> dict[str, object]:
    """Context processor: this process, and the web server that it belongs to."""
    return {"process": os.getpid(), "server_software": request.META.get("SERVER_SOFTWARE") or "ASGI server"}
