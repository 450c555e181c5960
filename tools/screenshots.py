"""Takes the pictures of the documentation: the server's page and the report of a run.

    crome serve --adapter lamps=runs/lamps/adapter &
    python tools/screenshots.py lamps/0121.png "Which lamp is lit?" runs/before/report.html

writes `docs/pictures/page.png` and `docs/pictures/report.png` with headless Chromium. The run and
the picture are those of `docs/start/own-data.md`.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

PICTURES = Path("docs/pictures")
URL = "http://127.0.0.1:8000"


def take_page(page: Any, picture: str, question: str, url: str) -> None:
    """Asks the base and the first adapter, side by side."""
    page.goto(url)
    page.wait_for_selector("#models input")
    for box in page.locator("#models input").all()[:2]:
        box.check()
    page.set_input_files("#file", picture)
    page.wait_for_selector("#picture.full")
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1", timeout=120_000)
    page.locator("#question").blur()
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / "page.png")


def take_report(page: Any, report: str) -> None:
    """The head of a report and its first questions."""
    page.set_viewport_size({"width": 1100, "height": 1780})
    page.goto(Path(report).resolve().as_uri())
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / "report.png")


def main(picture: str, question: str, report: str, url: str = URL) -> None:
    """Takes both pictures."""
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 620})
        take_page(page, picture, question, url)
        take_report(page, report)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
