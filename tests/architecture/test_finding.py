"""What people ask is found within three clicks, whichever page of ours they begin at, and by one search."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import pytest

from tests.support.documents import ROOT, anchors, links, read

ASKED: Final = {
    "who holds my lock": "docs/how-to/troubleshooting.md#who-holds-my-lock",
    "my breaker does not close": "docs/how-to/troubleshooting.md#my-breaker-does-not-close",
    "from django-redis": "docs/how-to/from-django-redis.md#from-django-redis",
}
"""Questions, in the words of a search, and where the answer is."""
FIRST_PAGES: Final = ("README.md", "docs/README.md", "docs/tutorial/first-steps.md")
BY_FEATURE: Final = {
    "docs/how-to/locks.md": "who holds my lock",
    "docs/how-to/dashboard.md": "who holds my lock",
    "docs/how-to/circuit-breaker.md": "my breaker does not close",
    "docs/how-to/cache.md": "from django-redis",
}
"""Pages where who asks may be, too."""


def pages_behind(page: str) -> list[str]:
    """The pages to which ``page`` links, in its order."""
    folder = (ROOT / page).parent
    found = [(folder / target.partition("#")[0]).resolve() for target in links(read(page)) if target[0] != "#"]
    return [str(one.relative_to(ROOT)) for one in found if one.suffix == ".md" and one.is_relative_to(ROOT)]


def clicks(start: str, goal: str) -> int:
    """How many clicks it is from ``start`` to the page ``goal``."""
    near, queue = {start: 0}, deque([start])
    while queue:
        page = queue.popleft()
        if page == goal:
            return near[page]
        for one in pages_behind(page):
            if one not in near:
                near[one] = near[page] + 1
                queue.append(one)
    raise AssertionError(f"no way leads from {start} to {goal}")


@pytest.mark.parametrize("question", ASKED)
def test_it_is_a_heading_which_a_search_finds(question: str) -> None:
    page, _, anchor = ASKED[question].partition("#")
    text = read(page)
    assert anchor in anchors(text)
    assert re.search(rf"^#+ .*{re.escape(question)}", text, re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("start", FIRST_PAGES)
@pytest.mark.parametrize("question", ASKED)
def test_it_is_three_clicks_away(start: str, question: str) -> None:
    # One of the three is for the heading, in the page's own list.
    assert clicks(start, ASKED[question].partition("#")[0]) <= 2


@pytest.mark.parametrize("start", BY_FEATURE)
def test_the_page_of_the_feature_leads_there(start: str) -> None:
    assert clicks(start, ASKED[BY_FEATURE[start]].partition("#")[0]) == 1


def test_a_longer_way_is_counted() -> None:
    assert clicks("docs/README.md", "docs/README.md") == 0
    assert clicks("docs/tutorial/first-steps.md", "docs/how-to/sharding.md") == 2
    with pytest.raises(AssertionError, match="no way leads"):
        clicks("docs/README.md", "docs/nothing.md")
