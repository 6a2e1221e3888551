"""Takes the pictures of the dashboard that stand in the documentation, from the runs of a demo."""

import argparse
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from analyzer.dashboard.app import create_app
from analyzer.dashboard.server import serve, take_port

IMAGES = Path(__file__).parent / "images"
PAIR = "?run=demo-0-plain&run=demo-0-residual"
# Name, page, whether dark, width and height.
PICTURES = (
    ("runs", "/runs", False, 1280, 660),
    ("overview", "/" + PAIR, False, 1440, 900),
    ("overview-dark", "/" + PAIR, True, 1440, 900),
    ("flow", "/flow" + PAIR, False, 1600, 1180),
    ("compare", "/compare" + PAIR, False, 1280, 1700),
    ("shortcuts", "/shortcuts" + PAIR, False, 1280, 1300),
    ("landscape", "/landscape" + PAIR, False, 1280, 810),
    ("findings", "/findings" + PAIR, False, 1280, 420),
    ("phone", "/" + PAIR, True, 390, 1500),
)
SETTLED = """() => !document.querySelector('#content .mantine-Skeleton-root')
    && !document.querySelector('#headline .message, #verdict .message')
    && ![...document.querySelectorAll('#content td')].some((cell) => cell.textContent === '…')
    && [...document.querySelectorAll('[data-panel]')].every((card) =>
        card.querySelector('.message') || (card.querySelector('.caption').textContent
            && card.querySelector('.js-plotly-plot .main-svg')))"""


def picture(browser: Any, address: str, name: str, dark: bool, width: int, height: int) -> None:
    """Take one picture when all figures of the page are drawn."""
    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector("#content h1")
    end = time.monotonic() + 60
    while not page.evaluate(SETTLED) and time.monotonic() < end:
        page.wait_for_timeout(100)
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / f"dashboard-{name}.png")
    if name == "overview":
        with page.expect_download() as download:
            page.get_by_role("button", name="save Overview as PNG").click()
        shutil.copy(download.value.path(), IMAGES / "overview.png")
    page.close()


def main() -> None:
    """Serve the runs of ``analyzer demo`` from a thread and go through the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", default="runs", help="folder of the demo's runs")
    place = take_port(port=0)
    server = serve(create_app(parser.parse_args().runs).server, place)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = started.chromium.launch(executable_path=chromium, args=options)
        for name, path, dark, width, height in PICTURES:
            address = place.url().rstrip("/") + path
            picture(browser, address, name, dark, width, height)
        browser.close()


if __name__ == "__main__":
    main()
