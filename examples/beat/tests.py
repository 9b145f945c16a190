"""Two beats, and only one beats."""

import threading
import unittest
from importlib.util import find_spec
from unittest import mock

from django.core.management import call_command
from django.test import SimpleTestCase

from goscope_django.locks import LockNotAcquired, lock
from goscope_django.testing import empty_store


@unittest.skipUnless(find_spec("celery"), "Celery is not installed")
class Beat(SimpleTestCase):
    def setUp(self):
        empty_store()

    def test_a_second_one_waits_until_the_first_ends(self):
        begun, end, beats = threading.Event(), threading.Event(), []

        def run():
            beats.append(threading.current_thread().name)
            begun.set()
            end.wait(60)

        with mock.patch("beat.app.app.Beat") as beat:
            beat.return_value.run.side_effect = run
            both = [threading.Thread(target=call_command, args=["beat"], name=name) for name in ("one", "two")]
            for thread in both:
                thread.start()
            self.assertTrue(begun.wait(60))
            with self.assertRaises(LockNotAcquired), lock("celery-beat", blocking=False):
                pass
            self.assertEqual(len(beats), 1)
            end.set()
            for thread in both:
                thread.join(60)
        self.assertEqual(sorted(beats), ["one", "two"])
