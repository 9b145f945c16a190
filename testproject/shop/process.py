"""Who answers: told on every page, since what is shared between processes is the point of it all."""

from __future__ import annotations

import os

from django.http import HttpRequest
from django.utils import timezone


def stamp() -> dict[str, object]:
    """The process and the time: what a result carries that somebody else may see later."""
    return {"process": os.getpid(), "at": timezone.now()}


def server(request: HttpRequest) -> dict[str, object]:
    """Context processor: this process, and the server it belongs to."""
    return {"process": os.getpid(), "server_software": request.META.get("SERVER_SOFTWARE") or "ASGI server"}
