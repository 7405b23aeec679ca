"""Several answers to one conversation, given side by side."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from service.chat.generation import Chat
from service.chat.pieces import Delta, Done, Pieces
from service.chat.preparation import Shared
from service.engine.base import FinishReason
from service.log import note, request_notes

AHEAD = 8
"""Pieces that are read before they are asked for: a client that reads slowly holds up its answers."""

WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


def variants(chat: Chat, count: int, shared: Shared | None = None) -> list[Chat]:
    """`chat`, as often as it is to be answered, each time with another seed. What they have in common is worked out
    once; `shared`: with chats of other prompts, too."""
    shared = shared or (Shared() if count > 1 else None)
    seeds = [(chat.sampling.seed + choice) % (1 << 63) for choice in range(count)]
    drawn = [msgspec.structs.replace(chat.sampling, seed=seed) for seed in seeds]
    return [replace(chat, sampling=sampling, shared=shared) for sampling in drawn]


def together(answers: Sequence[Pieces]) -> Pieces:
    """One answer as it is, several side by side."""
    return side_by_side(answers) if len(answers) > 1 else answers[0]


async def side_by_side(answers: Sequence[Pieces]) -> Pieces:
    """The pieces of all answers as they come, numbered by their `choice`. Closing it ends them all, and so does an
    error of one, which is raised."""
    come: asyncio.Queue[Delta | Done | _Failed] = asyncio.Queue(AHEAD)
    readers = [_Reader(choice, answer) for choice, answer in enumerate(answers)]
    tasks = [asyncio.create_task(reader.read(come)) for reader in readers]
    told = 0  # whose end the log tells
    try:
        open_answers = len(tasks)
        while open_answers:
            piece = await come.get()
            if isinstance(piece, _Failed):
                told = piece.choice
                raise piece.error
            open_answers -= isinstance(piece, Done)
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        note(**_summed_up(readers[told].notes, [reader.notes for reader in readers]))


@dataclass(frozen=True, slots=True)
class _Failed:
    """The end of an answer that is none."""

    choice: int
    error: Exception


@dataclass(slots=True)
class _Reader:
    """Reads one answer. What is noted of it for the log is kept apart: of several, each would overwrite the others'."""

    choice: int
    answer: Pieces
    notes: dict[str, Any] = field(default_factory=dict)

    async def read(self, come: asyncio.Queue[Delta | Done | _Failed]) -> None:
        request_notes.set(self.notes)  # a task's own
        try:
            async with aclosing(self.answer):
                async for piece in self.answer:
                    await come.put(replace(piece, choice=self.choice))
        except Exception as error:
            await come.put(_Failed(self.choice, error))


def _summed_up(told: dict[str, Any], every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one line says of several answers: of one that is not whole, `told` before any other; and the tokens of
    all."""
    broken = (each for each in (told, *every) if each.get("outcome") not in WHOLE)
    tokens = sum(each.get("completion_tokens", 0) for each in every)
    return {**next(broken, told), "choices": len(every), "completion_tokens": tokens}
