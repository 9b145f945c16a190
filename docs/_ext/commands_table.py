"""``.. commands::``: every management command with its verbs and options, read from their parsers."""

from __future__ import annotations

import argparse
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from django.core.management import load_command_class
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from goscope_django.management import commands

OF_DJANGO = {
    "--help",
    "--version",
    "--verbosity",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
    "--skip-checks",
}


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or OF_DJANGO.intersection(action.option_strings):
            continue
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        named = ", ".join(f"{one}{value}" for one in action.option_strings) or str(action.metavar or action.dest)
        text = (action.help or "").replace("%%", "%")
        yield named, text if action.help != argparse.SUPPRESS else ""


def _escaped(text: str) -> str:
    """Text in which stars and underscores mean themselves."""
    return re.sub(r"([*_|])", r"\\\1", " ".join(text.split()))


class Commands(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for module in pkgutil.iter_modules(commands.__path__):
            if not module.name.startswith("goscope_"):
                continue
            command = load_command_class("goscope_django", module.name)
            parser = command.create_parser("manage.py", module.name)
            lines += [module.name, "-" * len(module.name), "", _escaped(command.help), ""]
            for verb, one in {"": parser, **_verbs(parser)}.items():
                options = list(_options(one))
                if verb:
                    lines += [f"**{module.name} {verb}**", "", _escaped(one.description or ""), ""]
                for named, text in options:
                    lines += [f"``{named}``", f"    {_escaped(text) or 'what it is about'}", ""]
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(StringList(lines, source="commands"), self.content_offset, section, match_titles=True)
        return section.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
