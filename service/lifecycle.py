"""Where the service is in its life, and who may still be served: the one answer behind `GET /` and admission."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from service.errors import NotReady

RETRY_AFTER_SECONDS = 5


class State(StrEnum):
    """The service's states, in the order in which they come."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """State, reason and the number of answers being given. Lives on one event loop; not thread-safe."""

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason = "the process is starting"
        self.active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    def move(self, state: State, reason: str = "") -> None:
        """Enter a state. Draining is final: a model that becomes ready while the pod goes away stays draining."""
        if self.state is not State.DRAINING:
            self.state, self.reason = state, reason

    def begin_drain(self) -> None:
        """Refuse new requests from now on; running ones go on."""
        self.move(State.DRAINING, "the server is shutting down")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count one answer in; raises NotReady unless the service is ready."""
        if not self.ready:
            raise NotReady(f"{self.state.value}: {self.reason}", retry_after=RETRY_AFTER_SECONDS)
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no answer is being given; False when `timeout` seconds passed first."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
