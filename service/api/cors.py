"""Which other origins' pages may ask from a browser (CORS); those of this server always may."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.api.openai.errors import RETRIES

PREFLIGHT_SECONDS = 7200
"""How long a browser may remember that it asked: as long as Chromium does at most."""


def install(app: FastAPI, origins: list[str]) -> None:
    """Let pages of `origins` ask, and read what clients act on. Keys are sent by the page itself: cookies are not used,
    so none are allowed."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # the openai client alone sends a dozen of its own
        allow_private_network=True,  # a page from outside may ask a server inside, if it is one of them
        expose_headers=["Retry-After", "X-Request-Id", RETRIES],
        max_age=PREFLIGHT_SECONDS,
    )
