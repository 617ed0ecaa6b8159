"""One server and one browser for all tests; a watched page for each."""

from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.browser import chromium, site


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    with site.served(tmp_path_factory.mktemp("site")) as url:
        yield url


@pytest.fixture(scope="session")
def locked_address(tmp_path_factory):
    """Of a server that asks for the token 'sesame'."""
    with site.served(tmp_path_factory.mktemp("locked"), "sesame") as url:
        yield url


@pytest.fixture(scope="session")
def roll(tmp_path_factory):
    """(address, folder of its pictures): the dozen, and a burst of three."""
    folder = tmp_path_factory.mktemp("roll")
    pictures = folder / "pictures"
    for number in range(3):
        path = pictures / "burst" / f"{number}.png"
        site.two_colours(path, "green", "purple", (90, 60))
        image = Image.open(path)
        image.putpixel((number, 0), (0, 0, 0))
        image.save(path)
    with site.served(folder) as url:
        yield url, pictures


@pytest.fixture(scope="session")
def browser():
    with chromium.opened() as browser:
        yield browser


class Watch:
    """What a page asked for and complained of."""

    def __init__(self, page):
        self.addresses: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def forgive(self, words: str) -> None:
        """Chromium complains of every refusal, also of one that a test provokes."""
        assert any(words in text for text in self.complaints)
        self.complaints = [text for text in self.complaints if words not in text]

    def check(self) -> None:
        assert self.complaints == []
        hosts = {urlsplit(a).hostname for a in self.addresses if ":" in a[:6]}
        assert hosts <= {"127.0.0.1"}


@pytest.fixture
def new_page(browser):
    """Makes watched pages; no test may leave a complaint or ask another host."""
    pages = []

    def make(width=1280, height=800, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, **options
        )
        page = context.new_page()
        page.set_default_timeout(5000)
        page.watch = Watch(page)
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.context.close()
        page.watch.check()


@pytest.fixture
def page(new_page, address):
    """The page as it opens."""
    page = new_page()
    page.goto(address)
    page.get_by_role("heading", name="What is in the photo?").wait_for()
    return page
