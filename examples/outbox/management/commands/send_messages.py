"""``manage.py send_messages``: from cron, or ``--every 10`` as a worker; on as many machines as you like."""

import time

from django.core.mail import EmailMessage
from django.core.management.base import BaseCommand

from goscope_django.checkpoints import TaskAlreadyRunning
from outbox.sending import send_waiting


def by_mail(message, name):
    text = f"Your order {message.order_id} is placed."
    EmailMessage("Order", text, to=[message.order.mail], headers={"Message-ID": f"<{name}@shop.example>"}).send()


class Command(BaseCommand):
    help = "Send the messages that wait."

    def add_arguments(self, parser):
        parser.add_argument("--every", type=float, help="seconds between two rounds; without it, one round")

    def handle(self, *, every, **options):
        while True:
            try:
                self.stdout.write(f"{send_waiting(by_mail)} sent")
            except TaskAlreadyRunning:
                self.stdout.write("another process sends them")
            if every is None:
                return
            time.sleep(every)
