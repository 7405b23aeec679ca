"""What every object of a completion, of either kind, says of itself."""

import time
from typing import Any

from pydantic import BaseModel

from service.api.health import Identity
from service.log import request_id


class Named(BaseModel):
    """Of which answer it is, since when, of which model and weights."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


def names(prefix: str, identity: Identity) -> dict[str, Any]:
    """The fields of `Named` for the answer to the request that is being served, which begins now."""
    return {
        "id": f"{prefix}-{request_id.get()}",
        "created": int(time.time()),
        "model": identity.model,
        "system_fingerprint": f"fp_{identity.manifest[:10]}" if identity.manifest else None,
    }
