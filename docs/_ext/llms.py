"""``llms.txt``: a list of all pages with their first sentence, for programs that read documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

SECTIONS = {
    "tutorial": "Tutorial",
    "how-to": "How to",
    "recipes": "Recipes",
    "reference": "Reference",
    "explanation": "Explanation",
    "adr": "Decisions",
}


def _first_sentence(env: BuildEnvironment, page: str) -> str:
    for paragraph in env.get_doctree(page).findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if text:
            return text.partition(". ")[0].removesuffix(".") + "."
    return ""


def write(app: Sphinx, failure: Exception | None) -> None:
    """Write the list beside the pages, after a build that worked."""
    if failure is not None or app.builder.format != "html":
        return
    env, lines = app.env, [f"# {app.config.project} {app.config.release}", ""]
    lines += [f"> {_first_sentence(env, app.config.root_doc)}", ""]
    for folder, title in SECTIONS.items():
        pages = sorted(page for page in env.found_docs if page.startswith(f"{folder}/"))
        if pages:
            lines += [f"## {title}", ""]
        for page in pages:
            address = app.config.html_baseurl.rstrip("/") + "/" if app.config.html_baseurl else ""
            lines.append(f"- [{env.titles[page].astext()}]({address}{page}.html): {_first_sentence(env, page)}")
        lines.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
