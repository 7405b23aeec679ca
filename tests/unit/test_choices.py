"""Several answers side by side: all pieces of each in their order, one end for all, and none that goes on unread."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from service.chat.choices import AHEAD, side_by_side, variants
from service.chat.generation import Chat
from service.chat.pieces import Done, Pieces, TextDelta
from service.chat.stopwatch import Counts
from service.engine.base import SamplingParams
from service.errors import QueueFull
from service.log import note, request_notes
from tests.support.server import PATIENCE

COUNTS = Counts(1, 0, 1)


class Source:
    """An answer of so many pieces; what became of it. `fails`: instead of its end; `waits`: before each piece."""

    def __init__(self, pieces: int, *, fails: bool = False, waits: asyncio.Event | None = None) -> None:
        self._pieces = pieces
        self._fails = fails
        self._waits = waits
        self.given = 0
        self.state = "unread"

    async def stream(self) -> Pieces:
        self.state = "open"
        outcome = "cancelled"
        try:
            for number in range(self._pieces):
                if self._waits:
                    await self._waits.wait()
                self.given += 1
                yield TextDelta(f"{number} ", COUNTS, [])
                await asyncio.sleep(0)
            if self._fails:
                outcome = "rejected"
                raise QueueFull("too many", retry_after=3)
            outcome = "stop"
            yield Done("stop", COUNTS, [])
        finally:
            self.state = "closed"
            note(outcome=outcome, completion_tokens=self.given)


@pytest.fixture(autouse=True)
async def in_time() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE):
        yield


async def read(*sources: Source) -> list[TextDelta | Done]:
    return [piece async for piece in side_by_side([source.stream() for source in sources])]


async def test_each_answer_comes_whole_in_its_order_and_ends_once() -> None:
    sources = [Source(pieces) for pieces in (5, 1, 0, 30)]
    pieces = await read(*sources)
    for choice, source in enumerate(sources):
        *texts, done = [piece for piece in pieces if piece.choice == choice]
        assert [piece.text for piece in texts if isinstance(piece, TextDelta)] == [f"{n} " for n in range(source.given)]
        assert isinstance(done, Done)
        assert source.state == "closed"
    assert len(pieces) == 5 + 1 + 30 + 4


async def test_a_slow_answer_holds_up_no_other() -> None:
    held = asyncio.Event()
    slow, fast = Source(3, waits=held), Source(3)
    async with aclosing(side_by_side([slow.stream(), fast.stream()])) as pieces:
        first = [await anext(pieces) for _ in range(4)]
        assert {piece.choice for piece in first} == {1}
        held.set()
        assert [piece.choice async for piece in pieces] == [0] * 4


async def test_whoever_reads_slowly_holds_up_the_answers() -> None:
    source = Source(100)
    async with aclosing(side_by_side([source.stream()])) as pieces:
        await anext(pieces)
        for _ in range(200):
            await asyncio.sleep(0)
        assert source.given <= AHEAD + 3


async def test_closing_it_ends_every_answer() -> None:
    never = asyncio.Event()
    sources = [Source(3), Source(3, waits=never), Source(100)]
    pieces = side_by_side([source.stream() for source in sources])
    await anext(pieces)
    await pieces.aclose()
    assert [source.state for source in sources] == ["closed"] * 3
    assert len(asyncio.all_tasks()) == 1, "and its reader"


async def test_a_cancelled_reader_ends_every_answer() -> None:
    never = asyncio.Event()
    sources = [Source(3, waits=never), Source(3, waits=never)]
    reading = asyncio.create_task(read(*sources))
    while "open" not in {source.state for source in sources}:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert [source.state for source in sources] == ["closed"] * 2


async def test_an_error_of_one_is_raised_and_ends_the_others() -> None:
    never = asyncio.Event()
    sources = [Source(3, waits=never), Source(2, fails=True)]
    with pytest.raises(QueueFull):
        await read(*sources)
    assert [source.state for source in sources] == ["closed"] * 2


async def noted(*sources: Source) -> dict[str, object]:
    notes: dict[str, object] = {}
    token = request_notes.set(notes)
    try:
        await read(*sources)
    except QueueFull:
        pass
    finally:
        request_notes.reset(token)
    return notes


async def test_the_log_tells_of_all_tokens_and_of_the_answer_that_failed() -> None:
    assert await noted(Source(5), Source(7)) == {"outcome": "stop", "completion_tokens": 12, "choices": 2}
    failed = await noted(Source(3, waits=asyncio.Event()), Source(2, fails=True))
    assert failed == {"outcome": "rejected", "completion_tokens": 2, "choices": 2}


async def test_the_log_tells_of_answers_that_were_left() -> None:
    notes: dict[str, object] = {}
    token = request_notes.set(notes)
    sources = [Source(0), Source(3, waits=asyncio.Event())]
    pieces = side_by_side([source.stream() for source in sources])
    await anext(pieces)
    await pieces.aclose()
    request_notes.reset(token)
    assert notes == {"outcome": "cancelled", "completion_tokens": 0, "choices": 2}


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_each_answer_has_a_seed_of_its_own_and_the_first_one_the_clients(seed: int) -> None:
    chat = Chat([], SamplingParams(seed=seed, temperature=0.5), max_new_tokens=3)
    made = variants(chat, 3)
    assert [each.sampling.seed for each in made] == [seed, (seed + 1) % 2**63, (seed + 2) % 2**63]
    assert {each.sampling.temperature for each in made} == {0.5}
    assert variants(chat, 1) == [chat]
