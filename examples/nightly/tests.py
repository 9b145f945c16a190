"""An import that is killed, resumed, and started once more when it is done."""

import tempfile
from pathlib import Path
from unittest import mock

from django.core.management import CommandError, call_command
from django.test import TransactionTestCase

from goscope_django.checkpoints import checkpointed, get_task
from goscope_django.testing import empty_store
from nightly.models import Price


class Killed(BaseException):
    """Stands in for the end of a process: no handler of errors sees it."""


class Nightly(TransactionTestCase):
    def setUp(self):
        empty_store()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name) / "2026-11-30.csv"
        self.file.write_text("sku,cents\n" + "".join(f"p{number},{number}\n" for number in range(1_200)))

    def run_it(self):
        call_command("import_prices", str(self.file), stdout=mock.Mock())

    def test_it_goes_on_where_it_was_killed(self):
        asked, real = [], Price.objects.update_or_create

        def store(sku, defaults):
            asked.append(sku)
            if len(asked) == 700:
                raise Killed
            return real(sku=sku, defaults=defaults)

        with mock.patch.object(Price.objects, "update_or_create", side_effect=store):
            with self.assertRaises(Killed):
                self.run_it()
            self.assertAlmostEqual(get_task("prices:2026-11-30.csv").progress, 100 * 500 / 1_200, places=1)
            self.assertEqual(Price.objects.count(), 500)
            self.run_it()
        self.assertEqual((asked[699], asked[700]), ("p699", "p500"))
        self.assertEqual((Price.objects.count(), get_task("prices:2026-11-30.csv").status), (1_200, "completed"))

    def test_a_file_that_is_done_is_not_imported_again(self):
        self.run_it()
        Price.objects.filter(sku="p1").update(cents=99)
        self.run_it()
        self.assertEqual(Price.objects.get(sku="p1").cents, 99)

    def test_two_at_once_are_one(self):
        with checkpointed("prices:2026-11-30.csv"), self.assertRaisesMessage(CommandError, "another process"):
            self.run_it()
