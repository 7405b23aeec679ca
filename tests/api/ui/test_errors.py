"""What goes wrong: said with the way out of it, and nothing that was written is lost."""

import asyncio
import json
from pathlib import Path

import pytest

from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.support.page import Page
from tests.support.proxy import run_proxy
from tests.support.server import until

A_MINUTE_LATER = "(() => { const now = Date.now; Date.now = () => now() + 60_000 })()"


@pytest.mark.parametrize("wrong", ["wrong", "ключ"], ids=["unknown", "no header can carry it"])
async def test_a_key_is_asked_for_and_the_question_then_answered(
    page: Page, start: Start, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    service = await start(api_keys_file=tmp_path / "keys")
    await page.open(f"{service.running.url}/ui")
    await page.ask("secret question")
    await page.until_text("The service asks for an API key.", ".trouble")
    await page.ask(wrong)
    await page.until_text("does not know this API key", ".trouble")
    await page.ask("alpha")
    await page.until_text("secret question", ".answer .text")
    kept = await page.evaluate("[Object.values(localStorage).length, JSON.stringify(sessionStorage), document.cookie]")
    assert kept[0] == 0
    assert "alpha" in kept[1]
    assert kept[2] == ""


async def test_a_full_queue_is_waited_for_and_the_question_asked_again(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05), max_running=1, max_queue=0)
    await page.open(f"{service.running.url}/ui")
    other = asyncio.create_task(service.ask(prompt="x" * 2000))
    await until(lambda: service.engine.status.stats.running == 1)
    await page.ask("patience")
    await page.until_text("as many as max_queue", ".trouble")
    await page.until_text("Asks again in ", ".trouble")
    other.cancel()
    await until(lambda: service.engine.status.stats.running == 0)
    await page.evaluate(A_MINUTE_LATER)
    await page.until_text("patience", ".answer .text")
    assert await page.text(".trouble") == ""


async def test_escape_ends_the_wait_and_the_question_stays(page: Page, start: Start) -> None:
    service = await start(loads=False)
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Loading: ", "#status")
    await page.ask("too early")
    await page.until_text("Asks again in ", ".trouble")
    await page.press("Escape")
    assert "Asks again" not in await page.text(".trouble")
    await page.evaluate(A_MINUTE_LATER)
    service.engine.finish_loading()
    await until(lambda: service.running.lifecycle.ready)
    await page.click("Ask now")
    await page.until_text("too early", ".answer .text")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await page.until_text("Ready", "#status")


async def test_the_header_says_which_model_answers_and_that_it_leaves(page: Page, start: Start) -> None:
    service = await start(model_id="internlm/internlm3-8b-instruct")
    await page.open(f"{service.running.url}/ui")
    await page.until_text("internlm3-8b-instruct", "header")
    await page.until_text("Ready", "#status")
    service.running.lifecycle.begin_drain()
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await page.until_text("Shutting down: the server is shutting down", "#status")


async def test_slower_paths_are_named(page: Page, service: Service) -> None:
    info = service.engine.status.info
    assert info is not None
    info.degraded.append("gemv: cuBLAS instead")
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Slower than it could be", "header")
    assert "gemv: cuBLAS instead" in await page.evaluate("document.querySelector('#degraded').textContent")


async def test_a_body_too_large_is_shortened(page: Page, start: Start) -> None:
    service = await start(max_body_bytes=2048)
    await page.open(f"{service.running.url}/ui")
    await page.ask("a" * 500)
    await page.until_text("Answer again")
    await page.ask("b" * 1000)
    await page.until_text("more than 2048 bytes", ".trouble")
    await page.click("Leave out the oldest turns and ask again")
    await page.until_text("b" * 500, "#turns > li:last-child .answer .text")


async def test_a_hidden_tab_asks_nothing(page: Page, service: Service) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Ready", "#status")
    before = page.requested()
    await page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await asyncio.sleep(0.1)
    assert page.requested() == before


