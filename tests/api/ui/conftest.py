"""One browser for all; for each test a tab with storage of its own, in which the browser must find nothing wrong."""

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.browser import LACKING, Browser, executable, run_browser
from tests.support.page import Page, new_page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = executable()
    if path is None:
        pytest.skip(LACKING)
    with run_browser(path) as running:
        yield running


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A tab. Whatever a test does there: no script fails, no policy is broken, nothing is asked of another host."""
    async with new_page(browser) as opened:
        yield opened
        assert opened.complaints() == []
        assert {urlsplit(url).hostname for url in opened.requested()} <= {"127.0.0.1"}
