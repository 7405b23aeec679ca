"""GET / says whether the model answers (readiness), GET /healthz whether the process is worth keeping (liveness)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service import __version__
from service.api.schema import Health
from service.delivery.manifest import Manifest
from service.engine.base import EngineState, EngineStatus
from service.lifecycle import RETRY_AFTER_SECONDS, Lifecycle, State

UNREADY = "Not now: the reason says why."
DEAD = {EngineState.STUCK, EngineState.FAILED}


@dataclass
class Identity:
    """Which model answers; known once it is loaded."""

    model: str = ""
    revision: str | None = None
    manifest: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: {"internlm-chat": __version__})

    def learn(self, model: str, manifest: Manifest | None) -> None:
        """Take in what was found on the disk."""
        self.model = model
        if manifest is not None:
            self.revision, self.manifest = manifest.commit or manifest.revision, manifest.digest


def router(lifecycle: Lifecycle, status: Callable[[], EngineStatus], identity: Identity) -> APIRouter:
    routes = APIRouter()

    # Load balancers probe with HEAD; uvicorn leaves the body out. Tools made for vLLM's server ask /health.
    @routes.head("/", include_in_schema=False)
    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", include_in_schema=False)
    @routes.get(
        "/",
        response_model=Health,
        responses={503: {"model": Health, "description": UNREADY}},
        summary="Does the model answer?",
    )
    async def readiness() -> JSONResponse:
        body = health(lifecycle, status(), identity)
        ready = body.status == "healthy"
        headers = None if ready else {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return JSONResponse(body.model_dump(), 200 if ready else 503, headers)

    @routes.head("/healthz", include_in_schema=False)
    @routes.get(
        "/healthz",
        responses={503: {"description": "No: the reason says why."}},
        summary="Is the process worth keeping?",
    )
    async def liveness() -> JSONResponse:
        engine = status()
        alive = engine.state not in DEAD
        return JSONResponse({"status": engine.state.value, "reason": engine.reason}, 200 if alive else 503)

    return routes


def health(lifecycle: Lifecycle, engine: EngineStatus, identity: Identity) -> Health:
    """The readiness answer, the same shape before, while and after the model answers."""
    state, reason = _state_now(lifecycle, engine)
    ready = state is State.READY
    return Health(
        message="InternLM chat service is running" if ready else f"not serving: {reason}",
        status="healthy" if state is State.READY else state.value,
        timestamp=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        reason=reason,
        model=identity.model,
        revision=identity.revision,
        manifest=identity.manifest,
        versions=identity.versions | (engine.info.versions if engine.info else {}),
        quantization=engine.info.quantization if engine.info else None,
        degraded=engine.info.degraded if engine.info else [],
    )


def _state_now(lifecycle: Lifecycle, engine: EngineStatus) -> tuple[State, str]:
    """The service's state and its reason. The engine is asked too: the lifecycle follows its death a moment later, and
    that moment must not be a lie."""
    if lifecycle.state is not State.READY:
        return lifecycle.state, lifecycle.reason
    if engine.state is EngineState.READY:
        return State.READY, ""
    reason = f"engine {engine.state.value}: {engine.reason}"
    return (State.READY if engine.state.takes_requests else State.LOADING), reason
