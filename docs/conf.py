"""The documentation site: Markdown pages, and reference pages made from the code itself.

    sphinx-build --fail-on-warning --builder html docs site

`docs/extension.py` adds what the code says of itself: the help of every verb, and docstrings whose
code is in single backticks, as in Markdown.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import crome

project = "crome"
author = "the authors of crome"
version = release = crome.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "extension",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["pictures/README.md"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True

highlight_language = "bash"  # of blocks that name none
html_theme = "furo"
html_title = f"crome {version}"
html_copy_source = False
html_show_sphinx = False
