"""Sessions are in MongoDB as well, and it is killed: the operator is told, is not signed out, and goes on after it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter
from tests.fleet.support import SHOP, prepare_shop, runserver
from tests.support.browser import Operator
from tests.support.dashboard import PAGE
from tests.support.mongod import replica_set

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(300)]


class Visitor(Operator):
    """Somebody who signs in as people do, on a site that runs in a process of its own."""

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver, self.address = driver, address
        driver.get(f"{address}/admin/login/?next={PAGE}")
        driver.delete_all_cookies()
        driver.get(f"{address}/admin/login/?next={PAGE}")
        self.find("#id_username").send_keys("root")
        self.find("#id_password").send_keys("secret")
        self.follow(self.find("[type=submit]"))

    def again(self) -> None:
        """Follow the link of the page that is shown meanwhile."""
        self.follow(self.find(".goscope-away a"))

    @property
    def session(self) -> Any:
        found: Any = self.driver.get_cookie("sessionid")
        return None if found is None else found["value"]


def test_the_dashboard_tells_of_the_outage_and_comes_back(chrome: Chrome, tmp_path: Path) -> None:
    with replica_set(members=1) as servers:
        url = servers.uri.replace("/?", "/shop?")
        prepare_shop(tmp_path, url)
        with MongoClient[dict[str, Any]](url) as client:
            assert MongoDBAdapter(client["shop"]).lock.acquire("orders", ttl=600_000)
        with runserver(url, tmp_path, SETTINGS=SHOP) as site:
            root = Visitor(chrome, f"http://127.0.0.1:{site.port}")
            root.open()
            root.until(lambda: root.row("locks", "orders"))
            signed_in = root.session
            assert signed_in
            port = servers.kill_primary()
            try:
                # The page that is open keeps what it shows, and says why it is not refreshed.
                root.until(lambda: "sessions can't be read" in root.text("#goscope-warning"), 40)
                assert root.row("locks", "orders").is_displayed()
                # One that is opened now, or asked for once more, is the page that needs no session.
                for again in (partial(root.open, every=None), root.again):
                    again()
                    assert root.text("h1") == "MongoDB can't be reached"
                    assert "goscope_status" in root.text("#goscope")
                    assert root.session == signed_in
            finally:
                servers.resume(port)

            def back() -> bool:
                root.again()
                return root.row("locks", "orders").is_displayed()

            root.until(back, 60)
            assert root.session == signed_in, "nobody is signed out"
            root.open()
            root.refreshed()
            assert not root.find("#goscope-warning").is_displayed()
        chrome.get("about:blank")
