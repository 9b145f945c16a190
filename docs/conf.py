"""How the site is built: Sphinx, with MyST for the pages and Furo for their look. `make docs` builds it strictly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"

import django  # noqa: E402

django.setup()

from goscope_django import __version__  # noqa: E402

HOME = "https://github.com/goscope/goscope-django"

project = "goscope-django"
author = "goscope_django contributors"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "outside", "llms", "commands_table", "inner"]
root_doc = "index"
# README.md is the same list of pages for those who read them where the code is; index.md includes it.
exclude_patterns = ["README.md", "_build", "_ext"]
nitpicky = False
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
# What the integrations import; the site describes them without it.
autodoc_mock_imports = ["celery", "kombu", "health_check", "prometheus_client", "pytest"]

html_theme = "furo"
html_title = f"goscope-django {release}"
html_copy_source = False
html_show_sourcelink = False
html_search_scorer = str(HERE / "_ext" / "scorer.js")
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_theme_options = {
    "source_repository": HOME,
    "source_branch": "main",
    "source_directory": "docs/",
    "footer_icons": [],
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