async def test_a_conversation_that_is_too_long_is_shortened_or_begun_anew(page: Page, start: Start) -> None:
    service = await start(max_context=256)
    await page.open(f"{service.running.url}/ui")
    await page.ask("f" * 80)
    await page.until_text("Answer again")
    await page.ask("s" * 80)
    await page.until_text("Leave out the oldest turns", ".trouble")
    assert "length of 256 tokens" in await page.text(".trouble")
    await page.click("Leave out the oldest turns and ask again")
    await page.until_text("What is above is not sent any more.")
    await page.until_text("s" * 80, "#turns > li:last-child .answer .text")
    assert "ffff" not in await page.text("#turns > li:last-child .answer .text")
    await page.ask("t" * 150)
    await page.click("Ask it in a new chat")
    await page.until_text("tttt", ".answer .text")
    assert "ffff" not in await page.text("#turns")
    await page.click("Back to the last chat")
    await page.until_text("ffff", "#turns")
    assert "tttt" not in await page.text("#turns")
    await page.click("Back to the last chat")
    await page.until_text("tttt", ".answer .text")


async def test_an_answer_whose_engine_breaks_keeps_what_came(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01, crash_at_step=20))
    await page.open(f"{service.running.url}/ui")
    await page.ask("break, please")
    await page.until_text("the script says: crash at step 20", ".trouble")
    assert "You are" in await page.text(".answer .text")
    assert "Ask again" in await page.text(".trouble")
    assert "Asks again in" not in await page.text(".trouble"), "it might break the next engine as well"


async def test_a_cut_connection_keeps_what_came_and_says_so(page: Page, start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    async with run_proxy(service.running.port, cut_at=b'"delta":"h') as proxy:
        await page.open(f"{proxy.url}/ui")
        await page.ask("cut here")
        await page.until_text("or the connection broke", ".trouble")
        assert "You are a " in await page.text(".answer .text")
        await page.click("Ask again")
        await page.until_text("cut here", ".answer .text")
        assert await page.text(".trouble") == ""


async def test_a_service_that_is_gone_is_not_reachable_and_the_question_stays(page: Page, start: Start) -> None:
    service = await start()
    async with run_proxy(service.running.port) as proxy:
        await page.open(f"{proxy.url}/ui")
        await page.until_text("Ready", "#status")
    await page.ask("anybody?")
    await page.until_text("The service cannot be reached", ".trouble")
    await page.until_text("Not reachable", "#status")
    assert "anybody?" in await page.text(".question")


async def test_it_works_behind_a_prefix_that_a_proxy_takes_away(page: Page, service: Service) -> None:
    async with run_proxy(service.running.port, prefix="/team/chat") as proxy:
        await page.open(f"{proxy.url}/ui/")
        await page.until_text("Ready", "#status")
        await page.ask("behind")
        await page.until_text("behind", ".answer .text")
        assert all(url.startswith(proxy.url) for url in page.requested())


@pytest.mark.parametrize(("value", "complaint"), [("0", "0 itself is not allowed."), ("2", "1")])
async def test_a_setting_the_service_would_refuse_is_not_sent(
    page: Page, service: Service, value: str, complaint: str
) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.click("Settings")
    await page.until("document.querySelector('#setting-top_p')")
    await page.evaluate("document.querySelector('#setting-top_p').focus()")
    await page.type(value)
    await page.evaluate("document.querySelector('#input').focus()")
    await page.ask("unsent")
    assert await page.evaluate("document.activeElement.id") == "setting-top_p"
    assert complaint in await page.evaluate("document.activeElement.validationMessage")
    assert await page.value() == "unsent"


FOREIGN = {
    '{"detail": "bad gateway", "field": null}': "bad gateway",
    '{"detail": [{"msg": "no route"}], "field": 5}': "no route",
    '"a text"': "HTTP 502",
    "null": "HTTP 502",
    "<html>": "HTTP 502",
}


@pytest.mark.parametrize(("body", "shown"), FOREIGN.items(), ids=FOREIGN.keys())
async def test_what_a_proxy_answers_in_its_own_form_is_shown(
    page: Page, service: Service, body: str, shown: str
) -> None:
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Ready", "#status")
    await page.evaluate(f"fetch = async () => new Response({json.dumps(body)}, {{status: 502}})")
    await page.ask("hello")
    await page.until_text(shown, ".trouble")
    await page.until_text("Ask again", ".trouble")
    assert await page.evaluate("document.querySelector('#stop').hidden")


async def test_a_question_that_is_being_edited_is_not_asked_again_by_itself(page: Page, start: Start) -> None:
    service = await start()
    await page.open(f"{service.running.url}/ui")
    await page.until_text("Ready", "#status")
    service.running.lifecycle.begin_drain()
    await page.ask("hello")
    await page.until_text("Asks again in", ".trouble")
    await page.click("Edit")
    await page.until("!document.querySelector('.countdown')")
    assert await page.value() == "hello"
