"""The open requests of one event loop: each has a queue of events, fed by the engine, read by whoever submitted."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

from service.engine.base import EngineStatus, Event, Finish, FinishReason, GenerationRequest
from service.lifecycle import RETRY_AFTER_SECONDS

DEADLINE_GRACE = 2.0
"""Seconds past its deadline after which a request is ended here, should the engine not have done so itself."""


def refusal(request: GenerationRequest, status: EngineStatus) -> Finish:
    """The end of a request that came while the engine was not ready; it never had it."""
    why = f": {status.reason}" if status.reason else ""
    return Finish(request.id, FinishReason.ERROR, f"the engine is {status.state.value}{why}", RETRY_AFTER_SECONDS)


class _Stream:
    """Events of one request that were not read yet; bounded by the request's max_new_tokens.

    A queue for one reader, at three quarters of what asyncio's costs: every token of every stream passes here.
    """

    __slots__ = ("_events", "_waiter", "deadline")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event:
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()


class Streams:
    """Hands each event to the request it belongs to. Lives on one event loop; not thread-safe.

    `submit` and `cancel` pass a request and an id on to the engine, without waiting; `submit` returns the request's
    Finish when the engine cannot take it now.
    """

    def __init__(self, submit: Callable[[GenerationRequest], Finish | None], cancel: Callable[[str], None]) -> None:
        self._submit = submit
        self._cancel = cancel
        self._open: dict[str, _Stream] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def follow(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Submit a request and yield its events; leaving before its Finish cancels it."""
        if request.id in self._open:
            yield Finish(request.id, FinishReason.ERROR, f"a request with the id {request.id!r} is still open")
            return
        stream = self._open[request.id] = _Stream(request.deadline)
        try:
            if refused := self._submit(request):
                self.deliver([refused])
            while True:
                event = await stream.get()
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            self._leave(request.id, stream)

    def deliver(self, events: Iterable[Event]) -> None:
        """Queue events for their readers; those of requests nobody reads any more are dropped."""
        for event in events:
            stream = self._open.get(event.id)
            if stream is not None:
                stream.put(event)
                if isinstance(event, Finish):
                    del self._open[event.id]

    def fail_all(self, reason: str) -> None:
        """End every open request because the engine is gone."""
        self.deliver([Finish(id_, FinishReason.ERROR, reason) for id_ in self._open])

    def expire(self, now: float) -> None:
        """End requests the engine should have ended long ago, so that a stuck engine leaves nobody waiting."""
        late = [id_ for id_, stream in self._open.items() if stream.deadline + DEADLINE_GRACE < now]
        for id_ in late:
            self.deliver([Finish(id_, FinishReason.DEADLINE, "the engine makes no progress")])
            self._cancel(id_)

    def _leave(self, request_id: str, stream: _Stream) -> None:
        # Not merely `in`: after this request's Finish its id may have been used again.
        if self._open.get(request_id) is stream:
            del self._open[request_id]
            self._cancel(request_id)
