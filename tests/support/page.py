"""A page in a browser, as its reader has it: looks, types, presses keys, clicks, waits for something to be so."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.browser import Browser

PATIENCE = 30
"""Seconds after which a wait fails. What a page does at all it does at once, but the machine may be busy."""
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "ArrowUp": ("", 38), "Tab": ("", 9), " ": (" ", 32)}
ALT, CONTROL, SHIFT = 1, 2, 8
WATCHED = ("Page", "Runtime", "Network", "Log")


class Page:
    """One tab with storage of its own."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.send(method, self._session, **params)

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def reload(self) -> None:
        await self.evaluate("window.isOld = true")
        await self.send("Page.reload")
        await self.until("!window.isOld && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, awaited if it is a promise. Raises AssertionError with what it throws."""
        done = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait for JavaScript to be true."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self._look(f"Boolean({expression})"):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"never so: {expression}\n{await self.text()}") from None

    async def until_text(self, text: str, selector: str = "body") -> None:
        await self.until(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})")

    async def text(self, selector: str = "body") -> str:
        """Visible text of the first match; empty if there is none."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def value(self, selector: str = "#input") -> str:
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).value"))

    async def type(self, text: str) -> None:
        """Into whatever has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, modifiers: int = 0) -> None:
        text, code = KEYS.get(key, (key, ord(key.upper()[0])))
        event = {"key": key, "code": f"Key{key.upper()}" if len(key) == 1 else key, "windowsVirtualKeyCode": code}
        shown = {"text": text} if text and not modifiers & (ALT | CONTROL) else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **event, **shown)
        await self.send("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **event)

    async def press_while_composing(self, key: str) -> None:
        """What an input method takes for itself: told to the page, and no text comes of it."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key][1]}
        await self.send("Input.dispatchKeyEvent", type="rawKeyDown", **event)

    async def ask(self, question: str) -> None:
        await self.type(question)
        await self.press("Enter")

    async def click(self, text: str) -> None:
        """On the visible button with exactly this text, once it is there."""
        button = (
            "[...document.querySelectorAll('button, .switch')]"
            f".find(b => b.innerText.trim() === {json.dumps(text)} && b.checkVisibility())"
        )
        await self.until(button)
        await self.evaluate(f"{button}.click()")

    async def resize(self, width: int, height: int = 800) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **size)

    async def picture(self, file: Path) -> None:
        shot = await self.send("Page.captureScreenshot")
        file.write_bytes(base64.b64decode(shot["data"]))

    def happened(self, method: str) -> list[dict[str, Any]]:
        """What the browser told of this kind so far."""
        return [event["params"] for event in self._browser.events[self._session] if event["method"] == method]

    def requested(self) -> list[str]:
        return [event["request"]["url"] for event in self.happened("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Errors of scripts and of policies; that a request was refused is no complaint."""
        entries = [event["entry"] for event in self.happened("Log.entryAdded")]
        thrown = [event["exceptionDetails"]["text"] for event in self.happened("Runtime.exceptionThrown")]
        said = [str(event["args"]) for event in self.happened("Runtime.consoleAPICalled")]
        return thrown + said + [entry["text"] for entry in entries if entry["source"] != "network"]

    def forget(self) -> None:
        """What happened so far was meant to."""
        self._browser.events[self._session].clear()

    async def _look(self, expression: str) -> bool:
        try:
            return bool(await self.evaluate(expression))
        except RuntimeError:  # the document it was asked of has gone
            return False


@asynccontextmanager
async def new_page(browser: Browser, language: str = "en-US") -> AsyncIterator[Page]:
    """A tab in a context of its own, which ends with it."""
    context = (await browser.send("Target.createBrowserContext"))["browserContextId"]
    target = (await browser.send("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
    session = (await browser.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    page = Page(browser, session)
    for domain in WATCHED:
        await page.send(f"{domain}.enable")
    agent = await browser.send("Browser.getVersion")
    await page.send("Emulation.setUserAgentOverride", userAgent=agent["userAgent"], acceptLanguage=language)
    await page.send("Emulation.setFocusEmulationEnabled", enabled=True)
    try:
        yield page
    finally:
        await browser.send("Target.disposeBrowserContext", browserContextId=context)
