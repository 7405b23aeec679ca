"""Asking and being answered: as it comes, stopped, asked again, kept, forgotten."""

import asyncio
import re

from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.api.test_failures import samples
from tests.support.page import ALT, Page
from tests.support.server import until

HOSTILE = "<img src=x onerror='window.hacked=1'></textarea></script><script>window.hacked=1</script>"


async def conversation(page: Page) -> str:
    return await page.text("#turns")


async def test_an_answer_streams_in_and_its_facts_follow(page: Page, start: Start) -> None:
    service = await start(FakeScript(hang_at_step=20))
    await page.open(f"{service.running.url}/ui")
    await page.ask("hello there")
    await page.until_text("You are", ".answer .text")
    assert "Copy" not in await conversation(page)
    assert await page.evaluate("!document.querySelector('#stop').hidden && document.querySelector('#send').hidden")
    await asyncio.sleep(0.3)  # what comes within 0.25 s came at once, and has no rate
    service.engine._core.release()  # type: ignore[union-attr]
    await page.until_text("Answer again")
    assert "hello there" in await page.text(".answer .text")
    facts = await page.text(".answer .facts")
    assert re.fullmatch(r"\d+ tokens · \d+(\.\d)? tokens/s · first after \d+(\.\d+)? s", facts)
    assert await page.value() == ""


async def test_stop_cancels_in_the_engine_and_what_came_is_told_next_time(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.03))
    await page.open(f"{service.running.url}/ui")
    await page.ask("begin " * 20)
    await page.until_text("You are", ".answer .text")
    await page.press("Escape")
    await page.until_text("Stopped.")
    await until(lambda: service.engine.status.stats.running == 0)
    await until(lambda: samples(service).get(("internlm_requests_total", "cancelled"), 0) == 1)
    assert "begin begin" not in await page.text(".answer .text")
    await page.click("New chat")


async def test_a_stopped_answer_and_none_at_all_leave_a_conversation_that_goes_on(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    told = await page.evaluate("""(async () => {
        const { Conversation } = await import(new URL("ui/conversation.js", location));
        const chat = new Conversation({ turns: [
            { question: "one", answer: "half an ans", end: { kind: "stopped" } },
            { question: "unanswered", answer: "", end: { kind: "failed", problem: {} } },
            { question: "esc\\u001b[1m \\ud800", answer: "a\\u0000b", end: null },
        ]});
        chat.add("next");
        return chat.history();
    })()""")
    assert [turn["role"] for turn in told] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in told] == ["one", "half an ans", "esc[1m \ufffd", "ab"]
    answer = await service.ask(history=told)
    assert answer.status_code == 200


async def test_the_next_question_carries_the_conversation(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.ask("first question")
    await page.until_text("Answer again")
    await page.ask("second question")
    await page.until("document.querySelectorAll('.answer .text').length === 2")
    await page.until_text("second question", "#turns > li:last-child .answer .text")
    assert "first question" in await page.text("#turns > li:last-child .answer .text")


async def test_an_answer_can_be_asked_for_again(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.ask("once more")
    await page.click("Answer again")
    await until(lambda: samples(service).get(("internlm_requests_total", "stop"), 0) == 2)
    await page.until_text("Answer again")
    assert (await page.text(".answer .text")).count("once more") == 1


async def test_an_answer_that_was_cut_says_so_and_can_go_on(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.click("Settings")
    await page.until("document.querySelector('#setting-max_new_tokens')")
    await page.evaluate("document.querySelector('#setting-max_new_tokens').focus()")
    await page.type("5")
    await page.press("Escape")
    await page.ask("a long story")
    await page.until_text("Cut at 5 tokens")
    await page.click("Ask it to go on")
    await page.until_text("Go on.", "#turns > li:last-child .question")


async def test_hostile_text_is_text(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.ask(f"{HOSTILE}\n```<b>\n{HOSTILE}\n```\n")
    await page.until_text("Answer again")
    for selector in (".question .text", ".answer .text", ".answer pre"):
        assert HOSTILE in await page.evaluate(f"document.querySelector('{selector}').textContent")
    assert await page.evaluate("document.querySelectorAll('#turns :is(img, script, b)').length") == 0
    assert await page.evaluate("window.hacked") is None


async def test_the_browser_itself_refuses_markup_from_text(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    refused = "(() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } })()"
    assert await page.evaluate(refused)
    assert page.complaints() != []
    page.forget()


async def test_a_reload_keeps_the_conversation_and_the_draft_and_a_new_chat_clears_it(
    page: Page, service: Service
) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.ask("remember me")
    await page.until_text("Answer again")
    await page.type("half a thou")
    await page.reload()
    await page.until_text("Answer again")
    assert "remember me" in await page.text(".answer .text")
    assert await page.value() == "half a thou"
    await page.press("n", ALT)
    await page.until_text("Ask it anything.")
    assert await conversation(page) == ""
    await page.click("Back to the last chat")
    await page.until_text("remember me", "#turns")
    await page.press("n", ALT)
    await page.reload()
    await page.until_text("Ask it anything.")
    assert "remember me" not in await page.text()


async def test_a_reload_within_an_answer_keeps_what_came(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.03))
    await page.open(f"{service.running.url}/ui")
    await page.ask("question " * 20)
    await page.until_text("You are", ".answer .text")
    await page.reload()
    await page.until_text("Stopped.")
    assert "You are" in await page.text(".answer .text")
    await until(lambda: service.engine.status.stats.running == 0)


async def test_code_has_a_copy_button_and_what_it_copies_is_the_code(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    await page.ask("see\n```python\nprint(1)\n\nprint(2)\n```\nend")
    await page.until_text("Answer again")
    await page.click("Copy code")
    await page.until("window.copied === 'print(1)\\n\\nprint(2)'")
    await page.until_text("Copied")
