"""Everything by keyboard alone, input methods included; and thinking, which excludes a system prompt."""

import pytest

from tests.api.conftest import Service
from tests.support.page import SHIFT, Page


@pytest.fixture
async def opened(page: Page, service: Service) -> Page:
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Ready", "#status")
    return page


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.id"))


async def test_enter_sends_and_shift_enter_breaks_the_line(opened: Page) -> None:
    assert await focused(opened) == "input"
    await opened.type("one")
    await opened.press("Enter", SHIFT)
    await opened.type("two")
    assert await opened.value() == "one\ntwo"
    await opened.press("Enter")
    await opened.until_text("one\ntwo", ".answer .text")
    assert await focused(opened) == "input"


async def test_an_enter_that_ends_a_composition_does_not_send(opened: Page) -> None:
    await opened.send("Input.imeSetComposition", text="nihao", selectionStart=5, selectionEnd=5)
    await opened.press_while_composing("Enter")
    await opened.press_while_composing("ArrowUp")
    assert await opened.text("#turns") == ""
    await opened.type("你好")
    late = "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true, cancelable: true})"
    assert await opened.evaluate(f"document.querySelector('#input').dispatchEvent({late})"), "as Safari tells it"
    assert await opened.text("#turns") == ""
    assert await opened.value() == "你好"
    await opened.press("Enter")
    await opened.until_text("你好", ".answer .text")


async def test_nothing_is_sent_of_spaces_alone(opened: Page) -> None:
    await opened.ask("  ")
    assert await opened.text("#turns") == ""


async def test_the_last_question_is_edited_or_left(opened: Page) -> None:
    await opened.ask("capital of Farnce")
    await opened.until_text("Answer again")
    await opened.press("ArrowUp")
    assert await opened.value() == "capital of Farnce"
    await opened.press("Escape")
    assert await opened.value() == ""
    await opened.press("ArrowUp")
    await opened.evaluate("document.querySelector('#input').select()")
    await opened.ask("capital of France")
    await opened.until_text("capital of France", ".answer .text")
    assert "Farnce" not in await opened.text("#turns")
    assert await opened.evaluate("document.querySelectorAll('.question').length") == 1


async def test_tab_leads_through_the_tools_and_where_it_is_shows(opened: Page) -> None:
    visited = []
    for _ in range(3):
        await opened.press("Tab")
        visited.append(await focused(opened))
        assert await opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert visited == ["thinking", "settings-toggle", "send"]


async def test_thinking_and_a_system_prompt_exclude_each_other_and_the_page_says_why(opened: Page) -> None:
    await opened.click("Settings")
    assert await focused(opened) == "system"
    await opened.type("Speak like a pirate.")
    await opened.press("Escape")
    assert "Settings · 1" in await opened.text("#composer")
    await opened.ask("hello")
    await opened.until_text("Speak like a pirate.", ".answer .text")
    await opened.press("Tab")
    await opened.press(" ")
    assert await opened.evaluate(
        "document.querySelector('#thinking').checked && document.querySelector('#system').disabled"
    )
    await opened.until_text("Thinking has a system prompt of its own")
    await opened.press("Tab", SHIFT)
    await opened.ask("goodbye")
    await opened.until_text("mathematical", "#turns > li:last-child .answer .text")
    answer = await opened.text("#turns > li:last-child .answer .text")
    assert not answer.startswith("system\nSpeak like a pirate.")
    await opened.reload()
    assert await opened.evaluate("document.querySelector('#thinking').checked")


async def test_a_screen_reader_is_told_whole_paragraphs_and_the_end(opened: Page) -> None:
    heard = "window.heard = []; new MutationObserver(() => heard.push(announcer.textContent))"
    await opened.evaluate(f"{heard}.observe(announcer, {{childList: true}})")
    await opened.ask("one\n\ntwo\n\nthree")
    await opened.until_text("Answer again")
    told = await opened.evaluate("heard.join('|')")
    assert "two" in told
    assert "tokens" in told
    assert await opened.evaluate("heard.length") < 6
    await opened.reload()
    await opened.until_text("Answer again")
    assert await opened.evaluate("announcer.textContent") == "", "what was read out before a reload"
