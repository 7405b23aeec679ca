"""A client that goes away must not cost GPU time: run work only as long as somebody waits for it."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")

LOOK_AGAIN_SECONDS = 0.5
"""A client that sends more before its answer (a next request, a stray line break) makes uvicorn stop reading, and so
miss that it leaves. Every new call of `receive` reads on."""


class ClientGoneError(Exception):
    """The client closed the connection, perhaps before all of its request was sent; nobody is left to answer."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves; then raises ClientGoneError.

    The request's body must have been read: the next ASGI message then is the disconnect.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    message = ""
    while message != "http.disconnect":
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                message = (await receive())["type"]
