"""Links from a page to a file of the repository that is no page: on the site they lead to the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def lead_outside(app: Sphinx, document: nodes.document) -> None:
    """Replace what MyST would offer as a download, or not find, by an address."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    root, pages = Path(app.srcdir).resolve().parent, Path(app.srcdir).resolve()
    home = app.config.html_theme_options["source_repository"]
    for link in [*document.findall(addnodes.pending_xref), *document.findall(addnodes.download_reference)]:
        if link.get("reftarget") == "README":  # index.md includes it
            link["reftarget"] = "index"
        target, _, anchor = link.get("reftarget", "").partition("#")
        if not target or "://" in target:
            continue
        # For a page MyST has resolved the path already and taken off its suffix.
        path = next((one for one in ((here / target).resolve(), Path(f"{target}.md")) if one.exists()), here)
        if path.is_relative_to(pages) or not path.is_relative_to(root) or not path.exists():
            continue
        kind = "tree" if path.is_dir() else "blob"
        address = f"{home}/{kind}/main/{path.relative_to(root)}" + (f"#{anchor}" if anchor else "")
        link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=False))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", lead_outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
