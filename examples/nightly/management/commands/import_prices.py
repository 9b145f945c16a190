"""``manage.py import_prices prices.csv``: killed at any row and started again, it goes on there."""

import csv
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from goscope_django.checkpoints import TaskAlreadyRunning, checkpointed
from nightly.models import Price


class Command(BaseCommand):
    help = "Import a file of prices, once; progress is on the dashboard."

    def add_arguments(self, parser):
        parser.add_argument("file", type=Path)

    def handle(self, *, file, **options):
        try:
            done = import_prices(file)
        except TaskAlreadyRunning as error:
            raise CommandError(f"another process imports it; ask again in {error.retry_after:.0f} s") from error
        self.stdout.write(f"{done} prices")


@checkpointed("prices:{file.name}")  # the file's name is the task: tomorrow's file is another one
def import_prices(task, file):
    with file.open(newline="", encoding="utf-8") as opened:
        total = sum(1 for _ in csv.DictReader(opened))
    with file.open(newline="", encoding="utf-8") as opened:
        for row in task.track(csv.DictReader(opened), total, every=500, atomic=True):
            # An upsert: a row that comes twice does no harm.
            Price.objects.update_or_create(sku=row["sku"], defaults={"cents": int(row["cents"])})
    return task.done
