"""What a sender does: repeat, repeat with a new time stamp, and others who are not the sender."""

import json
from unittest import mock

from django.test import SimpleTestCase

from goscope_django.testing import empty_store
from webhook.booking import booked
from webhook.views import signed


class Webhook(SimpleTestCase):
    def setUp(self):
        empty_store()
        booked.clear()

    def send(self, event, signature=None):
        body = json.dumps(event).encode()
        headers = {"X-Signature": signed(body) if signature is None else signature}
        return self.client.post("/webhook/", body, content_type="application/json", headers=headers)

    def test_an_event_is_booked_once_however_often_it_comes(self):
        first = self.send({"id": "e1", "amount": 10, "sent": "12:00"})
        again = self.send({"id": "e1", "amount": 10, "sent": "12:01"})
        self.assertEqual((first.status_code, again.status_code), (200, 200))
        self.assertEqual((first.content, again["Idempotent-Replayed"]), (again.content, "true"))
        self.send({"id": "e2", "amount": 5})
        self.assertEqual(booked, [("e1", 10), ("e2", 5)])

    def test_a_wrong_signature_gets_nothing_not_even_the_stored_answer(self):
        self.send({"id": "e1", "amount": 10})
        for signature in ("", "0" * 64):
            self.assertEqual(self.send({"id": "e1", "amount": 10}, signature).status_code, 403)
            self.assertEqual(self.send({"id": "e3", "amount": 10}, signature).status_code, 403)
        self.assertEqual(booked, [("e1", 10)])

    def test_a_delivery_while_another_one_runs_is_told_to_come_again(self):
        answers = []

        def slow(event, amount):
            answers.append(self.send({"id": "e1", "amount": 10}))

        with mock.patch("webhook.views.book", side_effect=slow) as run:
            self.assertEqual(self.send({"id": "e1", "amount": 10}).status_code, 200)
        self.assertEqual((run.call_count, answers[0].status_code, answers[0]["Retry-After"]), (1, 409, "1"))

    def test_after_a_failure_the_next_delivery_runs(self):
        self.client.raise_request_exception = False
        with mock.patch("webhook.views.book", side_effect=RuntimeError):
            self.assertEqual(self.send({"id": "e1", "amount": 10}).status_code, 500)
        self.assertEqual(self.send({"id": "e1", "amount": 10}).status_code, 200)
        self.assertEqual(booked, [("e1", 10)])
