"""Every link inside the project leads somewhere."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pages import PAGES, ROOT, anchors, links

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@named
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the project"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_of_the_site_is_reachable():
    """The tables of contents list every page but the first one."""
    site = ROOT / "docs"
    pages = {page for page in PAGES if page.is_relative_to(site)}
    listed = {
        found.resolve()
        for page in pages
        for name in _table_of_contents(page)
        for found in page.parent.glob(f"{name}.md")
    }
    assert sorted(pages - listed - {site / "index.md"}) == []


def _table_of_contents(page):
    text, marker = page.read_text(), "```{toctree}"
    for part in text.split(marker)[1:]:
        lines = (line.strip() for line in part.split("```")[0].splitlines())
        yield from (x.rpartition("<")[2].strip(">") for x in lines if x and x[0] != ":")
