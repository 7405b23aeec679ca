"""GET /v1/models: the one model that is served, in OpenAI's form."""

import time
from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.api import openapi
from service.api.health import Identity
from service.engine.base import EngineStatus
from service.errors import ModelNotFound, NotReady
from service.lifecycle import RETRY_AFTER_SECONDS


class Model(BaseModel):
    """A model that can be asked for by `id`. `created` is when this server started, in seconds since 1970.
    `max_model_len`, as vLLM's server calls it: most tokens of prompt and answer, once that is known."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "internlm-chat"
    max_model_len: int | None


class ModelList(BaseModel):
    """All models: one, or none before it is known which."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(identity: Identity, status: Callable[[], EngineStatus]) -> APIRouter:
    routes = APIRouter()
    created = int(time.time())

    def served() -> Model:
        info = status().info
        return Model(id=identity.model, created=created, max_model_len=info.max_context if info else None)

    @routes.head("/v1/models", include_in_schema=False)
    @routes.get("/v1/models/", include_in_schema=False)  # else a model without a name
    @routes.get("/v1/models", summary="Which model answers?")
    async def models() -> ModelList:
        return ModelList(data=[served()] if identity.model else [])

    @routes.get(
        "/v1/models/{name:path}", summary="Does this model answer?", responses=openapi.openai_errors(404, 503)
    )  # a path, since names hold slashes
    async def model(name: str) -> Model:
        require_model(name, identity.model)
        return served()

    return routes


def require_model(asked: str | None, served: str) -> None:
    """Raises ModelNotFound when another model is asked for than the one there is, NotReady before it is known."""
    if asked is not None and not served:
        raise NotReady("it is not known yet which model is served", retry_after=RETRY_AFTER_SECONDS)
    if asked is not None and asked != served:
        raise ModelNotFound(f"the model {asked[:100]!r} is not served here; {served!r} is", field="model")
