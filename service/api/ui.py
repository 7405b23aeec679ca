"""GET /ui: a chat page of static files, for a browser that reaches nothing but this service."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # The page shows what a model says. Where a browser knows these, no line of ours could make markup of it by mistake.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # kept, but asked for again each time: scripts of two versions do not fit each other
}
READING = ["GET", "HEAD"]


@dataclass(frozen=True)
class File:
    """One file of the page, as it is sent."""

    content: bytes
    media_type: str
    etag: str


def router() -> APIRouter:
    """The routes. What the page asks for, it asks for relative to itself: a proxy may have taken a prefix away."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/ui", methods=READING)
    async def page(request: Request) -> Response:
        return _sent(files()[INDEX], request)

    @routes.api_route("/ui/", methods=READING)
    async def page_with_a_slash() -> Response:
        return RedirectResponse("../ui")

    @routes.api_route("/ui/{name}", methods=READING)
    async def part(name: str, request: Request) -> Response:
        if name not in files():
            raise HTTPException(404)
        return _sent(files()[name], request)

    return routes


@cache
def files() -> dict[str, File]:
    """Every file of the page by its name; read once."""
    return {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _sent(file: File, request: Request) -> Response:
    headers = HEADERS | {"ETag": file.etag}
    if file.etag in _known(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _known(tags: str) -> set[str]:
    """The ETags in an If-None-Match; a proxy that compresses makes them weak."""
    return {tag.strip().removeprefix("W/") for tag in tags.split(",")}
