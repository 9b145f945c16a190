"""``manage.py beat``: start as many as you like, one of them beats."""

import os
import signal

from django.core.management.base import BaseCommand

from beat.app import app
from goscope_django.locks import lock


class Command(BaseCommand):
    help = "Run Celery's beat, in one process of the fleet at a time."

    def handle(self, *args, **options):
        with lock("celery-beat") as handle:  # the others wait here
            # A beat that may have lost its lock must not send anything more.
            handle.on_lost(lambda handle: os.kill(os.getpid(), signal.SIGTERM))
            app.Beat(loglevel="INFO").run()
