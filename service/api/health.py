"""GET / says whether the model answers (readiness), GET /healthz whether the process is worth keeping (liveness)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service import __version__
from service.api.schema import Health
from service.engine.base import EngineState, EngineStatus
from service.lifecycle import RETRY_AFTER_SECONDS, Lifecycle, State

DEAD = {EngineState.STUCK, EngineState.FAILED}


@dataclass
class Identity:
    """Which model answers; known once it is loaded."""

    model: str = ""
    revision: str | None = None
    manifest: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: {"internlm-chat": __version__})


def router(lifecycle: Lifecycle, status: Callable[[], EngineStatus], identity: Identity) -> APIRouter:
    routes = APIRouter()

    @routes.get("/", response_model=Health, summary="Does the model answer?")
    async def readiness() -> JSONResponse:
        ready = lifecycle.ready
        headers = None if ready else {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return JSONResponse(health(lifecycle, status(), identity).model_dump(), 200 if ready else 503, headers)

    @routes.get("/healthz", summary="Is the process worth keeping?")
    async def liveness() -> JSONResponse:
        engine = status()
        alive = engine.state not in DEAD
        return JSONResponse({"status": engine.state.value, "reason": engine.reason}, 200 if alive else 503)

    return routes


def health(lifecycle: Lifecycle, engine: EngineStatus, identity: Identity) -> Health:
    """The readiness answer, the same shape before, while and after the model answers."""
    info = engine.info
    return Health(
        message="InternLM chat service is running" if lifecycle.ready else f"not serving: {lifecycle.reason}",
        status="healthy" if lifecycle.state is State.READY else lifecycle.state.value,
        timestamp=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        reason="" if lifecycle.ready else lifecycle.reason,
        model=identity.model,
        revision=identity.revision,
        manifest=identity.manifest,
        versions=identity.versions | (info.versions if info else {}),
        degraded=info.degraded if info else [],
    )
