"""GET /v1/models: the one model that is served, in OpenAI's form."""

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.health import Identity


class Model(BaseModel):
    """A model that can be asked for by `id`. `created` is when this server started, in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "internlm-chat"


class ModelList(BaseModel):
    """All models: one, or none before it is known which."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(identity: Identity) -> APIRouter:
    routes = APIRouter()
    created = int(time.time())

    @routes.get("/v1/models", summary="Which model answers?")
    async def models() -> ModelList:
        return ModelList(data=[Model(id=identity.model, created=created)] if identity.model else [])

    return routes
