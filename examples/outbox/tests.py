"""Orders and their messages; a sender that fails, is killed, and is not alone."""

from io import StringIO
from unittest import mock

from django.core import mail
from django.core.management import call_command
from django.db import transaction
from django.test import TransactionTestCase

from goscope_django.checkpoints import checkpointed
from goscope_django.testing import empty_store
from outbox.models import Message, Order, place
from outbox.sending import send_waiting


class Killed(BaseException):
    """Stands in for the end of a process."""


class Outbox(TransactionTestCase):
    def setUp(self):
        empty_store()

    def run_it(self):
        output = StringIO()
        call_command("send_messages", stdout=output)
        return output.getvalue().strip()

    def test_each_is_sent_once_and_new_ones_the_next_time(self):
        for number in range(3):
            place(f"{number}@example.org")
        self.assertEqual(self.run_it(), "3 sent")
        place("3@example.org")
        self.assertEqual((self.run_it(), self.run_it()), ("1 sent", "0 sent"))
        self.assertEqual([sent.to for sent in mail.outbox], [[f"{number}@example.org"] for number in range(4)])
        self.assertEqual(len({sent.extra_headers["Message-ID"] for sent in mail.outbox}), 4)

    def test_what_was_rolled_back_is_not_sent(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            place("a@example.org")
            raise ZeroDivisionError
        self.assertEqual((self.run_it(), Order.objects.count()), ("0 sent", 0))

    def test_there_is_no_order_without_its_message(self):
        with mock.patch.object(Message.objects, "create", side_effect=OSError), self.assertRaises(OSError):
            place("a@example.org")
        self.assertFalse(Order.objects.exists())

    def test_a_killed_sender_loses_nothing_and_repeats_one_at_most(self):
        for number in range(5):
            place(f"{number}@example.org")
        names = []

        def deliver(message, name):
            names.append(name)
            if len(names) == 3:
                raise Killed  # after it was sent, before that was noted

        with self.assertRaises(Killed):
            send_waiting(deliver)
        send_waiting(deliver)
        self.assertEqual((len(names), len(set(names))), (6, 5))
        self.assertFalse(Message.objects.filter(sent=False).exists())

    def test_one_that_failed_is_tried_again_and_again(self):
        place("a@example.org")
        for _ in range(12):
            with self.assertRaises(OSError):
                send_waiting(lambda message, name: (_ for _ in ()).throw(OSError()))
        self.assertEqual(self.run_it(), "1 sent")

    def test_two_at_once_are_one(self):
        place("a@example.org")
        with checkpointed("outbox"):
            self.assertEqual(self.run_it(), "another process sends them")
        self.assertEqual((self.run_it(), len(mail.outbox)), ("1 sent", 1))
