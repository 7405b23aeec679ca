"""The page's modules by themselves, in the browser they are for."""

import json
from typing import Any

import pytest

from tests.api.conftest import Service
from tests.support.page import Page

EVENTS = (
    "\ufeffdata: 你好 😀\n\n: a comment\r\nevent: error\r\ndata: {}\r\n\r\n"
    "data: one\rdata:two\r\r\nid: 7\nretry\n\ndata:\n\ndata: never ended"
).encode()
READ = [["", "你好 😀"], ["error", "{}"], ["", "one\ntwo"], ["", ""]]

BLOCKS = {
    "a\nb\n\n\nc": [["text", "a\nb"], ["text", "c"]],
    "a\n```js\nx\n\ny\n```\nb": [["text", "a"], ["code", "x\n\ny"], ["text", "b"]],
    "```\nstill open": [["code", "still open"]],
    "````\n```\ninner\n```\n````": [["code", "```\ninner\n```"]],
    "1. so\n   ~~~\n   x\n     y\n   ~~~": [["text", "1. so"], ["code", "x\n  y"]],
    "a ``` b\n```not``` a fence": [["text", "a ``` b\n```not``` a fence"]],
    "": [],
}

FINAL = '{"delta":"","response":"Hi","finish_reason":"stop","usage":{"completion_tokens":2}}'
ANSWERS = {
    f'data: {{"delta":"Hi"}}\n\ndata: {FINAL}\n\ndata: [DONE]\n\n': "Hi, then stop of 2",
    'data: {"delta":"Hi"}\n\n': "The connection ended before the answer did.",
    'data: {"delta":"Hi"}\n\ndata: [DONE]\n\n': "The connection ended before the answer did.",
    'event: error\ndata: {"detail":"the engine broke"}\n\ndata: [DONE]\n\n': "the engine broke",
    "data: <html>\n\n": "Something on the way garbled the answer.",
}


@pytest.fixture
async def opened(page: Page, service: Service) -> Page:
    await page.open(f"{service.running.url}/ui")
    await page.evaluate("window.load = (name) => import(new URL(`ui/${name}.js`, location))")
    await page.evaluate("""window.streamOf = (chunks) => new ReadableStream({ start(out) {
        for (const chunk of chunks) out.enqueue(new Uint8Array(chunk));
        out.close();
    }})""")
    return page


async def call(page: Page, function: str, *arguments: Any) -> Any:
    return await page.evaluate(f"({function})(...{json.dumps(arguments)})")


async def test_events_are_the_same_wherever_their_bytes_are_cut(opened: Page) -> None:
    read = """async (bytes) => {
        const { readEvents } = await load("sse");
        const cuts = bytes.map((_, at) => [bytes.slice(0, at), bytes.slice(at)]);
        const found = [];
        for (const chunks of [...cuts, bytes.map((byte) => [byte])]) {
            const events = [];
            for await (const { name, data } of readEvents(streamOf(chunks))) events.push([name, data]);
            found.push(JSON.stringify(events));
        }
        return [...new Set(found)];
    }"""
    (only,) = await call(opened, read, list(EVENTS))
    assert json.loads(only) == READ


async def test_an_answer_is_whole_or_says_why_not(opened: Page) -> None:
    read = """async (bytes) => {
        const { readAnswer } = await load("service");
        try {
            const got = [];
            for await (const piece of readAnswer(streamOf([bytes]))) got.push(piece);
            return `${got[0].delta}, then ${got[1].finish} of ${got[1].tokens}`;
        } catch (problem) {
            return problem.detail;
        }
    }"""
    for body, said in ANSWERS.items():
        assert await call(opened, read, list(body.encode())) == said


async def test_text_is_cut_into_code_and_paragraphs(opened: Page) -> None:
    cut = """async (text) => (await load("blocks")).blocksOf(text).map(({ kind, text }) => [kind, text])"""
    for text, blocks in BLOCKS.items():
        assert await call(opened, cut, text) == blocks


async def test_growing_shows_what_showing_at_once_shows(opened: Page) -> None:
    text = "One\n\n```py\nprint('<b>')\n```\n\n~~~\nx\n~~~\nlast `line`"
    grown = """async (text) => {
        const { AnswerText } = await load("answer_text");
        const [slow, fast] = [document.createElement("div"), document.createElement("div")];
        const view = new AnswerText(slow);
        for (let end = 0; end <= text.length; end++) view.show(text.slice(0, end));
        new AnswerText(fast).show(text);
        return [slow.outerHTML === fast.outerHTML, slow.textContent];
    }"""
    same, shown = await call(opened, grown, text)
    assert same
    assert "print('<b>')" in shown


async def test_leaving_out_the_oldest_ends_with_the_question_alone(opened: Page) -> None:
    halve = """async () => {
        const { Conversation } = await load("conversation");
        const chat = new Conversation();
        for (const at of [1, 2, 3, 4, 5]) {
            chat.add(`q${at}`);
            chat.last.answer = `a${at}`;
        }
        chat.add("now");
        const kept = [];
        while (chat.canLeaveOut) {
            chat.leaveOutOldest();
            kept.push(chat.history().length / 2);
        }
        return kept;
    }"""
    assert await call(opened, halve) == [2, 1, 0]
