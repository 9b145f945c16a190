"""Each diagram is drawn from its text, and a page shows it, with words for those who can't see it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from scripts import diagrams
from tests.support.documents import DOCUMENTS, linked, read

SOURCES = sorted(diagrams.FOLDER.glob("*.txt"))


def test_there_is_a_picture_for_each_text_and_a_text_for_each_picture() -> None:
    assert SOURCES
    assert [one.with_suffix(".svg") for one in SOURCES] == sorted(diagrams.FOLDER.glob("*.svg"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_picture_is_drawn_from_its_text_and_shown(source: Path) -> None:
    picture = source.with_suffix(".svg")
    drawn = diagrams.draw(source.read_text(encoding="utf-8"))
    assert picture.read_text(encoding="utf-8") == drawn, "run python scripts/diagrams.py"
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    shown = [one for one in DOCUMENTS if picture in linked(one)]
    assert shown, "no page shows it"
    for page in shown:
        (words,) = re.findall(rf"!\[([^\]]*)\]\([^)]*{picture.name}\)", read(page))
        assert len(words) > 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lanes: A = One\nA ~~ nothing\nA ~~ more", "begins with"),
        ("title: T\nlanes: A = One, B = Two\nA => B: what", "no arrow"),
        ("title: T\nlanes: A = One, B = Two\nA -> B: " + "far too long " * 12, "too long"),
        ("title: T\nbars: seconds\none | 1", "a row of bars"),
        ("title: T\npies: seconds\none | 1 | 1", "neither lanes nor bars"),
    ],
)
def test_what_can_not_be_drawn_is_an_error(text: str, said: str) -> None:
    with pytest.raises(diagrams.Unreadable, match=said):
        diagrams.draw(text)


def test_words_are_only_words() -> None:
    assert "<script>" not in diagrams.draw("title: T\nlanes: A = <script>, B = Two\nA -> B: <script>")
