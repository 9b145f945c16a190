"""The small parts that each row has: the link of its name, the box that selects it, its buttons.

They are made here and not by templates, since a page has a thousand of each and a template takes ten times as long.

Rule of this file: whatever is not written here goes through ``format_html``, which escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

if TYPE_CHECKING:
    from goscope_django.dashboard.rows import Button


def name(item: Mapping[str, Any] | None, shown: str, posted_url: str) -> SafeString:
    """The name of a thing, which leads to its page; as a form where its key is too long for an address."""
    if item is None:
        return format_html("<bdi>{}</bdi>", shown)
    if item["link"]:
        return format_html('<a href="{}"><bdi>{}</bdi></a>', item["link"], shown)
    return format_html(
        '<button type="submit" form="goscope-form" formaction="{}" name="item" value="{}" class="goscope-link">'
        "<bdi>{}</bdi></button>",
        posted_url,
        item["post"],
        shown,
    )


def pick(value: str, label: str) -> SafeString:
    """The cell with the box that selects a row."""
    return format_html(
        '<td class="goscope-pick"><input type="checkbox" form="goscope-form" name="selected" value="{}" '
        'aria-label="{}"></td>',
        value,
        label,
    )


def button(one: Button) -> SafeString:
    """A button that leads to the page that asks for confirmation."""
    return format_html(
        '<button type="submit" form="goscope-form" formaction="{}" name="seen" value="{}" aria-label="{}" '
        'class="button{}">{}</button>',
        one.url,
        one.seen,
        one.name,
        " goscope-destroys" if one.destroys else "",
        one.label,
    )


def menu(buttons: Sequence[Button], shown: str) -> SafeString:
    """The first button, and the others in a menu."""
    if len(buttons) < 2:
        return format_html_join("", "{}", ((button(one),) for one in buttons))
    return format_html(
        '{}<details class="goscope-menu"><summary aria-label="More actions: {}">More</summary><div>{}</div></details>',
        button(buttons[0]),
        shown,
        format_html_join("", "{}", ((button(one),) for one in buttons[1:])),
    )
