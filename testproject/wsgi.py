"""For gunicorn and others: ``gunicorn testproject.wsgi``."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
# A real site lets its web server serve the static files.
application = StaticFilesHandler(get_wsgi_application())
