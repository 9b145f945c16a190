"""A real browser on a running server: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.servers.basehttp import ServerHandler, WSGIRequestHandler
from django.test import Client
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.dashboard import PAGE

T = TypeVar("T")
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)
POLICY = "default-src 'self'"
PATIENCE = 20.0
"""Seconds within which whatever a test waits for has to come."""


def missing(what: str) -> None:
    """Skip, visibly; where everything has to be there, fail."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no browser tests: {what}")


@contextmanager
def chromium() -> Iterator[Chrome]:
    """A browser that keeps its console."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        missing("Debian's packages chromium and chromium-driver are not installed")
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"net.network_prediction_options": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.set_page_load_timeout(30)
        yield driver
    finally:
        driver.quit()


@contextmanager
def strict_server() -> Iterator[None]:
    """Let Django's server for tests forbid whatever is inline or from elsewhere, and close each connection.

    A connection that the browser kept would have a thread, which would look for its database after the test.
    """
    original = ServerHandler.cleanup_headers

    def cleanup_headers(self: Any) -> None:
        self.headers["Connection"] = "close"
        self.headers["Content-Security-Policy"] = POLICY
        original(self)

    WSGIRequestHandler.timeout = 5  # of connections that the browser opened in advance and never used
    ServerHandler.cleanup_headers = cleanup_headers  # type: ignore[method-assign]
    try:
        yield
        deadline = time.monotonic() + PATIENCE
        while any("process_request_thread" in one.name for one in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        WSGIRequestHandler.timeout = None
        ServerHandler.cleanup_headers = original  # type: ignore[method-assign]


def axe_script(cache: Path) -> str:
    """axe-core from the package registry, kept in pytest's cache."""
    found = cache / "axe.min.js"
    if not found.exists():
        npm = shutil.which("npm")
        if npm is None:
            missing("npm is not installed, which axe-core comes from")
        done = subprocess.run(
            [str(npm), "pack", "axe-core@4.10", "--silent"],
            cwd=cache,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if done.returncode != 0:
            missing(f"axe-core can't be had: {done.stderr.strip()[-200:]}")
        with tarfile.open(cache / done.stdout.strip().splitlines()[-1]) as archive:
            content = archive.extractfile("package/axe.min.js")
            assert content is not None
            found.write_bytes(content.read())
    return found.read_text(encoding="utf-8")


class Operator:
    """Somebody in front of the browser."""

    def __init__(self, driver: Chrome, address: str, someone: User) -> None:
        self.driver = driver
        self.address = address
        client = Client()
        client.force_login(someone)
        driver.get(f"{address}/static/goscope/dashboard.css")
        driver.delete_all_cookies()
        driver.execute_script("sessionStorage.clear(); localStorage.clear()")
        session = client.cookies[settings.SESSION_COOKIE_NAME]
        driver.add_cookie({"name": session.key, "value": session.value, "path": "/"})
        driver.get_log("browser")  # type: ignore[no-untyped-call]

    def open(self, path: str = PAGE, *, every: int | None = 2) -> None:
        """Go there; refreshed ``every`` so many seconds."""
        self.driver.get(f"{self.address}{path}")
        if every is not None:
            self.run(
                "const one = document.getElementById('goscope-interval'); one.value = String(arguments[0]);"
                "one.dispatchEvent(new Event('change'))",
                every,
            )

    def run(self, script: str, *args: object) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> WebElement:
        """The element. Raises ``NoSuchElementException``."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def every(self, selector: str) -> list[WebElement]:
        """All such elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What is to be read there."""
        return self.find(selector).text

    def row(self, section: str, name: str) -> WebElement:
        """The row of that name. Raises ``NoSuchElementException``."""
        for row in self.every(f"#section-{section} tbody tr"):
            if row.find_element(By.CSS_SELECTOR, "th").text == name:
                return row
        raise NoSuchElementException(f"{section}: {name}")

    def press(self, label: str) -> None:
        """Click the button with this accessible name; if it leads to another page, wait for that."""
        for button in self.every("button"):
            if label in (button.get_attribute("aria-label"), button.text):
                self.unfold(button)
                self.follow(button) if button.get_attribute("type") == "submit" else button.click()
                return
        raise NoSuchElementException(label)

    def unfold(self, element: WebElement) -> None:
        """Open the menus and details that it is in, as somebody would who looks for it."""
        self.run(
            "for (let one = arguments[0].closest('details'); one; one = one.parentElement.closest('details'))"
            "  if (!one.open) one.querySelector('summary').click()",
            element,
        )

    def follow(self, element: WebElement) -> None:
        """Click what leads to another page, and wait for it."""
        self.run("document.documentElement.dataset.old = 'yes'")
        element.click()
        self.arrived()

    def arrived(self) -> None:
        """Wait for the page after the one that ``follow`` marked."""
        self.until(
            lambda: self.run("return !document.documentElement.dataset.old && document.readyState == 'complete'")
        )

    def until(self, what: Callable[[], T], seconds: float = PATIENCE) -> T:
        """What ``what`` gives once it is true."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := what():
                    return found
            except (NoSuchElementException, StaleElementReferenceException, JavascriptException):
                pass
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.text('body')[:3_000]}"
            time.sleep(0.1)

    def refreshed(self) -> None:
        """Wait until the page has been refreshed once more."""
        self.run("document.getElementById('goscope-state').dataset.old = 'yes'")
        self.until(lambda: not self.every("#goscope-state[data-old]"))

    def refreshed_now(self) -> None:
        """The same, without waiting for its time: as when the network comes back."""
        self.run(
            "document.getElementById('goscope-state').dataset.old = 'yes'; window.dispatchEvent(new Event('online'))"
        )
        self.until(lambda: not self.every("#goscope-state[data-old]"))

    def console(self) -> list[str]:
        """What the browser complained about: violations of the policy among it."""
        found = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        told = [str(one["message"]) for one in found if one["level"] in ("WARNING", "SEVERE")]
        return [one for one in told if "/favicon.ico" not in one]  # which browsers ask every site for

    def devtools(self, command: str, **params: object) -> Any:
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, params)

    def scheme(self, name: str) -> None:
        """Prefer light or dark."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int = 800) -> None:
        """Make the page so large."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
