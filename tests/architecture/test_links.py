"""Every link of the documents leads somewhere, to the very heading, and every document is listed in their index."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, anchors, broken, linked, read


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_anchors_lead_somewhere(document: str) -> None:
    assert broken(read(document), ROOT / document) == []


def test_every_document_is_in_the_index() -> None:
    listed = set(linked("docs/README.md"))
    # The site's first page includes the index.
    apart = {"docs/README.md", "docs/index.md"}
    assert {one for one in DOCUMENTS if one.startswith("docs/") and ROOT / one not in listed} == apart


@pytest.mark.parametrize("target", ["gone.md", "gone.md#here", "page.md#there", "#there", "folder/page.md"])
def test_a_broken_link_is_found(tmp_path: Path, target: str) -> None:
    place = tmp_path / "page.md"
    place.write_text(f"# Here\n\nSee [it]({target}).\n")
    assert [found.partition(": ")[0] for found in broken(place.read_text(), place)] == [target]


@pytest.mark.parametrize("target", ["page.md", "page.md#here", "#here", "https://example.org/gone", "../"])
def test_a_good_link_is_let_pass(tmp_path: Path, target: str) -> None:
    place = tmp_path / "page.md"
    place.write_text(f"# Here\n\nSee [it]({target}), not `[code](gone.md)`.\n\n```\n[code](gone.md)\n```\n")
    assert broken(place.read_text(), place) == []


def test_anchors_are_made_as_code_hosts_make_them() -> None:
    headings = "# Who, `exactly`?\n## A [link](x.md) & more\n## Twice\n## Twice\n```\n# none\n```\n"
    assert anchors(headings) == {"who-exactly", "a-link--more", "twice", "twice-1"}
