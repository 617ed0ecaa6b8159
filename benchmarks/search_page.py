"""How soon the search page is there, in Chromium, on a running --mode=serve.

python -m benchmarks.search_page http://127.0.0.1:8765/ 'a red car'

Each turn is a browser profile of its own, so nothing is cached.
"""

import statistics
import sys
import time

from playwright.sync_api import Browser

from tests.browser import chromium

TURNS = 7


def turn(browser: Browser, address: str, query: str) -> tuple[float, float, float]:
    """Seconds to the page, from Enter to the tiles, and to the first row's images."""
    with browser.new_context(
        viewport={"width": 1280, "height": 800},
        bypass_csp=True,  # of wait_for_function, which evaluates a text
    ) as context:
        page = context.new_page()
        start = time.perf_counter()
        page.goto(address)
        page.locator("#welcome").wait_for()
        page_s = time.perf_counter() - start
        page.locator("#query").fill(query)
        start = time.perf_counter()
        page.locator("#query").press("Enter")
        page.locator(".tile").first.wait_for()
        tiles_s = time.perf_counter() - start
        page.wait_for_function(
            "[...document.querySelectorAll('.tile img')].slice(0, 5)"
            ".every(image => image.naturalWidth)"
        )
        return page_s, tiles_s, time.perf_counter() - start


def main(address: str, query: str) -> None:
    with chromium.opened() as browser:
        turns = [turn(browser, address, query) for _ in range(TURNS)]
    names = ("page", "Enter to tiles", "Enter to five images")
    for name, seconds in zip(names, zip(*turns, strict=True), strict=True):
        print(
            f"{name}: median {1e3 * statistics.median(seconds):.0f} ms, "
            f"slowest {1e3 * max(seconds):.0f} ms of {TURNS}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:3])
