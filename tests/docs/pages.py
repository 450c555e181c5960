"""The project's Markdown pages as the tests read them: links, headings and code blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
COMMENT = re.compile(r"\s+#\s.*$|^#.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: Of the block.
        line: Where it starts, counted from 1.
        language: Named behind the fence; empty for none.
        code: Its text.
    """

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[2].strip(), match[3])
        for match in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, without those to other sites."""
    found = [a or b for a, b in LINK.findall(prose(page))]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    return {anchor(heading) for heading in HEADING.findall(prose(page))}


def anchor(heading: str) -> str:
    """The anchor of a heading: lower case, words joined by hyphens, no other marks."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def commands(block: Block) -> list[str]:
    """The commands of a block: one a line, continued lines joined, comments taken off."""
    if block.language not in ("", "bash", "console", "shell", "sh"):
        return []
    joined = re.sub(r"\\\n\s*", " ", block.code)
    lines = (COMMENT.sub("", line).strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if line]
