"""The shop, served by gunicorn with two workers; one shop for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.demo.shop import GUNICORN, Shop, Visitor


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, mongo_url: str) -> Shop:
    """A shop with products and sales."""
    made = Shop(tmp_path_factory.mktemp("shop"), mongo_url)
    made.fill()
    return made


@pytest.fixture(scope="module")
def address(shop: Shop) -> Iterator[str]:
    """Where the shop is served by two processes."""
    with shop.serve(*GUNICORN) as url:
        yield url


@pytest.fixture
def visitor(address: str) -> Iterator[Visitor]:
    """A visitor who comes for the first time."""
    with Visitor(address) as found:
        yield found
