"""With a server, and without one."""

from django.test import SimpleTestCase, override_settings

from goscope_django.testing import empty_store

NOWHERE = {
    "URL": "mongodb://127.0.0.1:9/nowhere",
    "TEST": {"URL": "mongodb://127.0.0.1:9/nowhere"},
    "CLIENT_OPTIONS": {"serverSelectionTimeoutMS": 100},
}


class Probes(SimpleTestCase):
    def test_with_a_server_both_are_well(self):
        empty_store()
        self.assertEqual([self.client.get(path).status_code for path in ("/live/", "/ready/")], [200, 200])

    @override_settings(GOSCOPE=NOWHERE)
    def test_without_one_it_is_alive_and_not_ready(self):
        self.assertEqual(self.client.get("/live/").status_code, 200)
        answer = self.client.get("/ready/")
        self.assertEqual((answer.status_code, answer.json()), (503, {"mongodb": "down"}))
