"""The small parts that each row has: the link of its name, the box that selects it, its buttons.

They are made here and not by templates, since a page has a thousand of each and a template takes ten times as long;
``format_html`` takes three times as long.

Rule of this file: whatever is not written here goes through ``escape``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from django.utils.safestring import SafeString

if TYPE_CHECKING:
    from goscope_django.dashboard.rows import Button


def name(item: Mapping[str, Any] | None, shown: str, posted_url: str) -> SafeString:
    """The name of a thing, which leads to its page; as a form where its key is too long for an address."""
    text = f"<bdi>{escape(shown)}</bdi>"
    if item is None:
        return SafeString(text)
    if item["link"]:
        return SafeString(f'<a href="{escape(item["link"])}">{text}</a>')
    return SafeString(
        f'<button type="submit" form="goscope-form" formaction="{escape(posted_url)}" name="item" '
        f'value="{escape(item["post"])}" class="goscope-link">{text}</button>'
    )


def pick(value: str, label: str) -> SafeString:
    """The cell with the box that selects a row."""
    return SafeString(
        '<td class="goscope-pick"><input type="checkbox" form="goscope-form" name="selected" '
        f'value="{escape(value)}" aria-label="{escape(label)}"></td>'
    )


def button(one: Button) -> SafeString:
    """A button that leads to the page that asks for confirmation."""
    return SafeString(
        f'<button type="submit" form="goscope-form" formaction="{escape(one.url)}" name="seen" '
        f'value="{escape(one.seen)}" aria-label="{escape(one.name)}" '
        f'class="button{" goscope-destroys" if one.destroys else ""}">{escape(one.label)}</button>'
    )


def menu(buttons: Sequence[Button], shown: str) -> SafeString:
    """The first button, and the others in a menu."""
    first, rest = "".join(map(button, buttons[:1])), "".join(map(button, buttons[1:]))
    if not rest:
        return SafeString(first)
    return SafeString(
        f'{first}<details class="goscope-menu"><summary aria-label="More actions: {escape(shown)}">More</summary>'
        f"<div>{rest}</div></details>"
    )
