"""Brings the model up and keeps readiness honest: ready only while the model has really answered."""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

from service.api.health import Identity
from service.chat.generation import Chat, Generation
from service.chat.templates import ChatTemplate, Message
from service.daemon_thread import in_daemon_thread
from service.delivery.local import LocalModel, find_model
from service.delivery.reporting.progress import show_progress
from service.engine.base import Engine, EngineConfig, EngineState, EngineStatus, SamplingParams
from service.errors import DeadlineExceeded, EngineFailed, NotReady, ServiceError
from service.lifecycle import RETRY_AFTER_SECONDS, Lifecycle, State
from service.metrics import Metrics
from service.settings import Settings
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
UNWIND_SECONDS = 2.0
"""How long a search for the model may clean up when it is given up: end pip, remove half a model, show the cursor."""
PROBE = Chat([Message("user", "Hello")], SamplingParams(temperature=0, top_k=0, top_p=1), max_new_tokens=1)

MakeEngine = Callable[[EngineConfig], Engine]


class _GivenUpError(Exception):
    """The server ends while its model is still being fetched."""


class Readiness:
    """Owns the engine. `run` is one task for the whole life of the server."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle, identity: Identity, make_engine: MakeEngine) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._identity = identity
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._generation: Generation | None = None
        self._ends = threading.Event()
        self.metrics = Metrics(self.status, lambda: lifecycle.ready)

    def status(self) -> EngineStatus:
        """The engine's latest snapshot; "starting" while there is none."""
        return self._engine.status if self._engine else EngineStatus(state=EngineState.STARTING)

    def generation(self) -> Generation:
        """The loaded model. Raises NotReady with the lifecycle's reason while there is none."""
        if self._generation is None:
            reason = f"{self._lifecycle.state.value}: {self._lifecycle.reason}"
            raise NotReady(reason, retry_after=RETRY_AFTER_SECONDS)
        return self._generation

    async def run(self) -> None:
        """Load, then watch. A failure that no restart can mend ends in state FAILED with its reason."""
        try:
            self._engine = await self._load()
            await self._watch(self._engine)
        except ServiceError as error:
            logger.error("cannot serve: %s", error.message)
            self._lifecycle.move(State.FAILED, error.message)
        except Exception as error:
            logger.exception("cannot serve")
            self._lifecycle.move(State.FAILED, f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        if self._engine is not None:
            await self._engine.stop()

    async def _load(self) -> Engine:
        self._lifecycle.move(State.LOADING, "finding the model")
        model = await self._find_model()
        identity = self._identity
        identity.learn(model.id, model.manifest)
        self.metrics.model_found(identity.model, identity.revision, identity.manifest)
        self._engine = engine = self._make_engine(engine_config(self._settings, model))
        self._lifecycle.move(State.LOADING, "loading the model")
        async with asyncio.TaskGroup() as group:
            started = group.create_task(_started(engine))
            text = group.create_task(asyncio.to_thread(_load_text, model))
        for problem in (started.result(), text.result()):
            if isinstance(problem, ServiceError):
                raise problem
        tokenizer, template = text.result()  # type: ignore[misc]
        self._generation = self._built(engine, tokenizer, template)
        await self._probe()
        return engine

    async def _find_model(self) -> LocalModel:
        """It may have to wait for pip or another process; a server that is told to end does not wait with it."""
        finding = in_daemon_thread(partial(self._look_for_model, asyncio.get_running_loop()), "find model")
        outcome = asyncio.gather(finding, return_exceptions=True)
        try:
            await asyncio.wait([outcome])
        except asyncio.CancelledError:
            self._ends.set()
            await asyncio.wait([outcome], timeout=UNWIND_SECONDS)
            raise
        return finding.result()

    def _look_for_model(self, loop: asyncio.AbstractEventLoop) -> LocalModel:
        """In a thread. Progress is shown on the terminal or in the log, and as the reason of `GET /`."""

        def report(phase: str, done: int, total: int) -> None:
            if self._ends.is_set():
                raise _GivenUpError
            show(phase, done, total)
            reason = f"{phase}: {100 * done // max(total, 1)} %"
            loop.call_soon_threadsafe(self._lifecycle.move, State.LOADING, reason)

        with show_progress() as show:
            return find_model(self._settings, report)

    def _built(self, engine: Engine, tokenizer: Tokenizer, template: ChatTemplate) -> Generation:
        timeout = self._settings.request_timeout
        return Generation(engine, tokenizer, template, timeout, self._lifecycle, self.metrics)

    async def _probe(self) -> None:
        """Ask the model a question; ready when it has answered."""
        self._lifecycle.move(State.LOADING, "waiting for the model's first answer")
        try:
            await self.generation().probe(PROBE)
        except DeadlineExceeded:
            seconds = self._settings.request_timeout
            raise EngineFailed(
                f"the model gave no first token within {seconds:g} s (INTERNLM_REQUEST_TIMEOUT)"
            ) from None
        self._lifecycle.move(State.READY)
        logger.info("ready", extra={"fields": {"model": self._identity.model}})

    async def _watch(self, engine: Engine) -> None:
        """Follow the engine: not ready while it is stuck or restarting, ready again after a new answer."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            status = engine.status
            if status.state is EngineState.FAILED:
                raise EngineFailed(status.reason)
            if not status.state.takes_requests:
                self._lifecycle.move(State.LOADING, f"engine {status.state.value}: {status.reason}")
            elif not self._lifecycle.ready and self._lifecycle.state is not State.DRAINING:
                await self._probe_again()

    async def _probe_again(self) -> None:
        try:
            await self._probe()
        except ServiceError as error:  # it died or hangs again; the next look at its status says more
            self._lifecycle.move(State.LOADING, error.message)


def engine_config(settings: Settings, model: LocalModel) -> EngineConfig:
    """What the engine process is told: the settings of the same names, and the model's directory."""
    shared = set(EngineConfig.__struct_fields__) & set(type(settings).model_fields) - {"model_dir"}
    return EngineConfig(
        kind=settings.engine,
        model_dir=str(model.directory),
        manifest=model.manifest.digest if model.manifest else "",
        **{name: getattr(settings, name) for name in shared},
    )


async def _started(engine: Engine) -> ServiceError | None:
    """The error of an engine that cannot start: returned, as a task group would wrap what is raised."""
    try:
        await engine.start()
    except ServiceError as error:
        return error
    return None


def _load_text(model: LocalModel) -> tuple[Tokenizer, ChatTemplate] | ServiceError:
    try:
        tokenizer = load_tokenizer(model.directory)
        return tokenizer, ChatTemplate.load(model.directory, tokenizer)
    except ServiceError as error:
        return error
