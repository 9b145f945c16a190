"""The browser is started once for all tests. Each test leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_django.live_server_helper import LiveServer
    from selenium.webdriver import Chrome

    from tests.support.browser import Operator


@pytest.fixture(scope="session")
def chrome() -> Iterator[Chrome]:
    """A browser."""
    from tests.support.browser import chromium

    with chromium() as driver:
        yield driver


@pytest.fixture
def operator(chrome: Chrome, live_server: LiveServer) -> Iterator[Operator]:
    """A superuser in front of the browser; the site allows nothing inline and nothing from elsewhere."""
    from django.contrib.auth.models import User

    from tests.support.browser import Operator, strict_server

    with strict_server():
        someone = Operator(chrome, live_server.url, User.objects.create_superuser("root"))
        someone.size(1_280)
        yield someone
        someone.devtools("Emulation.setScriptExecutionDisabled", value=False)
        someone.scheme("light")
        chrome.get("about:blank")


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """axe-core's source."""
    from tests.support.browser import axe_script

    assert pytestconfig.cache is not None
    return axe_script(Path(pytestconfig.cache.mkdir("axe-core")))
