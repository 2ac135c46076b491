"""The site: ``bash scripts/docs.sh``. Nothing is fetched from a network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import foundation

project = "foundation"
author = "the foundation authors"
release = foundation.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"foundation {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
smartquotes = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _keep_shapes_whole(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep napoleon from reading ``Actions. Shape: (num_envs,)`` under ``Returns:`` as a type and its description."""
    for index, line in enumerate(lines):
        if line.strip() == "Returns:" and index + 1 < len(lines):
            lines[index + 1] = re.sub(r"Shape: ", "Shape ", lines[index + 1])


def setup(app) -> None:
    """Clean docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", _keep_shapes_whole, priority=400)
