"""How often the page is made: for many at once, again, and after a change."""

import threading
from unittest import mock

from django.test import Client, TransactionTestCase

from goscope_django.testing import empty_store
from page import views
from page.models import Product


class Page(TransactionTestCase):
    def setUp(self):
        empty_store()
        self.product = Product.objects.create(name="Tea")

    def get(self):
        return Client().get(f"/products/{self.product.pk}/").content

    def test_it_is_made_once_and_again_after_a_change(self):
        with mock.patch("page.views.render", side_effect=views.render) as render:
            self.assertEqual([self.get(), self.get(), self.get()], [b"<h1>Tea</h1>"] * 3)
            self.assertEqual(render.call_count, 1)
            self.product.name = "Coffee"
            self.product.save()
            self.assertEqual([self.get(), self.get()], [b"<h1>Coffee</h1>"] * 2)
            self.assertEqual(render.call_count, 2)

    def test_many_at_once_are_one(self):
        begun, end = threading.Event(), threading.Event()

        def render(found):
            begun.set()
            end.wait(60)
            return "<h1>Tea</h1>"

        pages, views_run = [], mock.Mock(side_effect=render)
        with (
            mock.patch("page.views.render", views_run),
            mock.patch("page.views.get_object_or_404", return_value=self.product),
        ):
            threads = [threading.Thread(target=lambda: pages.append(self.get())) for _ in range(4)]
            for thread in threads:
                thread.start()
            self.assertTrue(begun.wait(60))
            end.wait(1)  # time for the others to join; whoever comes later finds the page that is kept
            end.set()
            for thread in threads:
                thread.join(60)
        self.assertEqual((pages, views_run.call_count), ([b"<h1>Tea</h1>"] * 4, 1))

    def test_what_is_not_there_is_not_kept(self):
        self.assertEqual(Client().get("/products/999/").status_code, 404)
        Product.objects.create(pk=999, name="New")
        self.assertEqual(Client().get("/products/999/").content, b"<h1>New</h1>")
