"""A page of another origin in a real browser, which is the one to let it read an answer, or not."""

import json

from tests.api.conftest import Service, Start
from tests.support.browser import Browser
from tests.support.page import new_page

BODY = {"prompt": "hello", "stream": True}
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer any", "X-Stainless-Lang": "js"}


async def ask(browser: Browser, origin: str, service: Service) -> str:
    """What a page of `origin` gets of the service, or its error."""
    url, options = f"{service.running.url}/v1/chat", {"method": "POST", "headers": HEADERS, "body": json.dumps(BODY)}
    async with new_page(browser) as page:
        await page.open(f"{origin}/healthz")
        fetched = f"fetch({json.dumps(url)}, {json.dumps(options)}).then(response => response.text())"
        return str(await page.evaluate(f"{fetched}.catch(error => String(error))"))


async def test_only_a_named_origins_page_reads_an_answer(browser: Browser, start: Start) -> None:
    friend, stranger = (await start()).running.url, (await start()).running.url
    service = await start(cors_origins=friend)
    assert "[DONE]" in await ask(browser, friend, service)
    assert await ask(browser, stranger, service) == "TypeError: Failed to fetch"
