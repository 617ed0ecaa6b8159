"""Pictures of the page for the docs, from a running --mode=serve.

python -m tests.browser.screenshots [--folder=docs/images] [--query='a red car'] ADDRESS
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser import chromium
from vse_jax.base.files import write_atomically

MOST_BYTES = 300_000


def take(browser: Browser, address: str, query: str, folder: Path) -> None:
    """Writes search.png, search_why.png and search_narrow.png."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        search(page, address, query)
        shoot(page, folder / "search.png")
        why(page)
        shoot(page, folder / "search_why.png")
    with browser.new_context(
        viewport={"width": 360, "height": 700},
        device_scale_factor=2,
        color_scheme="dark",
    ) as context:
        page = context.new_page()
        search(page, address, query)
        shoot(page, folder / "search_narrow.png")


def search(page: Page, address: str, query: str) -> None:
    page.goto(address)
    page.locator("#query").fill(query)
    page.locator("#query").press("Enter")
    page.locator(".tile").first.wait_for()


def why(page: Page) -> None:
    page.locator(".tile").first.click()
    page.locator("#heat-label").click()
    page.locator("#heat").wait_for()


def shoot(page: Page, path: Path) -> None:
    """Of photographs in 256 colours, which take a third."""
    page.evaluate("document.activeElement.blur()")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)  # decoding
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    png = as_png(image)
    if len(png) > MOST_BYTES:
        png = as_png(image.quantize(256))
    write_atomically(path, png)
    print(f"{path}: {len(png) / 1000:.0f} kB")


def as_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--query", default="a red car")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    with chromium.opened() as browser:
        take(browser, options.address, options.query, options.folder)


if __name__ == "__main__":
    main()
