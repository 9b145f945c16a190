"""A counter that sleeps with the lock, loses it, and wakes up."""

from django.test import TransactionTestCase

from goscope_django.fencing import StaleFence
from goscope_django.locks import LockNotAcquired, backend, lock
from goscope_django.testing import empty_store
from stock.counting import correct, sell
from stock.models import Item


class Stock(TransactionTestCase):
    def setUp(self):
        empty_store()
        Item.objects.create(sku="tea", left=3)

    def left(self):
        return Item.objects.get(sku="tea").left

    def test_a_late_count_is_refused(self):
        def slow(sku):
            # It fell asleep, an operator released its lock, and another one counted.
            self.assertTrue(backend().force_release("stock:tea"))
            correct("tea", lambda sku: 40)
            return 7

        with self.assertRaises(StaleFence):
            correct("tea", slow)
        self.assertEqual(self.left(), 40)

    def test_counts_in_turn_are_stored(self):
        for counted in (5, 6):
            correct("tea", lambda sku, counted=counted: counted)
            self.assertEqual(self.left(), counted)

    def test_nobody_else_counts_meanwhile(self):
        def count(sku):
            with self.assertRaises(LockNotAcquired), lock("stock:tea", blocking=False):
                pass
            return 8

        correct("tea", count)
        self.assertEqual(self.left(), 8)

    def test_nothing_is_sold_twice(self):
        self.assertEqual([sell("tea", 2), sell("tea", 2), sell("tea", 1)], [True, False, True])
        self.assertEqual(self.left(), 0)
