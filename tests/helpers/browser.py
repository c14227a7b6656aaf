"""Chromium without a window, for tests of pages."""

import shutil
from contextlib import contextmanager

import pytest

BROWSERS = ('chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@contextmanager
def open_browser(*flags):
    """Yield a browser of Playwright, or skip the test if Playwright or a browser is missing."""
    api = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f'needs a browser: {", ".join(BROWSERS)}')
    with api.sync_playwright() as playwright:
        # Chromium's sandbox does not work in a container, and it opens only pages of this repository.
        opened = playwright.chromium.launch(executable_path=found, args=['--no-sandbox', *flags])
        yield opened
        opened.close()
