"""For uvicorn and others: ``uvicorn testproject.asgi:application``."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
# A real site lets its web server serve the static files.
application = ASGIStaticFilesHandler(get_asgi_application())
