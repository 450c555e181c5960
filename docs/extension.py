"""What the documentation takes from the code: the help of each verb, and readable docstrings."""

import re
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from crome import cli


class VerbHelp(SphinxDirective):
    """Directive `{verbs}`: a section for each verb of the command line, with its `--help`."""

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of `crome --help`."""
        return [section(name) for name in cli.VERBS]


def section(name: str) -> nodes.section:
    """The part of the page about one verb."""
    title = f"crome {name}"
    part = nodes.section(ids=[nodes.make_id(title)], names=[title])
    part += nodes.title(text=title)
    part += nodes.literal_block(text=help_of(name), language="text")
    return part


def help_of(name: str) -> str:
    """What `crome NAME --help` prints, eighty columns wide wherever the site is built."""
    page = StringIO()
    with mock.patch.dict("os.environ", COLUMNS="80"), redirect_stdout(page), suppress(SystemExit):
        cli.main([*name.split(), "--help"])
    return page.getvalue().strip()


CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(?=(\w)?)")
"""Code in single backticks; the letter behind it, if one follows at once (as in a plural)."""


def literal_code(
    _app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Turns Markdown's code in docstrings into reStructuredText's, before they are parsed."""
    lines[:] = CODE.sub(as_literal, "\n".join(lines)).split("\n")


def as_literal(code: re.Match[str]) -> str:
    """One piece of code, on one line."""
    return f"``{' '.join(code[1].split())}``" + ("\\ " if code[2] else "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers both with Sphinx."""
    sys.stdout.flush()
    app.add_directive("verbs", VerbHelp)
    app.connect("autodoc-process-docstring", literal_code, priority=400)  # before napoleon's 500
    return {"parallel_read_safe": True}
