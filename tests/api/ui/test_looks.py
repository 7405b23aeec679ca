"""The page fits a phone, leaves readers where they are, follows the system's theme, and speaks two languages."""

import re

import pytest

from service.api.ui import FOLDER
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.support.browser import Browser
from tests.support.page import Page, new_page

WIDE = "\n".join(
    [
        "W" * 400,
        "你好" * 200,
        "مرحبا بالعالم " * 20,
        "https://example.org/" + "a/" * 200,
        "```sh",
        "curl " + "x" * 400,
        "```",
    ]
)
NARROW = 360
TEXT_ON = {
    "ink": ("glaze", "panel", "alarm-wash", "wash"),
    "soft": ("glaze", "panel", "alarm-wash"),
    "cobalt": ("glaze", "wash"),
    "on-cobalt": ("cobalt",),
    "alarm": ("glaze",),
    "wait": ("glaze",),
}
LEAST_CONTRAST = 4.5
"""WCAG AA, for text of ordinary size."""


def themes() -> list[dict[str, str]]:
    day, night = (FOLDER / "theme.css").read_text().split("@media", 1)
    return [dict(re.findall(r"--([\w-]+): (#\w{6});", text)) for text in (day, night)]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", themes(), ids=["day", "night"])
def test_all_text_has_contrast(theme: dict[str, str]) -> None:
    for text, grounds in TEXT_ON.items():
        for ground in grounds:
            dark, light = sorted((luminance(theme[text]), luminance(theme[ground])))
            assert (light + 0.05) / (dark + 0.05) >= LEAST_CONTRAST, (text, ground)


async def test_nothing_is_wider_than_a_phone(page: Page, service: Service) -> None:
    await page.resize(NARROW)
    await page.open(f"{service.running.url}/ui")
    await page.ask(WIDE)
    await page.until_text("Answer again")
    await page.click("Settings")
    await page.until("document.querySelector('#setting-seed')")
    assert await page.evaluate("document.documentElement.scrollWidth") <= NARROW
    inside = "[...document.querySelectorAll('button, input, textarea, p, pre')].filter(e => e.checkVisibility())"
    assert await page.evaluate(f"{inside}.every(e => e.getBoundingClientRect().right <= {NARROW})")
    assert await page.evaluate("getComputedStyle([...document.querySelectorAll('.answer p')].at(-1)).direction")


async def test_the_newest_line_is_followed_until_the_reader_scrolls_up(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    await page.resize(800, 400)
    await page.open(f"{service.running.url}/ui")
    await page.ask("line\n" * 60)
    await page.until("document.querySelector('.answer').offsetHeight > 500")
    await page.until("scrollY + innerHeight > document.documentElement.scrollHeight - 60")
    await page.evaluate("scrollBy(0, -300)")
    await page.until("!document.querySelector('#jump').hidden")
    place = await page.evaluate(seen := "document.querySelector('.answer').getBoundingClientRect().top")
    await page.until_text("Answer again")
    assert await page.evaluate(seen) == pytest.approx(place, abs=1)
    await page.click("To the newest")
    await page.until("scrollY + innerHeight >= document.documentElement.scrollHeight - 1")


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_theme_is_the_systems(page: Page, service: Service, theme: str) -> None:
    wanted = [{"name": "prefers-color-scheme", "value": theme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    await page.send("Emulation.setEmulatedMedia", features=wanted)
    await page.open(f"{service.running.url}/ui")
    red, green, blue = re.findall(r"\d+", await page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    assert (int(red) + int(green) + int(blue) > 380) == (theme == "light")


async def test_it_speaks_chinese_to_who_reads_chinese(browser: Browser, service: Service) -> None:
    async with new_page(browser, "zh-CN") as page:
        await page.open(f"{service.running.url}/ui")
        await page.until_text("就绪", "#status")
        assert await page.evaluate("document.documentElement.lang") == "zh-CN"
        assert await page.text("#send span") == "发送"
        assert await page.evaluate("document.querySelector('#input').ariaLabel") == "您的问题"


async def test_it_is_in_english_and_says_so(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    assert await page.evaluate("document.documentElement.lang") == "en"
    controls = "[...document.querySelectorAll('button, input, textarea')]"
    named = "control.labels?.length || control.ariaLabel || control.textContent.trim()"
    assert await page.evaluate(f"{controls}.every(control => {named})")
