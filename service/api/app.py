"""The app, built by a factory from finished parts; nothing is made at import."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from fastapi import Depends, FastAPI

from service import __version__
from service.api import chat, cors, docs, health, openapi, problems, ui
from service.api.auth import BEARER, ApiKeys, guard
from service.api.health import Identity
from service.api.middleware import RequestContext
from service.api.openai import models
from service.api.openai.chat_completions import route as chat_completions
from service.api.openai.completions import route as completions
from service.api.openai.responses import route as responses
from service.api.unread_body import UnreadBody
from service.chat.generation import Generation
from service.engine.base import EngineStatus
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import Settings


def create_app(
    settings: Settings,
    lifecycle: Lifecycle,
    metrics: Metrics,
    status: Callable[[], EngineStatus],
    generation: Callable[[], Generation],
    identity: Identity,
    lifespan: Any = None,
) -> FastAPI:
    """`generation` gives the loaded model or raises NotReady; `identity` is filled in when that is known."""
    app = FastAPI(
        title="internlm-chat",
        version=__version__,
        description="Chat with one model on one GPU.",
        lifespan=lifespan,
        openapi_url=None,  # and no pages that load scripts from elsewhere: see docs.py
        redirect_slashes=False,  # a redirect would be built from the Host header, with the wrong scheme behind TLS
    )
    app.include_router(health.router(lifecycle, status, identity))
    app.include_router(docs.router(app))
    app.include_router(ui.router())  # it holds no secret, and asks for a key where one is needed
    keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
    locks = [Depends(BEARER), Depends(guard(keys))] if keys else []
    for router, errors in (
        (chat.router(generation, settings), openapi.problems),
        (chat_completions.router(generation, identity, settings), openapi.openai_errors),
        (completions.router(generation, identity, settings), openapi.openai_errors),
        (responses.router(generation, identity, settings), openapi.openai_errors),
        (models.router(identity, status), openapi.openai_errors),
    ):
        app.include_router(router, dependencies=locks, responses=errors(401, 503) if keys else None)
    app.openapi = cache(partial(openapi.document, app))  # type: ignore[method-assign]
    problems.install(app)
    if settings.allowed_origins:
        cors.install(app, settings.allowed_origins)
    app.add_middleware(RequestContext, lifecycle=lifecycle, metrics=metrics)
    app.add_middleware(UnreadBody)
    return app
