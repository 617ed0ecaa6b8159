"""The browser of the tests and of the screenshots: the machine's own Chromium."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

from vse_jax.base.errors import InputError

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A Chromium without windows.

    Raises:
        InputError: none is installed.
    """
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        raise InputError("no Chromium on this machine; apt-get install chromium")
    # Chromium refuses to put root into its sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
