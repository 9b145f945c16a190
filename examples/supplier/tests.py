"""A supplier that is well, that is asked too often, and that is down."""

from unittest import mock

from django.core.cache import cache
from django.test import SimpleTestCase

from goscope_django.circuits import CircuitOpen, get_circuit
from goscope_django.exceptions import StoreUnavailable
from goscope_django.testing import empty_store
from supplier.calls import PER_SECOND, TooManyCalls, stock


class Supplier(SimpleTestCase):
    def setUp(self):
        empty_store()
        self.asked = []

    def fetch(self, status):
        def fetch(sku):
            self.asked.append(sku)
            return status, f"{sku}: 3 left"

        return fetch

    def test_no_more_calls_than_agreed_and_that_does_not_open_the_circuit(self):
        cache.set("supplier:calls", 0, timeout=3600)  # a second that does not end during the test
        self.assertEqual(stock("tea", self.fetch(200)), "tea: 3 left")
        for _ in range(PER_SECOND - 1):
            stock("tea", self.fetch(200))
        for _ in range(10):
            with self.assertRaises(TooManyCalls):
                stock("tea", self.fetch(200))
        self.assertEqual(len(self.asked), PER_SECOND)
        self.assertNotEqual(getattr(get_circuit("supplier"), "state", "closed"), "open")

    def test_the_next_second_has_calls_again(self):
        cache.set("supplier:calls", PER_SECOND, timeout=3600)
        with self.assertRaises(TooManyCalls):
            stock("tea", self.fetch(200))
        cache.expire("supplier:calls", 0)
        self.assertEqual(stock("tea", self.fetch(200)), "tea: 3 left")
        self.assertLessEqual(cache.ttl("supplier:calls") or 0, 1)

    def test_an_outage_of_the_counter_is_no_failure_of_the_supplier(self):
        stock("tea", self.fetch(200))
        with mock.patch.object(cache, "incr", side_effect=StoreUnavailable):
            for _ in range(5):
                with self.assertRaises(StoreUnavailable):
                    stock("tea", self.fetch(200))
        cache.set("supplier:calls", 0, timeout=3600)
        self.assertEqual(stock("tea", self.fetch(200)), "tea: 3 left")

    def test_a_counter_that_never_answers_keeps_nobody_busy(self):
        with mock.patch.object(cache, "incr", side_effect=ValueError), self.assertRaises(TooManyCalls):
            stock("tea", self.fetch(200))

    def test_a_429_is_no_failure_and_a_500_is_one(self):
        cache.set("supplier:calls", -100, timeout=3600)
        for _ in range(5):
            with self.assertRaises(TooManyCalls):
                stock("tea", self.fetch(429))
        for _ in range(3):
            with self.assertRaises(OSError):
                stock("tea", self.fetch(503))
        with self.assertRaises(CircuitOpen) as refused:
            stock("tea", self.fetch(200))
        self.assertGreater(refused.exception.retry_after, 0)
        self.assertEqual(len(self.asked), 8)
